"""A job whose name and steps try to forge log lines."""

from underway import Context, Done, To, Underway

app = Underway()


def forge(cx: Context, text: str) -> Done:
    print(text)
    cx.log.info("%s", text)
    cx.log.info("plain", extra={"given": text})
    try:
        raise ValueError(text)
    except ValueError:
        cx.log.exception("raised")
    return To.done()


forging = app.job("forging\x1b[31m\n12:34:56 ERROR").step(forge)
