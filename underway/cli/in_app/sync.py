"""Runs `underway sync APP` in a process of its own, because it imports the app."""

import sys

from underway.cli.in_app.app import loaded_app
from underway.printable import printable


def main() -> None:
    with loaded_app(sys.argv[1]) as app:
        names = app.sync()
        for name in names:
            print(printable(f"registered {name}"))
        if not names:
            print(f"{sys.argv[1]} declares no jobs: import the modules that declare them in the module of the app")


if __name__ == "__main__":
    main()
