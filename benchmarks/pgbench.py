"""Many concurrent sessions from pgbench, a client fast enough not to be the bottleneck."""

import re
import subprocess

from benchmarks.testbed import Testbed
from underway.postgres.embedded import ENVIRONMENT

SESSIONS = 32
_THREADS = 2


def rate(testbed: Testbed, statement: str, transactions: int) -> float:
    """Transactions per second, over about this many transactions of one statement each.

    The statement is prepared, as psycopg does.
    """
    script = testbed.folder / "transaction.sql"
    script.write_text(f"{statement};\n")
    done = subprocess.run(
        [
            testbed.cluster.bin_dir / "pgbench",
            *("--no-vacuum", "--protocol=prepared", f"--client={SESSIONS}", f"--jobs={_THREADS}"),
            *(f"--transactions={max(1, transactions // SESSIONS)}", f"--file={script}"),
            testbed.url,
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if (found := re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)) is None or done.returncode:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1])
