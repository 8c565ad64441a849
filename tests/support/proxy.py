"""TCP proxies in front of a test server: one breaks a connection once, at a COMMIT; the other is slow."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_COMMIT = b"COMMIT\0"  # as drivers send it; a supervisor's statements are autocommitted


class Proxy:
    """`how` the first COMMIT fails: "cut" or "black hole" before it arrives, "lose the answer" or "be late" after that.

    In a black hole the server's connection stays open, as after a cut cable. `then` is called when it has happened,
    before the client notices.
    """

    def __init__(self, database: str, how: str, then: Callable[[], None] = lambda: None) -> None:
        given = conninfo_to_dict(database)
        self._target = (str(given.pop("host")), int(given.pop("port", None) or 5432))
        self._how = how
        self._then = then
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.done = False
        self.url = make_conninfo("", **{**given, "host": "127.0.0.1", "port": self._listener.getsockname()[1]})

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                self._open += client, server
                threading.Thread(target=self._pass_on, args=[client, server], daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = self._target
        if not host.startswith("/"):
            return socket.create_connection(self._target)
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(Path(host, f".s.PGSQL.{port}")))
        return server

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                readable, _, _ = select.select([client, server], [], [])
                for end, other in ((client, server), (server, client)):
                    if end not in readable:
                        continue
                    data = end.recv(65536)
                    if not data:
                        client.close()
                        server.close()
                        return
                    data = self._passed_on(data, from_server=end is server)
                    if end is client and _COMMIT in data and not self.done:
                        self.done = True
                        self._commit(data, client, server)
                    else:
                        other.sendall(data)

    def _passed_on(self, data: bytes, *, from_server: bool) -> bytes:
        return data

    def _commit(self, data: bytes, client: socket.socket, server: socket.socket) -> None:
        answer = b""
        if self._how in ("be late", "lose the answer"):
            server.sendall(data)
            answer = server.recv(65536)
        self._then()
        if self._how == "be late":
            client.sendall(answer)
            return
        client.close()
        if self._how != "black hole":
            server.close()


class SlowLine(Proxy):
    """Forwards everything, but limits the bytes per second of each connection in each direction."""

    _PIECE = 16 * 1024

    def __init__(self, database: str, bytes_per_second: float) -> None:
        super().__init__(database, "be late")
        self._rate = bytes_per_second
        # Inherited by accepted connections. A larger buffer would hold megabytes that arrive after the client has left.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._PIECE)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        threading.Thread(target=self._pass_one_way, args=[server, client], daemon=True).start()
        self._pass_one_way(client, server)

    def _pass_one_way(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self._PIECE):
                time.sleep(len(data) / self._rate)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
