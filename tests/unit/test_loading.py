"""Importing the user's app: by module, by file, and without any effects."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Supervisor

from underway import AppNotFound, ImportSideEffect, Underway
from underway.definition.app_import import forbid_during_import, load

APP = "from underway import Context, Done, To, Underway\napp = Underway()\n"
STEP = "def work(cx: Context) -> Done:\n    return To.done()\njob = app.job('job').step(work)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory. Modules and the path are restored after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_module_and_attribute(folder: Path) -> None:
    write(folder / "loading_shop.py", APP + "other = 3\n")
    assert isinstance(load("loading_shop:app"), Underway)
    assert load("loading_shop:other") == 3


def test_module_in_a_package(folder: Path) -> None:
    write(folder / "loading_pkg" / "__init__.py", "")
    write(folder / "loading_pkg" / "jobs.py", APP)
    assert isinstance(load("loading_pkg.jobs:app"), Underway)


def test_file_anywhere(folder: Path) -> None:
    file = write(folder / "some where" / "my-app.v2.py", APP)
    assert isinstance(load(f"{file}:app"), Underway)
    assert isinstance(load("some where/my-app.v2.py:app"), Underway)


def test_file_finds_its_neighbours(folder: Path) -> None:
    write(folder / "deep" / "loading_helper.py", "value = 7\n")
    write(folder / "deep" / "loading_main.py", "from loading_helper import value\n")
    assert load("deep/loading_main.py:value") == 7


def test_file_of_a_package_with_relative_imports(folder: Path) -> None:
    write(folder / "outer" / "loading_pack" / "__init__.py", "")
    write(folder / "outer" / "loading_pack" / "inner" / "__init__.py", "")
    write(folder / "outer" / "loading_pack" / "values.py", "value = []\n")
    write(folder / "outer" / "loading_pack" / "inner" / "jobs.py", "from ..values import value\n" + APP)
    value = load("outer/loading_pack/inner/jobs.py:value")
    assert value is sys.modules["loading_pack.values"].value
    assert load("outer/loading_pack/inner/jobs.py:app") is sys.modules["loading_pack.inner.jobs"].app


def test_package_by_its_init_file(folder: Path) -> None:
    write(folder / "loading_whole" / "__init__.py", APP)
    app = load("loading_whole/__init__.py:app")
    assert app is sys.modules["loading_whole"].app


@pytest.mark.parametrize("name", ["queue", "json", "colorsys"])
def test_file_named_like_the_standard_library(folder: Path, name: str) -> None:
    write(folder / f"{name}.py", APP)
    assert isinstance(load(f"{name}.py:app"), Underway)
    # an unused module of the standard library, which other tests do not need
    program = (
        f"from underway.definition.app_import import load; load('{name}.py:app'); import {name}; print({name}.__file__)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert str(folder) not in done.stdout


def test_file_named_like_something_installed(folder: Path) -> None:
    import click

    write(folder / "click.py", APP)
    assert isinstance(load("click.py:app"), Underway)
    assert sys.modules["click"] is click


def test_values_of_the_apps_own_classes_are_the_same_class(folder: Path) -> None:
    # a dataclass must be the same class whether the file was imported by path or by another module by name
    write(folder / "loading_main2.py", "import loading_jobs\nclass Order: ...\nsame = loading_jobs.Order is Order\n")
    write(
        folder / "loading_jobs.py", "def __getattr__(name):\n    import loading_main2\n    return loading_main2.Order\n"
    )
    assert load("loading_main2.py:same") is True


def test_imported_twice_is_the_same_module(folder: Path) -> None:
    write(folder / "loading_twice.py", APP)
    assert load("loading_twice:app") is load("loading_twice:app")


@pytest.mark.parametrize(
    "app", ["", "shop", "shop:", ":app", "shop:a.b", "shop:1", "shop.py", "a:b c", "postgresql://x"]
)
def test_an_invalid_app_name(folder: Path, app: str) -> None:
    with pytest.raises(AppNotFound):
        load(app)


def test_the_missing_part_is_named(folder: Path) -> None:
    write(folder / "loading_here.py", APP)
    write(folder / "loading_pkg3" / "__init__.py", "")
    for app, message in {
        "loading_gone:app": rf"no module 'loading_gone' \(searched {folder} and sys.path\)",
        "loading_pkg3.gone:app": "no module 'loading_pkg3.gone'",
        "loading_here.gone:app": "no module 'loading_here.gone'",
        "loading_gone.py:app": f"file not found: {folder}/loading_gone.py",
        "loading_here:gone": "loading_here has no attribute 'gone'",
        "loading_here.py:gone": "loading_here.py has no attribute 'gone'",
        "shop": "invalid app 'shop': expected module:attribute or path/to/file.py:attribute",
    }.items():
        with pytest.raises(AppNotFound, match=message):
            load(app)


def test_an_import_error_inside_the_app_keeps_its_traceback(folder: Path) -> None:
    write(folder / "loading_broken.py", "import loading_not_there\n")
    for app in ("loading_broken:app", "loading_broken.py:app"):
        with pytest.raises(ModuleNotFoundError, match="loading_not_there") as raised:
            load(app)
        assert Path(raised.traceback[-1].path).name == "loading_broken.py"


def test_a_failed_import_leaves_no_partial_state(folder: Path) -> None:
    file = write(folder / "loading_fails.py", "raise RuntimeError('no')\n")
    with pytest.raises(RuntimeError):
        load("loading_fails.py:app")
    assert "loading_fails" not in sys.modules
    forbid_during_import("enqueue")  # allowed again
    file.write_text(APP)
    assert isinstance(load("loading_fails.py:app"), Underway)


EFFECTS = {
    "enqueue": "job.enqueue()",
    "enqueue_many": "job.enqueue_many([None])",
    "enqueue with conn=": "job.enqueue(conn=object())",
    "cancel": "from underway import Run\nfrom uuid import uuid4\nRun(app, uuid4(), None).cancel()",
    "cancel by id": "from uuid import uuid4\napp.cancel(uuid4())",
    "cancel_all": "job.cancel_all()",
    "cancel by key": "job.cancel(unique_key='x')",
    "pause": "app.pause('default')",
    "resume": "app.resume('default')",
    "redrive": "app.redrive('dead')",
    "discard": "app.discard('dead')",
    "migrate": "app.migrate()",
    "sync": "app.sync()",
    "run": "app.run()",
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_importing_has_no_effects(folder: Path, effect: str) -> None:
    write(folder / "loading_effect.py", APP + STEP + EFFECTS[effect] + "\n")
    for app in ("loading_effect:app", "loading_effect.py:app"):
        with pytest.raises(ImportSideEffect) as raised:
            load(app)
        assert f"was called while {app} was being imported" in str(raised.value)
        assert "move the call under if __name__ == '__main__':" in str(raised.value)
    forbid_during_import("enqueue")  # allowed again


def test_a_worker_refuses_effects_and_says_where(folder: Path, start_supervisor: Callable[..., Supervisor]) -> None:
    file = write(folder / "loading_effect.py", APP + STEP + "job.enqueue()\n")
    supervisor = start_supervisor(f"{file}:app", "--procs", "1")
    assert supervisor.wait() == 3
    assert "ImportSideEffect: enqueue was called while" in supervisor.log
    assert "move the call under if __name__ == '__main__':" in supervisor.log
    assert f'File "{file}", line 6' in supervisor.log


def test_main_guard_is_not_run(folder: Path) -> None:
    write(folder / "loading_guarded.py", APP + STEP + "if __name__ == '__main__':\n    job.enqueue()\n")
    load("loading_guarded.py:app")
    load("loading_guarded:app")


def test_a_console_script_finds_modules_of_the_working_directory(folder: Path) -> None:
    write(folder / "loading_cwd.py", APP + STEP)
    script = Path(sys.executable).parent / "underway"
    done = subprocess.run([script, "sync", "loading_cwd:app"], capture_output=True, text=True, cwd=folder)
    assert "no module" not in done.stderr
    assert "no database" in done.stderr or done.returncode != 0
