"""Run IDs: UUIDv7, created by the client that enqueues. A dead-letter label can never look like a run ID."""

import threading
import time
from random import SystemRandom
from uuid import UUID

# As in `secrets`, without the megabytes of OpenSSL in every worker.
_randbits = SystemRandom().getrandbits
_lock = threading.Lock()
_last = 0


def read_id(given: object) -> UUID | None:
    """The UUID that `given` is, or is the string form of; None for any other value."""
    try:
        return UUID(str(given))  # some drivers have their own UUID class
    except ValueError:
        return None


def new_id() -> UUID:
    """A UUIDv7 greater than all earlier ones of this process, so the runs of one caller keep their order."""
    global _last
    fresh = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | 0x2 << 62
    fresh |= _randbits(12) << 64 | _randbits(62)
    with _lock:
        if fresh <= _last:
            fresh = _last + 1 + _randbits(16)
            # A carry out of the 62 random bits would overwrite the variant. The order is broken once in 2**46 IDs.
            fresh = (fresh & ~(0x3 << 62)) | 0x2 << 62
        _last = fresh
    return UUID(int=fresh)
