"""Commands of `underway` that show something, on runs in every state, at 80 columns and other widths."""

import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from apps import basic, states
from apps.states import Order
from db import insert
from harness import Supervisor, eventually
from places import APPS
from underway_command import document, output, refusal, underway, underway_process, widest

from underway import Run
from underway.cli.output.format import age, headline
from underway.ids import new_id
from underway.postgres import inspection

ESCAPE = "\x1b[31m"


class World(NamedTuple):
    database: str
    runs: dict[str, Run[Any]]

    def id(self, name: str) -> str:
        return str(self.runs[name].id)


@pytest.fixture(scope="module")
def world(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A run in each state, and a supervisor."""
    folder = tmp_path_factory.mktemp("states")
    states.app.database.named = basic.app.database.named = module_database
    runs: dict[str, Run[Any]] = {
        "succeeded": states.orders.enqueue(Order(1, "Łódź 東京")),
        "failed": states.failing.enqueue(Order(7)),
        "crashed": states.aborting.enqueue(Order(1)),
        "in_progress": states.lasting.enqueue(Order(5)),
        "waiting": states.later.enqueue(Order(2)),
        "cancelled": states.later.enqueue(Order(3)),
        "stranded": basic.numbers.enqueue(4),
    }
    runs["cancelled"].cancel()
    supervisor = Supervisor(
        f"{APPS / 'states'}.py:app", module_database, folder / "log", env={"STATES_FOLDER": str(folder)}
    )
    with psycopg.connect(module_database, autocommit=True) as connection:
        look = "select count(*) from underway.runs where state in ('pending', 'waiting') or state = 'in_progress'"
        eventually(lambda: connection.execute(look).fetchone() == (3,), what="three live runs")
        look = "select 1 from underway.run where progress is not null"
        eventually(lambda: connection.execute(look).fetchone(), what="progress")
    yield World(module_database, runs)
    (folder / "5").touch()
    supervisor.end()
    for app in (states.app, basic.app):
        app.close()
        app.database.named = None


def rows(text: str) -> dict[str, str]:
    """The lines of a table by first cell."""
    return {line.split()[0]: line for line in text.splitlines()[1:]}


def test_list_shows_every_state_in_80_columns(world: World) -> None:
    text = output("list", database=world.database)
    assert widest(text) <= 80
    assert text.splitlines()[0].split()[:5] == ["ID", "STATE", "AGE", "JOB", "STEP"]
    lines = rows(text)
    assert lines.keys() == {world.id(name) for name in world.runs}
    for name, run in world.runs.items():
        state = {"stranded": "pending", "crashed": "failed"}.get(name, name)
        assert lines[str(run.id)].split()[1] == state
    assert lines[world.id("failed")].split()[3:5] == ["failing", "break_down"]
    assert "in_progress" in lines[world.id("in_progress")]
    # Newest first.
    assert list(lines)[-1] == world.id("succeeded")


def test_list_adapts_to_its_terminal(world: World) -> None:
    narrow = output("list", database=world.database, columns=75)
    assert 70 < widest(narrow) <= 75
    assert "break_do…" in narrow
    narrower = output("list", database=world.database, columns=55)
    assert widest(narrower) <= 55
    assert rows(narrower)[world.id("failed")].split()[1] == "failed"
    wide = output("list", database=world.database, columns=140)
    assert 100 < widest(wide) <= 140
    lines = rows(wide)
    assert lines[world.id("failed")].endswith("  PrinterOnFire: order 7 does not print")
    assert "quarantined after 1 crash" in lines[world.id("crashed")]
    assert lines[world.id("waiting")].endswith("due in 2d")
    assert lines[world.id("in_progress")].endswith("1/3 pages")


def test_piped_output_is_complete_and_plain(world: World) -> None:
    done = underway_process("list", database=world.database, columns=None)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert "quarantined after 1 crash: the worker died: signal SIGABRT" in text
    assert "…" not in text
    assert "\x1b" not in text


def test_a_terminal_determines_the_width_and_gets_colours(world: World) -> None:
    colours = in_a_terminal("list", database=world.database, columns=75)
    assert "\x1b[31mfailed\x1b[0m" in colours
    plain = in_a_terminal("list", database=world.database, columns=75, no_colour=True)
    assert "\x1b" not in plain
    assert 70 < widest(plain) <= 75


def in_a_terminal(*arguments: str, database: str, columns: int, no_colour: bool = False) -> str:
    process, terminal = pty.fork()
    if process == 0:
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
        environment |= {"UNDERWAY_DATABASE_URL": database, **({"NO_COLOR": "1"} if no_colour else {})}
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(1, termios.TIOCSWINSZ, size)
        os.execve(sys.executable, [sys.executable, "-m", "underway.cli.main", *arguments], environment)
    written = b""
    try:
        while part := os.read(terminal, 65536):
            written += part
    except OSError:  # a terminal reports its end this way
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, written
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--state", "failed"], {"failed", "crashed"}),
        (["--state", "in_progress"], {"in_progress"}),
        (["--job", "later"], {"waiting", "cancelled"}),
        (["--job", "later", "--state", "waiting"], {"waiting"}),
        (["--queue", "slow"], {"in_progress"}),
        (["--limit", "1"], {"stranded"}),
        (["--stranded"], {"stranded"}),
    ],
)
def test_list_filters(world: World, options: list[str], names: set[str]) -> None:
    found = document("list", *options, database=world.database)
    assert {run["id"] for run in found} == {world.id(name) for name in names}


def test_nothing_found(world: World) -> None:
    assert output("list", "--job", "unknown", database=world.database) == "no runs\n"
    assert document("list", "--job", "unknown", database=world.database) == []


def test_list_as_json(world: World) -> None:
    found = {run["id"]: run for run in document("list", database=world.database)}
    failed = found[world.id("failed")]
    assert failed["state"] == "failed"
    assert failed["error"].startswith("Traceback")
    assert failed["finished_at"].endswith("+00:00")
    assert found[world.id("in_progress")]["progress"] == {"done": 1, "total": 3, "note": "pages"}


def test_show_a_failed_run(world: World) -> None:
    text = output("show", world.id("failed"), database=world.database)
    facts, _, rest = text.partition("\n\n")
    assert widest(facts) <= 80
    assert f"run           {world.id('failed')}\njob           failing\nstep          break_down\n" in facts
    assert "\nstate         failed\n" in facts
    assert "\ncounters      2 attempts" in facts
    given, attempts, error = rest.split("\n\n")
    assert given == 'input\n  {\n    "number": 7,\n    "customer": "Ada"\n  }'
    assert widest(attempts) <= 80
    assert [line.split()[:3] for line in attempts.splitlines()[2:]] == [
        ["price", "1", "succeeded"],
        ["break_down", "1", "failed"],
        ["break_down", "2", "failed"],
    ]
    assert error.startswith("error\n  Traceback (most recent call last):\n")
    assert error.endswith('raise PrinterOnFire(f"order {order.number} does not print")\n'
                          "  states.PrinterOnFire: order 7 does not print\n")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("succeeded", 'result\n  "sent order 1"\n'),
        ("crashed", "last output:\n  Fatal Python error: Aborted\n"),
        ("in_progress", "\nprogress      1/3 pages\n"),
        ("waiting", " UTC (in 2d)\n"),
        ("cancelled", "error\n  cancelled\n"),
        ("stranded", "input\n  4\n"),
    ],
)
def test_show_other_states(world: World, name: str, expected: str) -> None:
    text = output("show", world.id(name), database=world.database)
    assert expected in text
    assert widest(text.partition("\n\n")[0]) <= 80


def test_show_as_json(world: World) -> None:
    shown = document("show", world.id("failed"), database=world.database)
    assert shown["input"] == {"number": 7, "customer": "Ada"}
    assert shown["error"].endswith("PrinterOnFire: order 7 does not print\n")
    assert [attempt["outcome"] for attempt in shown["attempts_made"]] == ["succeeded", "failed", "failed"]
    listed = document("attempts", world.id("failed"), database=world.database)
    assert listed == shown["attempts_made"]
    assert isinstance(listed[0]["peak_rss"], int)


def test_attempts(world: World) -> None:
    text = output("attempts", world.id("crashed"), database=world.database)
    assert widest(text) <= 80
    (line,) = text.splitlines()[1:]
    assert line.split()[:3] == ["abort", "1", "crashed"]
    assert "signal SIGABRT" in line
    assert output("attempts", world.id("stranded"), database=world.database) == "no finished attempts\n"


def test_a_unique_prefix_of_an_id_suffices(world: World) -> None:
    whole = world.id("failed")
    others = [str(run.id) for run in world.runs.values() if str(run.id) != whole]
    unique = next(
        whole[:length] for length in range(37) if not any(other.startswith(whole[:length]) for other in others)
    )
    assert document("show", unique, database=world.database)["id"] == whole
    assert document("show", unique.replace("-", "").upper(), database=world.database)["id"] == whole
    message = refusal("show", whole[:4], database=world.database)
    assert message.startswith(f"Error: ambiguous run ID prefix {whole[:4]}, candidates:\n")
    assert message.endswith("\n  and more\n")
    assert f"  {world.id('succeeded')}  succeeded  orders\n" in message


def test_unknown_runs(world: World) -> None:
    unknown = str(new_id())
    assert f"no run with ID {unknown}: it was never committed" in refusal("show", unknown, database=world.database)
    assert "no run ID starts with dead" in refusal("attempts", "dead", database=world.database)
    assert "invalid run ID 'nonsense': expected a UUID or a unique prefix" in refusal(
        "cancel", "nonsense", database=world.database, code=2
    )
    assert "invalid run ID '-'" in refusal("retry", "-", database=world.database, code=2)


def test_queues(world: World) -> None:
    text = output("queues", database=world.database)
    assert widest(text) <= 80
    lines = rows(text)
    assert lines["slow"].split() == ["slow", "0", "0", "1"]
    assert lines["default"].split()[:4] == ["default", "1", "1", "0"]
    assert {queue["queue"] for queue in document("queues", database=world.database)} == {"default", "pdf", "slow"}


def test_supervisors(world: World) -> None:
    text = output("supervisors", database=world.database)
    assert widest(text) <= 80
    (supervisor,) = document("supervisors", database=world.database)
    assert (supervisor["state"], supervisor["in_progress"]) == ("busy", 1)
    assert supervisor["id"][:8] in text
    assert f":{supervisor['pid']}" in text


@pytest.mark.parametrize(
    "command",
    ["list", "show", "attempts", "queues", "supervisors", "schedules", "dead-letters", "quarantine", "health"],
)
def test_as_a_process_it_prints_the_same(world: World, command: str) -> None:
    arguments = [command, world.id("failed")] if command in ("show", "attempts") else [command]
    done = underway_process(*arguments, database=world.database)
    assert (done.returncode, done.stderr) == (0, "")
    # The first line only: others contain ages.
    assert done.stdout.splitlines()[0] == output(*arguments, database=world.database).splitlines()[0]


def test_untrusted_text_does_not_control_the_terminal(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        run = insert(connection, job=f"東京{ESCAPE}\n" + "東" * 100, step=f"{ESCAPE}\rstep", queue="q" * 150)
        insert(connection, job=f"{ESCAPE}zone")
    for command in (["list"], ["show", run], ["queues"]):
        text = output(*command, database=database)
        assert widest(text) <= 80
        assert not [char for char in text if not char.isprintable() and char != "\n"]
    assert document("show", run, database=database)["step"] == f"{ESCAPE}\rstep"


def test_a_long_input_is_truncated_except_in_json(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        many = insert(connection, input=json.dumps(list(range(1000))))
        long = insert(connection, input=json.dumps("x" * 5000))
    for run in (many, long):
        text = output("show", run, database=database)
        assert len(text) < 3000
        assert text.endswith("  ... truncated; see --json\n")
    assert document("show", many, database=database)["input"] == list(range(1000))


def test_a_terminal_that_cannot_show_a_name(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        insert(connection, job="東京" * 20)
    done = underway_process("list", database=database, env={"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "  ????" in done.stdout


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Traceback (most recent call last):\n  ...\nshop.errors.NoPaper: A4, A5", "NoPaper: A4, A5"),
        ("Traceback (most recent call last):\n  ...\nshop.errors.NoPaper", "NoPaper"),
        ("Traceback (most recent call last):\n  ...\nValueError: see http://a.b: c", "ValueError: see http://a.b: c"),
        (
            'Traceback (most recent call last):\n  File "shop.py", line 1, in take\n'
            "psycopg.errors.UniqueViolation: duplicate key\nDETAIL:  Key (id)=(1) already exists.",
            "UniqueViolation: duplicate key",
        ),
        (
            '  + Exception Group Traceback (most recent call last):\n  |   File "shop.py", line 1, in take\n'
            "  | ExceptionGroup: two of three (2 sub-exceptions)\n  +-+---------------- 1 ----------------\n"
            '    | Traceback (most recent call last):\n    |   File "shop.py", line 2, in one\n    | ValueError: 1\n',
            "ExceptionGroup: two of three (2 sub-exceptions)",
        ),
        (
            'Traceback (most recent call last):\n  File "shop.py", line 1, in take\nValueError: one\n\n'
            "During handling of the above exception, another exception occurred:\n\n"
            '  + Exception Group Traceback (most recent call last):\n  |   File "shop.py", line 3, in take\n'
            "  | ExceptionGroup: all of it (1 sub-exception)\n  +-+---------------- 1 ----------------\n"
            "    | ValueError: 1\n    +------------------------------------\n",
            "ExceptionGroup: all of it (1 sub-exception)",
        ),
        ("quarantined after 1 crash: signal SIGABRT\nlast output:\n...", "quarantined after 1 crash: signal SIGABRT"),
        (None, ""),
    ],
)
def test_the_headline_of_an_error(error: str | None, line: str) -> None:
    assert headline(error) == line


@pytest.mark.parametrize(
    ("ahead", "text"),
    [(-59.9, "59s"), (-172_799, "1d"), (0, "0s"), (172_799, "in 2d"), (1_209_590, "in 14d"), (5_399, "in 1h")],
)
def test_ages(ahead: float, text: str) -> None:
    now = datetime.now(UTC)
    assert age(now + timedelta(seconds=ahead), now) == text


def test_schedules(database: str) -> None:
    assert output("schedules", database=database) == "no schedules\n"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "insert into underway.schedule (job, name, cron, zone, input, next_at) values "
            "('reports', 'nightly', '30 2 * * *', 'America/Los_Angeles', '{}', '2040-01-02 10:30+00')"
        )
    text = output("schedules", database=database)
    assert widest(text) <= 80
    assert rows(text)["reports"].split()[1:7] == ["nightly", "30", "2", "*", "*", "*"]
    assert "2040-01-02 10:30 UTC" in text
    (schedule,) = document("schedules", database=database)
    assert (schedule["zone"], schedule["next_at"]) == ("America/Los_Angeles", "2040-01-02T10:30:00+00:00")


def test_a_limited_search_prints_a_note(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered, because writing half a million rows takes a minute."""
    with psycopg.connect(database, autocommit=True) as connection:
        for n in range(6):
            run = insert(connection, job="old" if n == 0 else "new")
            connection.execute("select underway.cancel(%s)", [run])
    monkeypatch.setattr(inspection, "SEARCH_LIMIT", 5)
    near = underway("list", "--job", "old", database=database)
    assert near.stdout == "no runs\n"
    assert near.stderr == "note: searched only the newest 5 finished runs\n"
    of_a_kind = ("list", "--job", "old", "--state")
    near = underway(*of_a_kind, "cancelled", database=database)
    assert (near.stdout, near.stderr) == ("no runs\n", "note: searched only the newest 5 cancelled runs\n")
    near = underway(*of_a_kind, "failed", database=database)
    assert (near.stdout, near.stderr) == ("no runs\n", "")
    monkeypatch.undo()
    whole = underway("list", "--job", "old", database=database)
    assert whole.stderr == ""
    assert len(whole.stdout.splitlines()) == 2
