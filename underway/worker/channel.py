"""The worker's end of the socket to its supervisor."""

import os
import select
import socket
import threading
from typing import Protocol

from underway.wire import frames
from underway.wire.messages import Message

_READ_SIZE = 32 * 1024  # the C library would map and unmap memory for each larger read
_MAIN_THREAD = threading.main_thread().ident


class SupervisorGone(Exception):
    """The supervisor has closed its end. No result can be delivered, and the guardian is about to kill this process."""


class Outbox(Protocol):
    """Takes the messages that a step sends while it runs."""

    def send(self, message: Message | None = None) -> None: ...


class SupervisorChannel:
    """Sends and receives messages. Both block, so a supervisor that does not read only slows the worker down.

    A thread of the step may log while the main thread sends a result, and a signal handler may log in the middle of
    that. Frames never mix: they leave one after the other.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._poll = select.poll()  # a non-blocking recv that raises BlockingIOError costs four times as much
        self._poll.register(end, select.POLLIN)
        self._reader = frames.FrameReader()
        self._unsent = b""
        self._lock = threading.RLock()
        self._writing = False
        self.main_thread_sends = False  # an interrupt must wait until it has finished
        # A child that a step forks must neither talk to the supervisor nor keep the connection open.
        os.register_at_fork(after_in_child=self._close_in_child)

    def _close_in_child(self) -> None:
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._socket.close()

    def buffer(self, message: Message) -> None:
        """Send this together with the next message."""
        frame = frames.encode(message)
        with self._lock:
            self._unsent += frame

    def send(self, message: Message | None = None) -> None:
        """Send everything in the buffer, then this message if there is one."""
        frame = b"" if message is None else frames.encode(message)
        in_main_thread = threading.get_ident() == _MAIN_THREAD
        was_sending = self.main_thread_sends
        if in_main_thread:
            self.main_thread_sends = True
        try:
            with self._lock:
                self._unsent += frame
                if not self._writing:  # otherwise a signal handler has interrupted _write, which will send this too
                    self._write()
        except OSError as error:
            raise SupervisorGone from error
        finally:
            if in_main_thread:
                self.main_thread_sends = was_sending

    def _write(self) -> None:
        self._writing = True
        try:
            while self._unsent:
                data, self._unsent = self._unsent, b""
                self._socket.sendall(data)
        finally:
            self._writing = False

    def receive(self) -> list[Message]:
        """Wait for messages."""
        data = self._socket.recv(_READ_SIZE)
        if not data:
            raise SupervisorGone
        # A list, not a generator: a signal handler that reads must not find a frame half consumed.
        return list(self._reader.feed(data))

    def poll(self) -> list[Message]:
        """The messages that have arrived."""
        messages: list[Message] = []
        while self._poll.poll(0):
            messages += self.receive()
        return messages
