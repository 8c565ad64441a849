"""A connection that looks open and carries nothing any more, as after a cut cable: what it would have told is found."""

import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from apps import basic
from db import Connection, value
from harness import Supervisor, eventually
from proxy import Proxy

from underway import Underway


class HalfOpen(Proxy):
    """Passes on everything until `silent`; from then on nothing on the connection that listens."""

    silent = False

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        listens = False
        while True:
            try:
                readable, _, _ = select.select([client, server], [], [])
                for end, other in ((client, server), (server, client)):
                    if end in readable:
                        data = end.recv(65536)
                        listens |= end is client and b"listen" in data.lower()
                        if not data:
                            client.close()
                            server.close()
                            return
                        if not (listens and self.silent):
                            other.sendall(data)
            except (OSError, ValueError):
                return


@pytest.fixture
def proxy(database: str) -> Iterator[HalfOpen]:
    with HalfOpen(database, "be late") as proxy:
        yield proxy


def test_work_whose_notification_is_lost_is_found_by_the_poll(
    bind: Callable[[Underway], Underway],
    connection: Connection,
    start_supervisor: Callable[..., Supervisor],
    proxy: HalfOpen,
) -> None:
    bind(basic.app)
    start_supervisor("basic", "--database", proxy.url)
    idle = "select count(*) from underway.supervisor where idle"
    eventually(lambda: value(connection, idle) == 1, what="it waits for a notification")
    assert basic.numbers.enqueue(1).result(20) == 1
    eventually(lambda: value(connection, idle) == 1)
    proxy.silent = True
    run = basic.numbers.enqueue(2)
    begun = time.monotonic()
    assert run.result(20) == 2
    # By the poll, and not because the connection was found to be broken: that takes longer.
    assert time.monotonic() - begun < 8
