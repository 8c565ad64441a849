"""The one line of an error that says most, for the log and for tables."""


def headline(error: str) -> str:
    """The first, or what a traceback ends with.

    Not simply its last line: Postgres adds hints and contexts, and a full disk was logged as "Check free disk space".
    """
    lines = error.strip().splitlines() or ["no message"]
    if lines[0].startswith("+ Exception Group Traceback"):  # what it is made of is indented further
        lines = ["Traceback", *(line[4:] for line in lines if line.startswith("  | "))]
    if lines[0].startswith("Traceback"):
        last_frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=0)
        lines = [line for line in lines[last_frame + 1 :] if line and not line.startswith(" ")] or lines[-1:]
    return lines[0]
