"""`underway sync APP [--database URL]`, in a process of its own, since it imports the app."""

import os
import sys

import psycopg

from underway.app import Underway
from underway.errors import UnderwayError
from underway.loading import load

# The database that was named by hand. Not an argument: those can be read by everybody on this host.
SYNC_DATABASE = "UNDERWAY_SYNC_DATABASE"


def main() -> None:
    database = os.environ.pop(SYNC_DATABASE, None)
    try:
        app = load(sys.argv[1])
        if not isinstance(app, Underway):
            sys.exit(f"Error: {sys.argv[1]} is a {type(app).__name__}, not an Underway app")
        if database is not None:
            app._database = database  # it wins over what the app says
        for name in app.sync():
            print(f"registered {name}")
    except (UnderwayError, psycopg.Error) as error:
        sys.exit(f"Error: {str(error).strip()}")


if __name__ == "__main__":
    main()
