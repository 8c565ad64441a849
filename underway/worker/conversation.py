"""The worker's end of the wire."""

import contextlib
import os
import socket
from collections.abc import Iterator

from underway import wire

_READ = 256 * 1024


class SupervisorGone(Exception):
    """The other end is closed: nobody will take a result, and everything here is about to be killed."""


class Conversation:
    """Blocking both ways, but for `poll`. A supervisor that does not read slows the worker down, no more."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._reader = wire.FrameReader()
        self._unsent = b""
        self.sending = False
        # A step that forks must not leave a child that can talk to the supervisor, or keep the wire open.
        os.register_at_fork(after_in_child=end.close)

    def hold(self, message: wire.Message) -> None:
        """Send this together with what is sent next."""
        self._unsent += wire.encode(message)

    def send(self, message: wire.Message | None = None) -> None:
        """Send what was held, and this."""
        data, self._unsent = self._unsent, b""
        if message is not None:
            data += wire.encode(message)
        self.sending = True
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise SupervisorGone from error
        finally:
            self.sending = False

    def receive(self) -> Iterator[wire.Message]:
        """Wait for something to come."""
        yield from self._feed(self._socket.recv(_READ))

    def poll(self) -> Iterator[wire.Message]:
        """What has come already."""
        while True:
            try:
                data = self._socket.recv(_READ, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from self._feed(data)

    def _feed(self, data: bytes) -> list[wire.Message]:
        if not data:
            raise SupervisorGone
        # A list, not a generator: a signal handler that polls must not find half a frame taken.
        return list(self._reader.feed(data))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
