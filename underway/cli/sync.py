"""`underway sync APP [--database URL]`, in a process of its own, since it imports the app."""

import sys

from underway.cli.loaded import loaded


def main() -> None:
    with loaded(sys.argv[1]) as app:
        for name in app.sync():
            print(f"registered {name}")


if __name__ == "__main__":
    main()
