"""`underway sync APP [--database URL]`, in a process of its own, since it imports the app."""

import sys

import psycopg

from underway.app import Underway
from underway.errors import UnderwayError
from underway.loading import load


def main() -> None:
    try:
        app = load(sys.argv[1])
        if not isinstance(app, Underway):
            sys.exit(f"Error: {sys.argv[1]} is a {type(app).__name__}, not an Underway app")
        if len(sys.argv) > 2:
            app._database = sys.argv[2]  # named by hand: it wins over what the app says
        for name in app.sync():
            print(f"registered {name}")
    except (UnderwayError, psycopg.Error) as error:
        sys.exit(f"Error: {str(error).strip()}")


if __name__ == "__main__":
    main()
