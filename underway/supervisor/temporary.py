"""A TMPDIR for each worker, which goes with it: what a killed step leaves in a temporary folder would stay for ever."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import threading
from logging import getLogger
from pathlib import Path

from underway import keeper

log = getLogger("underway.supervisor")

# Short: a path of a socket has room for a hundred characters, and Chromium's alone takes forty.
_PREFIX = "underway-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
_OWNER = "supervisor"
_MARK = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/")


class Temporary:
    """The folder of one supervisor, locked as long as it or its keeper lives. (systemd-tmpfiles leaves such alone.)

    Without room for it workers have the TMPDIR of their supervisor, as anything else would have it.
    """

    def __init__(self, mark: str) -> None:
        self.folder: str | None = None
        self.lock: int | None = None
        try:
            self.folder = tempfile.mkdtemp(prefix=_PREFIX)
            self.lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            # Not before the lock: a folder without it is being made, and left alone by those who remove leftovers.
            Path(self.folder, _OWNER).write_text(mark)
        except OSError as error:
            log.warning("workers get no temporary folders of their own: %s", error)

    def for_worker(self, serial: int) -> str | None:
        """A new folder, or None if there is no room for it."""
        if self.folder is None:
            return None
        folder = f"{self.folder}/{serial}"
        try:
            os.mkdir(folder, 0o700)
        except OSError as error:
            log.warning("worker gets no temporary folder of its own: %s", error)
            return None
        return folder

    def close(self) -> None:
        """The keeper has removed the folder, or is about to."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def remove(folder: str | None) -> None:
    """In a thread unless it is empty: a browser's profile takes as long as a thousand commits."""
    if folder is not None:
        try:
            os.rmdir(folder)
        except OSError:
            threading.Thread(target=shutil.rmtree, args=(folder, True), daemon=True).start()


def remove_leftovers() -> None:
    """Of supervisors on this host that were killed together with their keepers: processes, then folders."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if _NAME.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path)


def _remove_if_left(folder: str) -> None:
    """Raises OSError if whoever made it lives, or if it is something else."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mark = Path(folder, _OWNER).read_text()
        if _MARK.fullmatch(mark):  # never a shorter one: "" begins all marks there are
            if killed := keeper.kill_below([mark]):
                log.warning("killed %d processes that supervisor %s had left behind", killed, mark[:8])
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
