"""Run IDs: UUIDv7, made by the client that enqueues. Labels never look like one, so texts can be told apart."""

import threading
import time
from random import SystemRandom
from uuid import UUID

# As in `secrets`, whose import would cost every worker the megabytes of OpenSSL.
_randbits = SystemRandom().getrandbits
_lock = threading.Lock()
_last = 0


def read_id(given: object) -> UUID | None:
    """The given ID, or the ID whose text is given; None for anything else."""
    try:
        return UUID(str(given))  # some drivers have a UUID of their own
    except ValueError:
        return None


def new_id() -> UUID:
    """A UUIDv7 greater than any made before in this process, so that one caller's runs keep their order."""
    global _last
    fresh = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | 0x2 << 62
    fresh |= _randbits(12) << 64 | _randbits(62)
    with _lock:
        if fresh <= _last:
            fresh = _last + 1 + _randbits(16)
            # A carry out of the 62 random bits would run into the variant; once in 2**46 ids the order is given up.
            fresh = (fresh & ~(0x3 << 62)) | 0x2 << 62
        _last = fresh
    return UUID(int=fresh)
