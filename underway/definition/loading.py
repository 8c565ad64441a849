"""Imports the user's app, and refuses calls with side effects meanwhile."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from underway.errors import AppNotFound, ImportSideEffect

_loading: str | None = None


def load(app: str) -> object:
    """The object that APP names: `module:attribute` or `path/to/file.py:attribute`.

    Raises AppNotFound if it does not exist, and any error that the module raises.
    """
    source, colon, attribute = app.rpartition(":")
    if not colon or not source or not attribute.isidentifier():
        raise AppNotFound(f"{app!r} is not of the form module:attribute or path/to/file.py:attribute")
    with _refusing_effects(app):
        module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    if not hasattr(module, attribute):
        raise AppNotFound(f"{source} has no attribute {attribute!r}")
    return getattr(module, attribute)


def forbid_during_import(call: str) -> None:
    """Raise ImportSideEffect if an app is being imported: every worker imports it, again and again."""
    if _loading is not None:
        raise ImportSideEffect(
            f"{call} was called while {_loading} was imported: move this under if __name__ == '__main__':"
        )


@contextmanager
def _refusing_effects(app: str) -> Iterator[None]:
    global _loading
    _loading = app
    try:
        yield
    finally:
        _loading = None


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does; a console script's path lacks the working directory
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # If the app imports a module that does not exist, the app's own error and traceback say so.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise AppNotFound(f"there is no module {name!r} (looked in {Path.cwd()} and sys.path)") from error
        raise


def _import_file(file: Path) -> ModuleType:
    """Import a file under the name that it has on sys.path, so that its neighbours import the same module."""
    file = file.resolve()
    if not file.is_file():
        raise AppNotFound(f"there is no file {file}")
    root, name = file.parent, file.stem
    packaged = (root / "__init__.py").exists()
    while (root / "__init__.py").exists():
        name, root = f"{root.name}.{name}", root.parent
    if name in sys.stdlib_module_names:
        # Before the folder is on the path: others would find the app in place of the standard module.
        importlib.import_module(name)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if packaged:
        return importlib.import_module(name.removesuffix(".__init__"))
    if (known := sys.modules.get(name)) is not None:
        if getattr(known, "__file__", None) == str(file):
            return known
        name = f"app_{name}"  # another module has the name, and keeps it
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
