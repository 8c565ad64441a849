"""Who may import whom (the map of the package), and that SQL has one place."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apps import modules
from harness import Supervisor

import underway
from underway import Underway

PACKAGE = Path(underway.__file__).parent

# Each room of the package, and the rooms below it. What a function imports when it is called is in LAZY.
PURE = {"errors", "ids", "retry", "codec", "keys", "key_fields", "wire", "manifest", "handover"}
PURE |= {"child_record", "lease_clock"}
DECLARING = PURE | {"context", "options", "loading", "job"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "ids": set(),
    "keeper": set(),
    "lease_clock": set(),
    "wire": set(),
    "child_record": set(),
    "printable": set(),
    "retry": {"errors"},
    "codec": {"errors"},
    "keys": {"errors"},
    "key_fields": {"codec", "keys"},
    "handover": {"errors", "retry"},
    "schedule": {"errors"},
    "manifest": {"retry"},
    "loading": {"errors"},
    "context": {"errors"},
    "options": {"errors", "ids", "keys", "manifest", "retry"},
    "job": PURE | {"context", "options"},
    "client": DECLARING,
    "scheduling": DECLARING,
    "aio": DECLARING | {"client", "scheduling"},
    "dead_letters": DECLARING | {"client"},
    "quarantine": {"client", "options"},
    "app": DECLARING | {"client", "dead_letters", "quarantine", "scheduling"},
    "postgres": PURE,
    "worker": DECLARING | {"client", "app", "keeper"},
    "supervisor": {"errors", "manifest", "wire", "child_record", "retry", "schedule", "ids", "keeper", "lease_clock"}
    | {"postgres", "printable"},
    "cli": {
        "app",
        "client",
        "codec",
        "errors",
        "ids",
        "loading",
        "options",
        "postgres",
        "printable",
        "supervisor",
        "testing",
    },
    "testing": DECLARING | {"client", "app", "postgres", "schedule", "supervisor", "worker"},
    "__init__": DECLARING | {"client", "app", "dead_letters", "quarantine", "scheduling"},
}
# Clients, and workers for cx.tx, come to Postgres when they first use it.
LAZY: dict[str, set[str]] = {
    "client": {"postgres"},
    "scheduling": {"postgres", "schedule"},
    "aio": {"postgres"},
    "app": {"postgres", "supervisor"},  # supervisor: for the meaning of its exit codes
    "dead_letters": {"postgres"},
    "quarantine": {"postgres"},
    "worker": {"postgres"},
    "cli": {"job"},
}
# psycopg at import costs a worker 20 ms and its memory; only these may be slower to start.
MAY_IMPORT_PSYCOPG = {"postgres", "supervisor", "cli", "testing"}
THE_PROCESS_THAT_IMPORTS_THE_APP = {"cli/loaded.py", "cli/sync.py", "cli/replaying.py"}
# It runs a step as the tests of an app do.
WHO_REPLAYS = "cli/replaying.py"


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    """(path in the package, room, tree) of every module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        yield str(path), path.parts[0].removesuffix(".py"), ast.parse(file.read_text())


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Modules imported when the module is, or those imported inside its functions. For a type checker: neither."""

    def walk(node: ast.AST, inside: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if inside is lazy:
                if isinstance(child, ast.Import):
                    yield from (alias.name for alias in child.names)
                elif isinstance(child, ast.ImportFrom):
                    assert child.level == 0, "relative import"
                    assert child.module is not None
                    yield child.module
                    if child.module == "underway":
                        yield from (f"underway.{alias.name}" for alias in child.names)
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return walk(tree, False)


def rooms(names: Iterator[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("underway.")}


def test_every_room_is_on_the_map() -> None:
    assert {room for _, room, _ in sources()} <= set(ROOMS)


def test_imports_go_only_downwards() -> None:
    wrong = []
    for path, room, tree in sources():
        below = ROOMS[room] | {room}
        wrong += [f"{path} imports {name}" for name in rooms(imports(tree, lazy=False)) - below]
        later = below | LAZY.get(room, set())
        wrong += [f"{path} imports {name} in a function" for name in rooms(imports(tree, lazy=True)) - later]
    assert wrong == []


def test_the_map_has_no_circles() -> None:
    done: set[str] = set()
    while ready := {room for room in ROOMS if room not in done and ROOMS[room] <= done | {room}}:
        done |= ready
    assert done == set(ROOMS)


def test_a_supervisor_never_touches_user_code() -> None:
    forbidden = {"job", "app", "client", "worker", "loading", "context", "handover", "codec", "options"}
    for path, room, tree in sources():
        if room == "supervisor":
            used = rooms(imports(tree, lazy=False)) | rooms(imports(tree, lazy=True))
            assert not used & forbidden, path
            # nor the way to it: nothing there imports by name, evaluates or unpickles
            calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert not calls & {"eval", "exec", "__import__", "importlib.import_module", "pickle.loads"}, path


def test_nothing_else_needs_what_tests_need() -> None:
    for path, room, tree in sources():
        if room != "testing" and path != WHO_REPLAYS:
            assert "testing" not in rooms(imports(tree, lazy=False)) | rooms(imports(tree, lazy=True)), path
        names = {*imports(tree, lazy=False), *imports(tree, lazy=True)}
        assert "pytest" not in names or path == "testing/fixtures.py", path


def test_commands_import_an_app_only_in_a_process_of_its_own() -> None:
    for path, room, tree in sources():
        if room == "cli" and path not in THE_PROCESS_THAT_IMPORTS_THE_APP:
            names = {*imports(tree, lazy=False), *imports(tree, lazy=True)}
            assert "loading" not in rooms(iter(names)), path
            assert not names & {
                f"underway.{there[:-3].replace('/', '.')}" for there in THE_PROCESS_THAT_IMPORTS_THE_APP
            }


def test_nobody_unpickles_or_evaluates() -> None:
    for path, _, tree in sources():
        names = {*imports(tree, lazy=False), *imports(tree, lazy=True)}
        assert not {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, path
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"eval", "exec", "__import__"}, path


def test_psycopg_is_imported_by_those_who_need_it_at_once() -> None:
    for path, room, tree in sources():
        if room not in MAY_IMPORT_PSYCOPG:
            loaded = {name.split(".")[0] for name in imports(tree, lazy=False)}
            assert not loaded & {"psycopg", "psycopg_pool"}, path


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
    """The positions of texts that are statements of their own: docstrings."""
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
    wrong = {path: sql for path, room, tree in sources() if room != "postgres" and (sql := sql_in(tree))}
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
