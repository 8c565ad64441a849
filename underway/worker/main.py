"""The life of a worker: import the app, run tasks, exit when the supervisor says so or is gone."""

import os
import socket
import sys
import traceback
from typing import NoReturn

from underway.app import Underway
from underway.definition.app_import import load
from underway.errors import AppNotFound
from underway.text import shorten
from underway.wire.messages import BootFailed, Hello
from underway.worker.channel import SupervisorChannel, SupervisorGone
from underway.worker.children import Children
from underway.worker.executor import Executor
from underway.worker.interrupts import SUPERVISOR_SIGNALS, InterruptHandler, await_guardian
from underway.worker.logging_setup import ForwardedLogs, LogForwarder
from underway.worker.oom_score import prefer_as_oom_victim
from underway.worker.orderly_exit import exit_in_order
from underway.worker.process_state import ProcessState
from underway.worker.process_title import ProcessTitle
from underway.worker.task_loop import TaskLoop

_BOOT_FAILED = 3
_LONGEST_TRACEBACK = 32 * 1024


def main() -> None:
    app_name, descriptor, supervisor_pid, log_level, slot = sys.argv[1:]
    prefer_as_oom_victim()
    channel = SupervisorChannel(_inherited_socket(int(descriptor)))
    interrupts = InterruptHandler(channel, int(supervisor_pid))
    children = Children()
    forwarder = LogForwarder(channel, interrupts, int(log_level))
    logs = ForwardedLogs(forwarder)
    try:
        app, manifest = _import_app(app_name, logs)
        executor = Executor(app.registry, channel, interrupts, logs=logs)
        process_state = ProcessState(SUPERVISOR_SIGNALS, interrupts.enable_faulthandler)
    except BaseException:
        _fail_to_boot(channel)
    channel.send(Hello(os.getpid(), manifest))
    title = ProcessTitle(int(slot))
    try:
        TaskLoop(channel, interrupts, executor, process_state, children, forwarder, title).run()
        exit_in_order(app)
    except SupervisorGone:
        await_guardian()


def _inherited_socket(descriptor: int) -> socket.socket:
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)  # processes that user code starts must not have it
    return end


def _import_app(name: str, logs: ForwardedLogs) -> tuple[Underway, bytes]:
    """The app, and its manifest as JSON."""
    logs.begin_import()
    app = load(name)
    if not isinstance(app, Underway):
        raise AppNotFound(f"{name} is a {type(app).__name__}, not an Underway app")
    manifest = app.manifest().to_json()
    logs.end_import()
    return app, manifest


def _fail_to_boot(channel: SupervisorChannel) -> NoReturn:
    text = shorten(traceback.format_exc(), _LONGEST_TRACEBACK)
    channel.send(BootFailed(text.encode(errors="replace")))
    os._exit(_BOOT_FAILED)  # sys.exit would wait for the app's threads, up to a minute
