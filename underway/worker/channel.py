"""The worker's end of the wire."""

import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Protocol

from underway.wire import frames, messages

_READ = 32 * 1024  # more than that would be mapped and unmapped for each read
_MAIN_THREAD = threading.main_thread().ident


class SupervisorGone(Exception):
    """The other end is closed: nobody will take a result, and everything here is about to be killed."""


class Outbox(Protocol):
    """Whoever takes what a step has to say while it runs."""

    def send(self, message: messages.Message | None = None) -> None: ...


class SupervisorChannel:
    """Blocking both ways, but for `poll`. A supervisor that does not read slows the worker down, no more.

    Threads of a step may log while its result is sent, and a signal handler may log in the middle of that: frames go
    out one after the other whoever sends them.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._inbox = select.poll()  # an exception for each empty look costs four times as much
        self._inbox.register(end, select.POLLIN)
        self._reader = frames.FrameReader()
        self._unsent = b""
        self._lock = threading.RLock()
        self._busy = False
        self.sending = False  # the main thread is: an interrupt has to wait
        # A step that forks must not leave a child that can talk to the supervisor, or keep the wire open.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._socket.close()

    def hold(self, message: messages.Message) -> None:
        """Send this together with what is sent next."""
        frame = frames.encode(message)
        with self._lock:
            self._unsent += frame

    def send(self, message: messages.Message | None = None) -> None:
        """Send what was held, and this."""
        frame = b"" if message is None else frames.encode(message)
        in_main_thread = threading.get_ident() == _MAIN_THREAD
        was_sending = self.sending
        if in_main_thread:
            self.sending = True
        try:
            with self._lock:
                self._unsent += frame
                if not self._busy:  # else a signal handler interrupted this very thread: it will send this too
                    self._send_all()
        except OSError as error:
            raise SupervisorGone from error
        finally:
            if in_main_thread:
                self.sending = was_sending

    def _send_all(self) -> None:
        self._busy = True
        try:
            while self._unsent:
                data, self._unsent = self._unsent, b""
                self._socket.sendall(data)
        finally:
            self._busy = False

    def receive(self) -> Iterator[messages.Message]:
        """Wait for something to come."""
        yield from self._feed(self._socket.recv(_READ))

    def poll(self) -> Iterator[messages.Message]:
        """What has come already."""
        while self._inbox.poll(0):
            yield from self._feed(self._socket.recv(_READ))

    def _feed(self, data: bytes) -> list[messages.Message]:
        if not data:
            raise SupervisorGone
        # A list, not a generator: a signal handler that polls must not find half a frame taken.
        return list(self._reader.feed(data))
