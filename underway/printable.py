"""Text of steps, apps and rows where people read it: it must neither drive a terminal nor forge a line."""


def printable(text: str) -> str:
    """Without what drives a terminal; newlines and tabs stay."""
    return "\n".join(line if line.isprintable() else _replaced(line) for line in text.split("\n"))


def _replaced(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line)


def printable_json(document: str) -> str:
    """A JSON document that means the same, with an escape for every character that `printable` would replace.

    JSON itself demands that only below U+0020. A terminal obeys U+009B as it obeys ESC [, and marks of bidirectional
    text turn around what follows them.
    """
    if document.isascii() and "\x7f" not in document:  # as most are, and JSON has escaped the other controls
        return document
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in document)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
