"""The most informative line of an error, for the log and for tables."""

_TRACEBACKS = ("+ Exception Group Traceback", "Traceback")


def headline(error: str) -> str:
    """The first line, or the exception at the end of a traceback.

    That is not always the last line: Postgres adds hints and contexts. (A full disk was logged as "Check free disk
    space".)
    """
    lines = error.strip().splitlines() or ["no message"]
    if lines[0].startswith(_TRACEBACKS):  # of several, the last one
        group, plain = (max((n for n, line in enumerate(lines) if line.lstrip().startswith(kind)), default=-1)
                        for kind in _TRACEBACKS)  # fmt: skip
        if group > plain:  # the exceptions of the group are indented further
            lines = [line[4:] for line in lines[group:] if line.startswith("  | ")]
        last_frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=0)
        lines = [line for line in lines[last_frame + 1 :] if line and not line.startswith(" ")] or lines[-1:]
    return lines[0]
