"""`python -m underway.testing.watchdog FOLDER [BIN]`: stops and removes a cluster when its user process is gone."""

import shutil
import sys

from underway.postgres.embedded import Cluster


def main() -> None:
    folder, bin_dir = sys.argv[1:]
    sys.stdin.buffer.read(1)
    try:
        Cluster(folder, bin_dir=bin_dir or None).stop("immediate")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
