"""The import order of the package, and the single place of SQL."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from apps import modules
from harness import Supervisor

import underway
from underway import Underway

PACKAGE = Path(underway.__file__).parent

# From the bottom to the top. A module may import from its own folder and from those above it in this list.
ORDER = (
    "errors",
    "ids",
    "linux",
    "printable",
    "text",
    "guardian",
    "wire",
    "payload",
    "keys",
    "schedule",
    "definition",
    "postgres",
    "client",
    "supervisor",
    "app",
    "aio",
    "worker",
    "testing",
    "cli",
)
# psycopg at import costs a worker 20 ms and its memory; only these may be slower to start.
MAY_IMPORT_PSYCOPG = {"postgres", "supervisor", "cli", "testing"}
THE_PROCESS_THAT_IMPORTS_THE_APP = "cli/in_app/"
# It runs a step like the test kit.
WHO_REPLAYS = "cli/in_app/replay.py"


@dataclass(frozen=True)
class Import:
    module: str
    when: Literal["import", "call", "type check"]


@dataclass(frozen=True)
class Module:
    name: str
    path: str
    folder: str
    tree: ast.Module

    def imports(self, *when: str) -> set[str]:
        """The modules that it imports, at these times or at any."""
        return {found.module for found in _imports(self.tree, "import") if not when or found.when in when}


def _imports(node: ast.AST, when: Literal["import", "call", "type check"]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, when) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative import"
            assert child.module is not None
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                yield Import(submodule if submodule in NAMES else child.module, when)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, "type check")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "import":
            yield from _imports(child, "call")
        else:
            yield from _imports(child, when)


def _read() -> Iterator[Module]:
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        name = ".".join(("underway", *path.with_suffix("").parts)).removesuffix(".__init__")
        yield Module(name, str(path), path.parts[0].removesuffix(".py"), ast.parse(file.read_text()))


MODULES = list(_read())
NAMES = {module.name for module in MODULES}


def folders(names: Iterable[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("underway.")}


def test_every_folder_is_in_the_order() -> None:
    assert {module.folder for module in MODULES} == {*ORDER, "__init__"}


def test_imports_go_only_downwards() -> None:
    """Also those for type checkers and those inside functions."""
    wrong = []
    for module in MODULES:
        if module.folder != "__init__":
            below = set(ORDER[: ORDER.index(module.folder) + 1])
            wrong += [f"{module.path} imports {name}" for name in module.imports() if folders([name]) - below]
    assert wrong == []


def test_no_circle_of_modules() -> None:
    circles = {module.name: module.imports() & (NAMES - {module.name}) for module in MODULES}
    while ends := {name for name in circles if not circles[name] or not any(name in used for used in circles.values())}:
        circles = {name: used - ends for name, used in circles.items() if name not in ends}
    assert sorted(circles) == []


def test_a_supervisor_never_touches_user_code() -> None:
    allowed = {"underway.definition.manifest", "underway.definition.retry"}
    for module in MODULES:
        if module.folder == "supervisor":
            used = module.imports()
            assert not folders(used - allowed) & {"definition", "payload", "client", "app", "aio", "worker"}, (
                module.path
            )
            # nor can it: nothing there imports by name, evaluates or unpickles
            calls = {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
            assert not calls & {"eval", "exec", "__import__", "importlib.import_module", "pickle.loads"}, module.path


def test_the_package_does_not_need_test_dependencies() -> None:
    for module in MODULES:
        used = module.imports()
        if module.folder != "testing" and module.path != WHO_REPLAYS:
            assert "testing" not in folders(used), module.path
        assert "pytest" not in used or module.path == "testing/fixtures.py", module.path


def test_commands_import_an_app_only_in_a_separate_process() -> None:
    for module in MODULES:
        if module.folder == "cli" and not module.path.startswith(THE_PROCESS_THAT_IMPORTS_THE_APP):
            used = module.imports()
            assert "underway.definition.app_import" not in used, module.path
            assert not {name for name in used if name.startswith("underway.cli.in_app.")} - RUNS_IT, module.path


# Starts that process.
RUNS_IT = {"underway.cli.in_app.process"}


def test_nothing_unpickles_or_evaluates() -> None:
    for module in MODULES:
        used = {name.split(".")[0] for name in module.imports()}
        assert not used & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, module.path
        calls = {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
        assert not calls & {"eval", "exec", "__import__"}, module.path


def test_psycopg_is_imported_early_only_where_it_is_needed() -> None:
    for module in MODULES:
        if module.folder not in MAY_IMPORT_PSYCOPG:
            loaded = {name.split(".")[0] for name in module.imports("import")}
            assert not loaded & {"psycopg", "psycopg_pool"}, module.path


def test_importing_underway_is_light() -> None:
    program = "import sys, underway; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    drivers = {"psycopg", "psycopg_pool", "psycopg_binary"}
    assert not loaded & {*drivers, "asyncio", "click", "croniter", "psutil", "pydantic", "rich"}


def test_a_worker_has_no_database_driver(
    bind: Callable[[Underway], Underway], start_supervisor: Callable[..., Supervisor]
) -> None:
    bind(modules.app)
    run = modules.modules.enqueue()
    start_supervisor("modules", "--procs", "1")
    loaded = set(run.result(timeout=20))
    assert "underway.worker.main" in loaded
    assert not {name for name in loaded if name.split(".")[0] in ("psycopg", "psycopg_pool", "psycopg_binary")}
    assert not {name for name in loaded if name.startswith(("underway.supervisor", "underway.postgres"))}
    assert "asyncio" not in loaded


# SQL

STATEMENT = re.compile(
    r"\s*(select\s|insert\s+into\s|update\s+\S+\s+set\s|delete\s+from\s|with\s+\S+\s+as\s*\(|copy\s+\S+\s+(from|to)\b"
    r"|create\s+(table|schema|index|function)\s|alter\s+\S+\s|drop\s+\S+\s|listen\s+\S+$|notify\s+\S+|set\s+\S+\s*=)",
    re.IGNORECASE,
)


def docstrings(tree: ast.Module) -> set[int]:
    """The positions of docstrings: strings that are whole statements."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def sql_in(tree: ast.Module) -> list[str]:
    skip = docstrings(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
            if STATEMENT.match(node.value):
                found.append(node.value)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("execute", "executemany", "copy")
            and node.args
            and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
        ):
            found.append(ast.unparse(node))
    return found


def test_sql_is_written_in_one_place() -> None:
    wrong = {module.path: sql for module in MODULES if module.folder != "postgres" and (sql := sql_in(module.tree))}
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    [
        "x = 'select 1'",
        "x = '''\n  insert into underway.run values (1)'''",
        "x = f'delete from {table}'",
        "connection.execute('vacuum')",
        "cursor.copy(f'x {y}')",
        "x = 'WITH a AS (select 1) select 2'",
    ],
)
def test_the_search_for_sql_finds_it(text: str) -> None:
    assert sql_in(ast.parse(text))


@pytest.mark.parametrize("text", ["'''select 1'''", "executor.execute(task)", "x = 'Update the schema'", "x.copy()"])
def test_the_search_for_sql_finds_nothing_else(text: str) -> None:
    assert not sql_in(ast.parse(text))
