"""The output of `make chaos` and `make chaos-long`: a progress line, and a report at the end.

Tests report what they are doing with the fixture `say`, and their counts with `count`.
"""

import os
import platform
import shlex
import shutil
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import pytest
from chaos_settings import SECONDS, SEED

WIDTH = 80
LINES = 60
MOST_FAILURES = 5

Say = Callable[[str], None]
Count = Callable[..., None]


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Enter numbers into the report: count(kills=3, lost=0, peak_mib=51). They add up over the tests of a module.

    Of peaks the maximum counts. Enter a number before asserting it, so that the report of a failure has it too.
    """

    def enter(**numbers: int) -> None:
        for name, number in numbers.items():
            record_property(name.replace("_", " "), number)

    return enter


@pytest.fixture
def say(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Say:
    """Show at once what the test is doing, bypassing pytest's capture."""
    progress = request.config.stash.get(PROGRESS, None)

    def out(text: str) -> None:
        print(text)  # into the report of a failure
        if progress is not None:
            progress.say(text.strip())
        else:
            with capsys.disabled():
                print(text, flush=True)

    return out


class Progress:
    """The progress line: number of the test, elapsed time, seed, name. In a file it is one line for each test."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")  # pytest captures what tests write to descriptor 1
        self._terminal = self._out.isatty()
        self._began = time.monotonic()
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)
        self._test = self._doing = ""
        self._nth = 0
        self.total = 0

    def start(self) -> None:
        if self._terminal:
            self._ticking.start()

    def end(self) -> None:
        self._over.set()
        if self._terminal:
            self._ticking.join()
            self._write("\r\x1b[K")

    def begin(self, test: str) -> None:
        self._nth += 1
        self._test, self._doing = test.removeprefix("tests/"), ""
        self._show()

    def say(self, text: str) -> None:
        for self._doing in text.splitlines():
            self._show()

    def keep(self, text: str) -> None:
        """A permanent line, also in a terminal."""
        self._write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")

    def _show(self) -> None:
        at = f"{clock(time.monotonic() - self._began)}  {self._nth:2}/{self.total}  seed {SEED}"
        if self._terminal:
            line = f"{at}  {self._test}  {self._doing}"
            self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._write(f"{at}  {self._doing or self._test}\n")

    def _tick(self) -> None:
        while not self._over.wait(1):
            self._show()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


PROGRESS = pytest.StashKey[Progress]()


@dataclass
class Area:
    """The tests of a module; its promise is the first line of the module's docstring."""

    promise: str
    endings: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    numbers: Counter[str] = field(default_factory=Counter)

    def add(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.failed:
            self.endings["FAILED"] += 1
        elif report.skipped:
            self.endings["failed as expected" if hasattr(report, "wasxfail") else "skipped"] += 1
        elif report.when == "call":
            self.endings["passed"] += 1
        if report.when == "teardown":  # the last report of a test has all properties
            for name, number in report.user_properties:
                known = self.numbers[name]
                assert isinstance(number, int)
                self.numbers[name] = max(known, number) if name.startswith("peak") else known + number

    def lines(self) -> Iterator[str]:
        ended = ", ".join(f"{number} {ending}" for ending, number in self.endings.items())
        right = f"{ended} {clock(self.seconds):>6}"
        left = textwrap.shorten(self.promise, WIDTH - len(right) - 2, placeholder=" …")
        yield f"{left:{WIDTH - len(right)}}{right}"
        told = ", ".join(f"{name} {number:,}" for name, number in self.numbers.items())
        yield from textwrap.wrap(told, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


class Verdict:
    """Collects the results of tests for the report."""

    def __init__(self, marker: str, progress: Progress) -> None:
        self._command = f"CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g} make {marker.replace('_', '-')}"
        self._title = marker.replace("_", ", ")
        self._progress = progress
        self._began = time.monotonic()
        self._areas: dict[str, Area] = {}
        self._durations: Counter[str] = Counter()
        self._failures: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._progress.total = len(session.items)
        self._progress.start()
        for item in session.items:
            module = item.getparent(pytest.Module)
            assert module is not None
            promise = (module.obj.__doc__ or module.name).partition("\n")[0]
            self._areas[_module(item.nodeid)] = Area(promise)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._progress.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._areas[_module(report.nodeid)].add(report)
        self._durations[report.nodeid] += report.duration  # type: ignore[assignment]
        if report.failed:
            said = str(getattr(report.longrepr, "reprcrash", "") or report.longrepr)
            self._failures[report.nodeid] = said.splitlines()[0]
            self._progress.keep(f"FAILED {report.nodeid}\n  again: {self._again(report.nodeid)}")

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, tuple[str, str, object], tuple[str, str, str]]:
        """Suppress pytest's dots."""
        category, _, _ = yield
        return category, "", ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._progress.end()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        terminalreporter.section("verdict")
        for line in self.page(exitstatus):
            terminalreporter.write_line(line)

    def page(self, exitstatus: int) -> list[str]:
        """At most 60 lines of 80 columns, except for commands."""
        ended = {0: "PASSED", 1: "FAILED", 2: "STOPPED"}.get(exitstatus, f"pytest ended with {exitstatus}")
        ran = f"{len(self._durations)} of {self._progress.total} tests"
        machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
        head = [
            f"{self._title}: {ended}, {ran} in {clock(time.monotonic() - self._began)}; {machine}",
            f"again: {self._command}",
        ]
        slowest = ", ".join(
            f"{clock(seconds)} {nodeid.rpartition('::')[2]}" for nodeid, seconds in self._durations.most_common(3)
        )
        foot = textwrap.wrap(f"slowest: {slowest}", WIDTH, subsequent_indent="    ")
        for nodeid, said in list(self._failures.items())[:MOST_FAILURES]:
            foot += [f"FAILED {said}"[:WIDTH], f"  again: {self._again(nodeid)}"]
        if (more := len(self._failures) - MOST_FAILURES) > 0:
            foot.append(f"and {more} more")
        areas = [line for area in self._areas.values() if area.endings for line in area.lines()]
        return [*head, *areas[: LINES - len(head) - len(foot)], *foot]

    def _again(self, nodeid: str) -> str:
        return f"{self._command} ARGS={shlex.quote(shlex.quote(nodeid))}"


def _module(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    marker = config.getoption("markexpr", "")
    if marker not in ("chaos", "chaos_long"):
        return
    config.stash[PROGRESS] = progress = Progress()
    config.pluginmanager.register(Verdict(marker, progress), "verdict")
    if getattr(config.option, "randomly_seed", None) == "default":
        config.option.randomly_seed = SEED  # repeats the order of tests, too
