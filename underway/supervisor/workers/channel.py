"""The supervisor's end of the socket to one worker. All I/O is non-blocking."""

import asyncio
import socket
from collections.abc import Callable

from underway.wire import frames
from underway.wire import messages as wire

# One buffer for all reads: a new one for each read would be mapped and unmapped each time.
_inbox = memoryview(bytearray(64 * 1024))


class WorkerChannel:
    """Sends and receives messages. A worker that does not read cannot hold up its supervisor."""

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socket = ours
        self._reader = frames.FrameReader()
        self._unsent = bytearray()
        self._clogged = False  # the socket is full: the worker has not read everything
        self.hung_up = False  # the worker has closed its end, or has sent bytes that are not a message

    @property
    def incomplete(self) -> bool:
        """Whether the last frame has only partly arrived."""
        return self._reader.incomplete

    def send(self, *messages: wire.Message) -> bool:
        """Returns whether the worker has all of it. The rest follows when the worker reads."""
        self._unsent += b"".join(frames.encode(message) for message in messages)
        return self._flush()

    def _flush(self) -> bool:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            self._clogged = True
            self._loop.add_writer(self._socket, self._flush)
            return False
        except OSError:
            self._unsent.clear()  # the worker is dying; its pidfd will report it
        if self._clogged:
            self._clogged = False
            self._loop.remove_writer(self._socket)
        return not self._unsent

    def receive(self, handle: Callable[[wire.Message], None]) -> int:
        """Read once, and handle the messages. Returns the number of bytes, 0 if there was nothing to read.

        Raises BrokenFrame if the bytes are not a message. After that, or when the worker has closed its end, nothing
        more is read.
        """
        if self.hung_up:
            return 0
        try:
            size = self._socket.recv_into(_inbox)
        except BlockingIOError:
            return 0
        except OSError:
            size = 0
        if not size:
            self._hang_up()
            return 0
        try:
            for message in self._reader.feed(_inbox[:size]):
                handle(message)
        except frames.BrokenFrame:
            self._hang_up()
            raise
        return size

    def watch(self, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever there is something to read."""
        if not self.hung_up:
            self._loop.add_reader(self._socket, on_readable)

    def unwatch(self) -> None:
        self._loop.remove_reader(self._socket)

    def _hang_up(self) -> None:
        self.hung_up = True
        self.unwatch()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
