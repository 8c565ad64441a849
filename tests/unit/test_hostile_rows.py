"""Promise 12: nothing in the database is executed or looked up by name, even in malicious rows."""

import ast
import base64
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from apps import basic, clients
from db import insert, value
from harness import Supervisor
from test_layers import MODULES

from underway import Status, Underway
from underway.testing import drain, using_database

Connection = psycopg.Connection[Any]

# The only functions that resolve names, and where they may be used: for the APP that is given to a command.
THE_ONE_LOADER = "definition/app_import.py"
WHO_LOADS = {"worker/main.py", "cli/in_app/app.py"}
# importlib.resources reads our own files, importlib.util.find_spec locates the embedded wheel.
HARMLESS_IMPORTS = {"importlib.resources", "importlib.metadata"}
# Modules and functions that read more than plain values, or start code by name.
SERIALIZERS = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "copyreg", "jsonpickle", "yaml"),
    *("joblib", "multiprocessing", "concurrent", "runpy", "pkgutil", "code", "codeop", "imp", "pydoc", "xmlrpc"),
}
RESOLVERS = {
    *("eval", "exec", "compile", "__import__", "globals", "locals", "import_module", "find_spec", "exec_module"),
    *("resolve_name", "locate", "run_module", "run_path", "load_module", "attrgetter", "methodcaller", "import_string"),
}


def test_no_module_imports_unsafe_deserializers() -> None:
    for module in MODULES:
        for name in module.imports():
            assert name.split(".")[0] not in SERIALIZERS, module.path
            if name.split(".")[0] == "importlib" and name not in HARMLESS_IMPORTS:
                assert module.path in (THE_ONE_LOADER, "postgres/embedded.py"), module.path


def test_only_the_app_given_to_a_command_is_resolved_by_name() -> None:
    for module in MODULES:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "compile" and ast.unparse(node.func) == "re.compile":
                continue
            if called in RESOLVERS:
                allowed = (module.path, called) == ("postgres/embedded.py", "find_spec")
                assert allowed or module.path == THE_ONE_LOADER, module.path
            if called == "load" and module.path not in WHO_LOADS:
                assert "underway.definition.app_import" not in module.imports(), module.path


def test_attribute_names_are_constants() -> None:
    """With `getattr(thing, name)` and a name from a row, an attacker could call `os.system`."""
    by_variable = {
        module.path
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "setattr")
        and not isinstance(node.args[1], ast.Constant)
    }
    # The name of an app, the fields of a declared type, the standard streams, and the limits in `resource`.
    assert by_variable == {THE_ONE_LOADER, "payload/diagnose.py", "payload/type_names.py", "worker/process_state.py"}


def test_apps_are_loaded_only_by_names_from_the_command_line() -> None:
    for module in MODULES:
        if module.path in WHO_LOADS:
            (call,) = [n for n in ast.walk(module.tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "load"]
            assert ast.unparse(call.args[0]) in ("sys.argv[1]", "app_name", "name"), module.path


class Exploit:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


NAMES = [
    *("os.system", "os:system", "builtins.eval", "__import__", "__class__", "posix.system", "subprocess.run"),
    *("apps.basic:app", "../../etc/passwd", "%s", "'; drop table underway.run; --", "\x1b[31m", "a\nb", "__main__"),
]


def payloads(canary: Path) -> list[str]:
    pickled = pickle.dumps(Exploit(canary))
    touch = f"touch {canary}"
    return [
        f'"{base64.b64encode(pickled).decode()}"',
        f"\"cos\\\\nsystem\\\\n(S'{touch}'\\\\ntR.\"",
        f'{{"py/reduce": [{{"py/function": "os.system"}}, {{"py/tuple": ["{touch}"]}}]}}',
        f'{{"py/object": "os.system", "args": ["{touch}"]}}',
        f'{{"__class__": "os.system", "__init__": {{"args": ["{touch}"]}}}}',
        f'{{"$type": "System.Diagnostics.Process", "type": "os.system", "@type": "x", "cmd": "{touch}"}}',
        f"\"!!python/object/apply:os.system ['{touch}']\"",
        f"\"__import__('os').system('{touch}')\"",
        f'{{"__reduce__": ["os.system", "{touch}"], "__dict__": {{}}, "__getattr__": "{touch}"}}',
    ]


def test_the_exploit_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_names_in_rows_can_only_select_declared_steps(
    tmp_path: Path,
    connection: Connection,
    bind: Callable[[Underway], Underway],
    start_supervisor: Callable[..., Supervisor],
) -> None:
    canary = tmp_path / "canary"
    argument = f'"touch {canary}"'
    strangers = {insert(connection, job=name, step=name, input=argument) for name in NAMES}
    strangers |= {insert(connection, job="numbers", step=name, input=argument) for name in NAMES}
    for name in NAMES:
        connection.execute(
            "insert into underway.job values (%s, %s, 'default', 0, '0', '1 day', null, null, null, now())",
            [name, name],
        )
        connection.execute("insert into underway.queue values (%s, true, %s)", [name, name])
        connection.execute("select underway.enqueue(%s, %s)", [name, argument])
        connection.execute(
            "insert into underway.schedule values (%s, %s, %s, %s, 'last', true, %s, now())",
            [name, name, f"@daily{name}", name, argument],
        )
    connection.execute(
        "insert into underway.schedule values ('numbers', 'evil', '__import__(''os'')', '../../etc/passwd', 'last', "
        "true, '1', now())"
    )
    for payload in ["os.system", "shutdown", "cancel", "\x1b[31m", "x" * 7000]:
        connection.execute("select pg_notify('underway', %s)", [payload])
    bind(basic.app)
    runs = [basic.numbers.enqueue(number) for number in range(5)]
    supervisor = start_supervisor("basic", "--procs", "1")
    assert [run.result(timeout=30) for run in runs] == list(range(5))
    supervisor.until("this schedule cannot be fired here")
    assert not canary.exists()
    states = connection.execute(
        "select distinct state, crashes, attempts from underway.run where id = any(%s::uuid[])", [list(strangers)]
    ).fetchall()
    assert states == [("pending", 0, 0)], "never claimed"
    assert "\x1b[31m" not in supervisor.log


@pytest.mark.parametrize("job", ["echoes", "orders", "handing"])
def test_inputs_are_plain_values(tmp_path: Path, database: str, connection: Connection, job: str) -> None:
    canary = tmp_path / "canary"
    with using_database(clients.app, database):
        declared = clients.app.jobs[job]
        runs = [
            insert(connection, job=job, step=declared.compiled[0].spec.name, input=text) for text in payloads(canary)
        ]
        drain(declared)
        for run, text in zip(runs, payloads(canary), strict=True):
            handle = clients.app.get_run(run)
            if handle.status() is Status.SUCCEEDED and job == "echoes":
                assert value(
                    connection, "select %s::jsonb = result::jsonb from underway.finished_run where id = %s", [text, run]
                )
            else:
                assert "PayloadError" in (handle.attempts()[0].error or "")
    assert not canary.exists()


def test_results_and_schedules_are_plain_values_for_clients(
    tmp_path: Path, database: str, connection: Connection
) -> None:
    canary = tmp_path / "canary"
    with using_database(clients.app, database):
        for text in payloads(canary):
            run = clients.echoes.enqueue(1)
            drain(clients.echoes)
            connection.execute("update underway.finished_run set result = %s where id = %s", [text, run.id])
            assert type(run.result()) in (dict, str)
            connection.execute("delete from underway.schedule")
            connection.execute(
                "insert into underway.schedule values ('echoes', 'n', '@daily', 'UTC', 'last', true, %s, now())", [text]
            )
            (schedule,) = clients.app.schedules()
            assert type(schedule.input) in (dict, str)
    assert not canary.exists()


def test_a_run_of_an_unknown_job_can_be_inspected(database: str, connection: Connection) -> None:
    run = insert(connection, job="builtins.eval", step="os.system")
    with using_database(clients.app, database):
        assert clients.app.get_run(run).status() is Status.PENDING
