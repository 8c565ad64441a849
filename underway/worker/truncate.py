"""Texts of the user's code, cut before they are sent: a record of 50 MB would go through the supervisor whole."""


def shorten(text: str, most: int) -> str:
    """The text, or its beginning and its end with a note of what is missing between them."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
