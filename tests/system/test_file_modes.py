"""Our files and sockets are accessible to their owner only, with any umask."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import psycopg
import pytest
from apps import basic
from harness import Supervisor
from places import APPS

from underway.testing import using_database


def open_to_others(folder: Path) -> list[str]:
    """The paths in this folder that others could read, enter or write if they could reach them."""
    return [
        f"{path} {stat.filemode(path.lstat().st_mode)}"
        for path in [folder, *folder.rglob("*")]
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty folder that the user of root's server can enter, too."""
    folder = Path(mkdtemp(prefix="underway-modes-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def test_the_embedded_postgres_under_umask_000(home: Path) -> None:
    folder = home / "share" / "underway" / "postgres"
    program = (
        "import os, sys; os.umask(0); from underway.postgres import embedded; import psycopg\n"
        "psycopg.connect(embedded.url()).close(); sys.stdout.write('up'); sys.stdout.flush(); sys.stdin.read()\n"
        "embedded.stop()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "UNDERWAY_EMBEDDED_DIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.read(2) == b"up"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            # The copy of the wheel is public, and others cannot reach it anyway.
            listed = [line for line in open_to_others(folder) if f"{folder}/install" not in line]
            assert listed == []
            socket = folder / ".s.PGSQL.5432"
            assert stat.S_ISSOCK(socket.stat().st_mode)
            for name in ("underway.lock", "log", "data"):
                assert (folder / name).exists()
            # A user who can write to a parent folder could replace the folder.
            for parent in (folder.parent, folder.parent.parent):
                assert stat.S_IMODE(parent.stat().st_mode) == 0o755
        finally:
            process.stdin.close()
            process.wait(30)
    assert not socket.exists()


def test_a_supervisor_leaves_no_files_and_listens_on_nothing(database: str, home: Path) -> None:
    """It communicates only through a socket pair and pipes; its workers' TMPDIRs are private and removed with it."""
    app = home / "app"
    app.mkdir()
    (app / "basic.py").write_text((APPS / "basic.py").read_text())
    for name in ("tmp", "cwd", "home"):
        (home / name).mkdir()
    environment = {
        "TMPDIR": str(home / "tmp"),
        "HOME": str(home / "home"),
        "XDG_RUNTIME_DIR": str(home / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = os.getcwd()
    mask = os.umask(0)
    os.chdir(home / "cwd")
    try:
        supervisor = Supervisor(f"{app}/basic.py:app", database, home / "log", "--procs", "2", env=environment)
    finally:
        os.chdir(before)
        os.umask(mask)
    try:
        with using_database(basic.app, database):
            assert basic.numbers.enqueue(1).result(timeout=30) == 1
        listening = listening_sockets()
        for process in (supervisor.pid, *(worker.pid for worker in supervisor.workers())):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                target = os.readlink(descriptor)
                assert target not in listening, f"{process} listens on {target}"
        (temporary,) = [path for name in ("tmp", "cwd", "home") for path in (home / name).iterdir()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in (temporary, *temporary.rglob("*")) if path.is_dir()} == {
            0o700
        }
    finally:
        supervisor.end()
    assert [path for name in ("tmp", "cwd", "home") for path in (home / name).rglob("*")] == []
    assert [path.name for path in app.iterdir()] == ["basic.py"]


def listening_sockets() -> set[str]:
    """By their names in /proc/PID/fd."""
    found = set()
    for table, state, inode in (("tcp", 3, 9), ("tcp6", 3, 9), ("unix", 3, 6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            # A listening TCP socket has state 0A, a listening unix one the flag 00010000.
            if fields[state] in ("0A", "00010000"):
                found.add(f"socket:[{fields[inode]}]")
    return found


def test_the_folder_of_a_temporary_postgres_is_closed(server: str) -> None:
    with psycopg.connect(server) as connection:
        folder = Path(connection.info.host)
    if not folder.name.startswith("underway-test-"):
        pytest.skip("the server of these tests is not a temporary one")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
