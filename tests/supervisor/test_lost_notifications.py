"""Notifications that never arrive, on a connection that otherwise works: the work is found all the same."""

from collections.abc import Callable

from apps import basic
from db import Connection, value
from harness import Supervisor, eventually
from proxy import Proxy

from underway import Underway

_NOTIFICATION = b"A"  # the type of the message; its length follows, without that byte


class Forgetful(Proxy):
    """Passes on everything until `silent`; from then on no notification."""

    silent = False
    lost = 0

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        # On a busy machine the answer to a poll is read together with what came before it: it is not lost with that.
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
        for number in range(3):  # one may meet a poll that comes anyway
            assert basic.numbers.enqueue(number).result(20) == number
        assert proxy.lost
        supervisor.end()
