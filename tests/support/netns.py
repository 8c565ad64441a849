"""Simulated hosts on this machine: network namespaces connected to a switch, from which each can be unplugged.

A namespace lives while a process runs in it: a `cat`, which ends with its stdin, also when pytest is killed. The
cables disappear with it. Nothing has a global name, so nothing can remain or collide.
"""

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A network namespace with only a loopback interface."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.address = f"10.77.0.{number}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo here; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must reach only pytest
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"here\n":
            raise OSError(self._holder.communicate()[1].decode().strip())

    @property
    def pid(self) -> int:
        return self._holder.pid

    def inside(self, act: Callable[[], T]) -> T:
        """Call `act` on that host, in a thread of its own. Processes that it starts are on that host too."""
        results: list[T] = []
        errors: list[BaseException] = []

        def move_and_act() -> None:
            try:
                with Path(f"/proc/{self.pid}/ns/net").open() as namespace:
                    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")
                results.append(act())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=move_and_act)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def ip(self, *words: str) -> None:
        """Run iproute2's `ip` on the host."""
        done = self.inside(lambda: subprocess.run(["ip", *words], capture_output=True, text=True, check=False))
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def close(self) -> None:
        self._holder.communicate()


class Network:
    """A switch with hosts. The switch itself is the host `server`, which cannot be unplugged."""

    def __init__(self, server: Host, hosts: list[Host]) -> None:
        self.server = server
        self.hosts = hosts
        server.ip("link", "set", "lo", "up")
        server.ip("link", "add", "lan", "type", "bridge")
        server.ip("address", "add", f"{server.address}/24", "dev", "lan")
        server.ip("link", "set", "lan", "up")
        for host in hosts:
            port = _port(host)
            server.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
            server.ip("link", "set", port, "up")
            host.ip("link", "set", "lo", "up")
            host.ip("address", "add", f"{host.address}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")
            self.plug(host)

    def plug(self, host: Host) -> None:
        self.server.ip("link", "set", _port(host), "master", "lan")

    def unplug(self, host: Host) -> None:
        """Unplug the cable at the switch: packets vanish without an error."""
        self.server.ip("link", "set", _port(host), "nomaster")


def _port(host: Host) -> str:
    return f"port{host.number}"


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """A switch with this many hosts. Skips the test if it is not permitted."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"network namespaces need the program {program}")
    with ExitStack() as stack:
        try:
            all_hosts = []
            for number in range(1, hosts + 2):
                all_hosts.append(Host(number))
                stack.callback(all_hosts[-1].close)
            lan = Network(all_hosts[0], all_hosts[1:])
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield lan
