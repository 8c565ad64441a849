"""The tasks that the supervisor has assigned to this worker, in order, without those that it has revoked."""

from collections import deque
from collections.abc import Iterable

from underway.wire.messages import Assignment, End, Message, Revoke, Skipped, Stop, Welcome
from underway.worker.channel import SupervisorChannel


class Inbox:
    """Every revoked task is answered with Skipped, unless it has run before the Revoke arrived."""

    def __init__(self, channel: SupervisorChannel) -> None:
        self._channel = channel
        self.tasks: deque[Assignment] = deque()
        self._revoked: set[int] = set()
        self.welcome: Welcome | None = None
        self.told_to_end = False

    def take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            match message:
                case Welcome():
                    self.welcome = message
                case Assignment():
                    self.tasks.append(message)
                case Revoke(token):
                    self._revoke(token)
                case Stop():
                    pass  # its task has ended in the meantime
                case End():
                    self.told_to_end = True

    def _revoke(self, token: int) -> None:
        for task in self.tasks:
            if task.token == token:
                self.tasks.remove(task)
                self._channel.buffer(Skipped(token))
                return
        self._revoked.add(token)  # the task that has just been taken from the inbox, or one that has ended

    def skip_if_revoked(self, task: Assignment) -> bool:
        """Whether the task, which was taken from the inbox, must not run."""
        if task.token not in self._revoked:
            return False
        self._revoked.discard(task.token)
        self._channel.buffer(Skipped(task.token))
        return True

    def forget_late_revokes(self) -> None:
        """Forget the Revokes that arrived after their tasks had ended."""
        self._revoked.clear()

    def return_all(self) -> None:
        """Return all tasks unrun, the last one first, because each goes to the head of the supervisor's queue."""
        while self.tasks:
            self._channel.buffer(Skipped(self.tasks.pop().token))
