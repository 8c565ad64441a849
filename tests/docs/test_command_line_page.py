"""docs/command-line.md: its reference equals the output of --help, and its commands run.

`python tests/docs/test_command_line_page.py` rewrites the reference.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from underway.cli.main import main
from underway.cli.supervisor import main as supervisor

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
BEGIN, END = "<!-- reference: begin -->\n", "<!-- reference: end -->\n"


def helps(command: click.Command, name: str) -> Iterator[str]:
    """The help of a command and of its subcommands."""
    context = click.Context(command, info_name=name, terminal_width=80, max_content_width=80)
    if not isinstance(command, click.Group):
        yield command.get_help(context)
        return
    if name == "underway":
        yield command.get_help(context)
    for below in command.list_commands(context):
        yield from helps(command.commands[below], f"{name} {below}")


def reference() -> str:
    texts = [*helps(main, "underway"), *helps(supervisor, "underway-supervisor")]
    return "\n".join(f"```text\n{text}\n```\n" for text in texts)


def page(reference: str) -> str:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{reference}{END}{after}"


def test_the_reference_is_what_help_says() -> None:
    assert PAGE.read_text() == page(reference()), "rewrite it: python tests/docs/test_command_line_page.py"


def test_every_command_is_in_the_table() -> None:
    table = "".join(line for line in PAGE.read_text().splitlines() if line.startswith("|"))
    assert {name for name in main.commands if f"`underway {name}" not in table} <= {"db"}


def test_the_commands_run(database: str) -> None:
    (script,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "UNDERWAY_DATABASE_URL": database, "PATH": path}
    done = subprocess.run(["sh", "-e"], input=script, env=environment, capture_output=True, text=True, timeout=60)
    # The database is empty, so pausing a queue prints a note that the queue is unknown.
    assert (done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("note: ")]) == (0, [])
    assert "paused queue pdf\nresumed queue pdf\n" in done.stdout
    assert done.stdout.endswith("\n0 failed\n")


if __name__ == "__main__":
    PAGE.write_text(page(reference()))
