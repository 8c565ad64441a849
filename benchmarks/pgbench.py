"""Many sessions at once, from a client that is no bottleneck: the pgbench that comes with the embedded Postgres."""

import re
import subprocess

from benchmarks.stage import Stage
from underway.postgres.embedded import ENVIRONMENT

SESSIONS = 32
_THREADS = 2


def rate(stage: Stage, statement: str, transactions: int) -> float:
    """Transactions of this one statement a second, each on its own; about so many in all.

    Prepared, as psycopg does it too.
    """
    script = stage.folder / "transaction.sql"
    script.write_text(f"{statement};\n")
    done = subprocess.run(
        [
            stage.cluster.bin_dir / "pgbench",
            *("--no-vacuum", "--protocol=prepared", f"--client={SESSIONS}", f"--jobs={_THREADS}"),
            *(f"--transactions={max(1, transactions // SESSIONS)}", f"--file={script}"),
            stage.url,
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if (found := re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)) is None or done.returncode:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1])
