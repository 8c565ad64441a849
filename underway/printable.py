"""Sanitizes untrusted text for display: it can neither control the terminal nor forge a line."""


def printable(text: str) -> str:
    """The text with every character that could control a terminal replaced; newlines and tabs stay."""
    return "\n".join(line if line.isprintable() else _replaced(line) for line in text.split("\n"))


def _replaced(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line)


def printable_json(document: str) -> str:
    """An equivalent JSON document, with an escape for every character that `printable` would replace.

    JSON requires escapes only below U+0020. But a terminal treats U+009B like ESC [, and bidirectional marks reverse
    the text that follows them.
    """
    if document.isascii() and "\x7f" not in document:  # the usual case: JSON has escaped the other control characters
        return document
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in document)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
