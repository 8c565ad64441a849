"""Notifications that never arrive, on a connection that otherwise works: the work is found all the same."""

from collections.abc import Callable

from apps import basic
from db import Connection, value
from harness import Supervisor, eventually
from proxy import Proxy

from underway import Underway

_NOTIFICATION = b"A"  # the type of the message, which comes alone while the connection is idle


class Forgetful(Proxy):
    """Passes on everything until `silent`; from then on no notification."""

    silent = False
    lost = 0

    def _lets_pass(self, data: bytes, *, from_server: bool) -> bool:
        loses = self.silent and from_server and data.startswith(_NOTIFICATION)
        self.lost += loses
        return not loses


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
            assert basic.numbers.enqueue(number).result(5) == number
        assert proxy.lost
        supervisor.end()
