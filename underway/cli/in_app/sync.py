"""`underway sync APP [--database URL]`, in a process of its own, since it imports the app."""

import sys

from underway.cli.in_app.app import loaded
from underway.printable import printable


def main() -> None:
    with loaded(sys.argv[1]) as app:
        names = app.sync()
        for name in names:
            print(printable(f"registered {name}"))
        if not names:
            print(f"{sys.argv[1]} declares no jobs: import the modules that declare them where the app is")


if __name__ == "__main__":
    main()
