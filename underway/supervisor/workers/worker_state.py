"""What the supervisor knows about one worker, apart from its process and its socket."""

import contextlib
import signal
import time
from dataclasses import dataclass

from underway.definition.manifest import Lane, Manifest, Step
from underway.supervisor.tasks.task import Task
from underway.supervisor.workers.recycle import WorkerUsage


@dataclass(frozen=True, slots=True)
class KillReason:
    """The token of the task that causes the kill, and the observation of that task."""

    token: int
    seen: str


# The worker is killed for a reason that no task is to blame for.
NO_TASK = KillReason(0, "")


class WorkerState:
    """`generation` is the number of reloads before this worker was started."""

    def __init__(self, slot: int, generation: int, usage: WorkerUsage) -> None:
        self.slot = slot
        self.generation = generation
        self.usage = usage
        self.started_at = time.monotonic()
        # From its Hello on.
        self.manifest: Manifest | None = None
        self.lanes: dict[Lane, Step] = {}
        # Work. The first of the tasks is the one that runs.
        self.tasks: dict[int, Task] = {}
        self.revoked: set[int] = set()
        # Replacement.
        self.due = ""  # why it is to be replaced when it is idle and a spare is ready
        self.paused = False  # it gets no more tasks
        # Its end.
        self.killing = False  # SIGKILL is on its way
        self.has_last_words = False  # and before it, the worker may write its stacks
        self.kill_reason: KillReason | None = None
        self.kill_message = ""  # for the log and the attempt
        self.exit_code: int | None = None  # negative: the signal that killed it
        self.died_writing = False
        self.peak_rss = 0  # in bytes; known after its death

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    @property
    def ready(self) -> bool:
        """It can be given a task."""
        return self.manifest is not None and self.alive and not self.killing and not self.paused

    @property
    def current(self) -> Task | None:
        """The task that runs, as far as the worker has reported."""
        for task in self.tasks.values():
            return task if task.started_at is not None else None
        return None

    @property
    def most_pipelined(self) -> int:
        """How many tasks it may hold at once: one if it is due, so that it can be replaced after that task."""
        return 1 if self.due else self.usage.tasks_left

    def is_writing_stacks(self, token: int) -> bool:
        """Whether it is being killed for this task and was given time to write its stacks.

        The stack signal may interrupt a blocking C call, so a result may still arrive. It is ignored: the verdict on
        the task stands and has been logged.
        """
        return self.has_last_words and self.kill_reason is not None and self.kill_reason.token == token

    @property
    def terminated(self) -> bool:
        """It died of SIGTERM, which the supervisor never sends to a worker."""
        return self.exit_code == -signal.SIGTERM

    @property
    def death(self) -> str:
        """Why it was killed, or how it ended by itself; follows "the worker" in a sentence."""
        return f"was {self.kill_message}" if self.kill_message else f"died: {self.exit_text}"

    @property
    def exit_text(self) -> str:
        code = self.exit_code
        if code is None:
            return "alive"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"

    def about(self, token: int | None = None) -> dict[str, object]:
        """The worker and one of its tasks, as context for a log line: the task with this token, or the running one."""
        task = self.current if token is None else self.tasks.get(token)
        return {"worker": self.slot, **(task.about if task is not None else {})}
