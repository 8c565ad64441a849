"""The output of the demo: progress while it runs, and the costs afterwards."""

import subprocess
import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .app import app
from .figures import Subject
from .ledger import Order, states_of

_STEPS = ("select", "compute", "render", "file")
_POLL_SECONDS = 0.25
_LINE_SECONDS = 5.0
_RUNNING_LINES = 4


class Watch:
    """Polls the database for the progress of the orders."""

    def __init__(self, orders: list[Order]) -> None:
        self._subjects = {order.run: order.subject for order in orders}
        self._began = time.monotonic()
        self.poll()
        self._first_left = self.left

    def poll(self) -> None:
        with app.connection() as connection:
            states = Counter(states_of(connection, self._subjects).values())
            self.failed = states["failed"] + states["cancelled"]
            self.left = len(self._subjects) - states["succeeded"] - self.failed
            # Oldest claim first: running tasks come before prefetched ones.
            rows = connection.execute(
                "select id, step from underway.run where id = any(%s) and state = 'in_progress' order by token",
                [list(self._subjects)],
            )
            self.running = [(self._subjects[run], step) for run, step in rows.fetchall()]
            # One row per attempt that has ended; after an unsuccessful one, the run is retried or has failed.
            [self.unsuccessful] = connection.execute(
                "select count(*) from underway.attempt where run_id = any(%s) and outcome <> 'succeeded'",
                [list(self._subjects)],
            ).fetchone() or [0]

    @property
    def done(self) -> int:
        return len(self._subjects) - self.left

    @property
    def rate(self) -> float:
        """Reports per second since polling began."""
        return (self._first_left - self.left) / max(time.monotonic() - self._began, 0.001)

    def pace(self) -> str:
        if not self.rate:
            return "starting"
        minutes, seconds = divmod(round(self.left / self.rate), 60)
        return f"{self.rate:.1f}/s, {minutes}:{seconds:02} left"

    def failures(self) -> str:
        if not self.unsuccessful + self.failed:
            return "no failures"
        return f"{self.unsuccessful} attempts did not succeed, {self.failed} reports failed"

    def follow(self, console: Console, supervisor: "subprocess.Popen[bytes]", procs: int) -> None:
        """Show progress until all reports are done or the supervisor has exited."""
        self._began = time.monotonic()
        if console.is_terminal:
            self._follow_live(console, supervisor, procs)
        else:
            self._follow_in_lines(console, supervisor)

    def _follow_live(self, console: Console, supervisor: "subprocess.Popen[bytes]", procs: int) -> None:
        bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            console=console,
            expand=True,
        )
        task = bar.add_task("", total=len(self._subjects), pace="")
        with Live(console=console, refresh_per_second=8) as live:
            while self._in_progress(supervisor):
                bar.update(task, completed=self.done, pace=self.pace())
                live.update(Group(bar, *self._lines(min(procs, _RUNNING_LINES))))
                time.sleep(_POLL_SECONDS)
            bar.update(task, completed=self.done, pace=f"{self.rate:.1f}/s")
            live.update(Group(bar, Text(f"  {self.failures()}")))

    def _lines(self, workers: int) -> list[Text]:
        running = [f"  {step:8} {_title(subject)}" for subject, step in self.running[:workers]]
        running += [""] * (workers - len(running))  # padding, so that the lines below do not move
        claimed = max(0, len(self.running) - workers)
        return [Text(line, "cyan") for line in running] + [
            Text(f"  {claimed} more claimed, {self.failures()}", "red" if self.failed else "dim")
        ]

    def _follow_in_lines(self, console: Console, supervisor: "subprocess.Popen[bytes]") -> None:
        next_line = self._began + _LINE_SECONDS
        while self._in_progress(supervisor):
            if time.monotonic() >= next_line:
                next_line += _LINE_SECONDS
                console.print(f"{self.done}/{len(self._subjects)} reports, {self.pace()}, {self.failures()}")
            time.sleep(_POLL_SECONDS)

    def _in_progress(self, supervisor: "subprocess.Popen[bytes]") -> bool:
        ended = supervisor.poll() is not None  # checked first, so that the last poll of the database sees all results
        self.poll()
        return self.left > 0 and not ended


def print_costs(console: Console, orders: list[Order]) -> None:
    """A table of the time, CPU and memory that the reports took, by step, from the recorded attempts."""
    with app.connection() as connection:
        rows = connection.execute(
            """
            select step,
                count(distinct run_id),
                count(*),
                sum(extract(epoch from finished_at - started_at))::float,
                sum(cpu_seconds)::float,
                max(peak_rss)
            from underway.attempt
            where run_id = any(%s)
            group by rollup (step)  -- plus a total row without a step
            """,
            [[order.run for order in orders]],
        ).fetchall()
    table = Table("step", box=None, pad_edge=False)
    for heading in ("runs", "attempts", "seconds", "CPU seconds", "peak memory"):
        table.add_column(heading, justify="right")
    costs = {step: figures for step, *figures in rows}
    for step in (*_STEPS, None):
        if step in costs:
            runs, attempts, seconds, cpu, memory = costs[step]
            table.add_row(
                step or "all", f"{runs}", f"{attempts}", f"{seconds or 0:.1f}", f"{cpu or 0:.1f}",
                f"{(memory or 0) / 2**20:.0f} MiB", style=None if step else "bold",
            )  # fmt: skip
    console.print(table)


def _title(subject: Subject) -> str:
    return f"{subject.kind} {subject.code}, {subject.period}"
