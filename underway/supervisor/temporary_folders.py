"""A TMPDIR for each worker, removed with it. Otherwise the temporary files of killed steps would stay forever."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import threading
from logging import getLogger
from pathlib import Path

from underway.guardian import script

log = getLogger("underway.supervisor")

# Short, because the path of a socket is limited to about a hundred characters, and Chromium uses forty of them.
_PREFIX = "underway-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
_OWNER = "supervisor"
_MARK = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/")


class Temporary:
    """The folder of one supervisor, locked while it or its guardian lives. (systemd-tmpfiles skips locked folders.)

    If the folder cannot be created, workers inherit their supervisor's TMPDIR.
    """

    def __init__(self, mark: str) -> None:
        self.folder: str | None = None
        self.lock: int | None = None
        try:
            self.folder = tempfile.mkdtemp(prefix=_PREFIX)
            self.lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            # Only after the lock: a folder without this file is still being set up, and remove_leftovers skips it.
            Path(self.folder, _OWNER).write_text(mark)
        except OSError as error:
            log.warning("cannot create temporary folders for workers, using TMPDIR: %s", error)

    def for_worker(self, serial: int) -> str | None:
        """Create a folder for a worker; None if that fails."""
        if self.folder is None:
            return None
        folder = f"{self.folder}/{serial}"
        try:
            os.mkdir(folder, 0o700)
        except OSError as error:
            log.warning("cannot create a temporary folder for a worker, using TMPDIR: %s", error)
            return None
        return folder

    def close(self) -> None:
        """Release the lock. The guardian has removed the folder, or is about to."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def remove(folder: str | None) -> None:
    """Remove a folder, in a thread unless it is empty: removing a browser profile takes as long as many commits."""
    if folder is not None:
        try:
            os.rmdir(folder)
        except OSError:
            threading.Thread(target=shutil.rmtree, args=(folder, True), daemon=True).start()


def remove_leftovers() -> None:
    """Remove processes and folders of supervisors on this host that were killed together with their guardians."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if _NAME.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path)


def _remove_if_left(folder: str) -> None:
    """Raises OSError if its supervisor or guardian is alive, or if it is not such a folder."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mark = Path(folder, _OWNER).read_text()
        if _MARK.fullmatch(mark):  # never a shorter one: "" is a prefix of every mark
            if killed := script.kill_below([mark]):
                log.warning("killed %d processes that supervisor %s had left behind", killed, mark[:8])
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
