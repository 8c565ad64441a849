"""Work is found by polling if notifications do not arrive on a connection that otherwise works."""

from collections.abc import Callable

from apps import basic
from db import Connection, value
from harness import Supervisor, eventually
from proxy import Proxy

from underway import Underway

_NOTIFICATION = b"A"  # the type byte of a NotificationResponse; the length that follows excludes it


class Forgetful(Proxy):
    """Drops notifications once `silent` is set."""

    silent = False
    lost = 0

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        # On a busy machine a poll's answer may be read together with a notification, and must not be dropped with it.
        while self.silent and from_server and data.startswith(_NOTIFICATION):
            self.lost += 1
            data = data[1 + int.from_bytes(data[1:5]) :]
        return data


def test_work_whose_notification_is_lost_is_found_by_the_poll(
    bind: Callable[[Underway], Underway],
    connection: Connection,
    database: str,
    start_supervisor: Callable[..., Supervisor],
) -> None:
    bind(basic.app)
    proxy = Forgetful(database, "be late")
    with proxy:
        supervisor = start_supervisor("basic", "--database", proxy.url)
        idle = "select count(*) from underway.supervisor where idle"
        eventually(lambda: value(connection, idle) == 1, what="it waits for a notification")
        proxy.silent = True
        for number in range(3):  # one of them may coincide with a poll
            assert basic.numbers.enqueue(number).result(20) == number
        assert proxy.lost
        supervisor.end()
