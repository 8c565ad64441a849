"""Text that comes from outside, checked or made fit to be stored and sent, and sizes as text."""

from underway.errors import InvalidOption


def checked_text(option: str, value: object, longest: int) -> str:
    """A text that Postgres can store. Raises InvalidOption."""
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise InvalidOption(f"{option} must be a string of 1 to {longest} characters, not {value!r}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidOption(f"{option} must not contain NUL or half a surrogate pair: {value!r}")
    return value


def storable(text: str) -> str:
    """The text without NUL characters, which Postgres cannot store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def encodable(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot encode. A file name may contain them."""
    return text.encode(errors="replace").decode()


def shorten(text: str, most: int) -> str:
    """The text if it has at most `most` characters; otherwise its beginning and its end, with a note between them.

    A worker shortens the texts of user code before it sends them. (A log record of 50 MB went through the supervisor.)
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


def mebibytes(size: int, decimals: int = 0) -> str:
    return f"{size / 2**20:,.{decimals}f} MiB"
