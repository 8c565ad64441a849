"""Imports the user's app, and forbids side effects during the import."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from underway.errors import AppNotFound, ImportSideEffect

_importing: str | None = None  # the name of the app that is being imported


def load(app: str) -> object:
    """Import the object that APP names: `module:attribute` or `path/to/file.py:attribute`.

    Raises AppNotFound if it does not exist. Errors of the module itself pass through.
    """
    source, colon, attribute = app.rpartition(":")
    if not colon or not source or not attribute.isidentifier():
        raise AppNotFound(f"invalid app {app!r}: expected module:attribute or path/to/file.py:attribute")
    with _forbidding_side_effects(app):
        module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    if not hasattr(module, attribute):
        raise AppNotFound(f"{source} has no attribute {attribute!r}")
    return getattr(module, attribute)


def forbid_during_import(call: str) -> None:
    """Raise ImportSideEffect during the import of an app, because each worker imports it again."""
    if _importing is not None:
        raise ImportSideEffect(
            f"{call} was called while {_importing} was being imported: move the call under if __name__ == '__main__':"
        )


@contextmanager
def _forbidding_side_effects(app: str) -> Iterator[None]:
    global _importing
    _importing = app
    try:
        yield
    finally:
        _importing = None


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does; the path of a console script does not contain the working directory
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # If the app itself imports a missing module, that is the app's error, with its own traceback.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise AppNotFound(f"no module {name!r} (searched {Path.cwd()} and sys.path)") from error
        raise


def _import_file(file: Path) -> ModuleType:
    """Import by path, under the name that the file has for modules beside it, so that they import the same module."""
    file = file.resolve()
    if not file.is_file():
        raise AppNotFound(f"file not found: {file}")
    root, name = file.parent, file.stem
    packaged = (root / "__init__.py").exists()
    while (root / "__init__.py").exists():
        name, root = f"{root.name}.{name}", root.parent
    if name in sys.stdlib_module_names:
        importlib.import_module(name)  # before the app's folder is on the path, where the app would hide it from others
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if packaged:
        return importlib.import_module(name.removesuffix(".__init__"))
    if (known := sys.modules.get(name)) is not None:
        if getattr(known, "__file__", None) == str(file):
            return known
        name = f"app_{name}"  # another module has the name
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
