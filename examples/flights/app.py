"""Flight reports: one PDF per month for each carrier or destination, in four durable steps.

    select -> compute -> render -> file

Payloads between the steps are small: names, figures, a path. Each worker reads the flights themselves once, so every
step depends only on its input and the data set, and may safely run twice. Drafts and reports are in one folder,
UNDERWAY_REPORTS, which all workers must share. The steps import the modules that need pandas and reportlab, so that
workers boot without them.
"""

import os
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from underway import Context, Done, Fail, RetryPolicy, To, Underway

from .figures import Draft, Filed, Report, Selection, Subject

app = Underway(os.environ.get("UNDERWAY_DATABASE_URL", "embedded:"))


def select(cx: Context, subject: Subject) -> To[Selection]:
    """Check that there are flights to report, and find the month to compare them with."""
    from .compute import select as find

    selection = find(subject)
    if selection is None:
        raise Fail(f"no flights of {subject.kind} {subject.code!r} in {subject.period}")
    return To.next(selection)


def compute(cx: Context, selection: Selection) -> To[Report]:
    from .compute import compute as report_on

    return To.next(report_on(selection))


def render(cx: Context, report: Report) -> To[Draft]:
    """Write the PDF beside its final path, under a name that no other attempt uses, and sync it to disk."""
    from .report import render as render_pdf

    path = Path(report.subject.path)
    draft = path.with_name(f".{path.stem}.{cx.run_id}.{uuid4().hex[:8]}.draft")
    target = _reports() / draft
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as stream:
            pages = render_pdf(report, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return To.next(Draft(report.subject, str(draft), pages))


def file(cx: Context, draft: Draft) -> Done[Filed]:
    """Move the draft to its final path atomically, so that no reader sees half a report."""
    written, final = _reports() / draft.path, _reports() / draft.subject.path
    try:
        written.replace(final)
    except FileNotFoundError:
        # An earlier attempt may have moved it and died before its result was committed.
        if not final.exists():
            raise Fail(f"the draft {written} is gone; enqueue the report again") from None
    for left_over in written.parent.glob(f".*.{cx.run_id}.*.draft"):
        left_over.unlink(missing_ok=True)  # from attempts that were killed
    return To.done(Filed(str(final), draft.pages, final.stat().st_size))


def _reports() -> Path:
    return Path(os.environ.get("UNDERWAY_REPORTS", "reports")).absolute()


flight_report = (
    app.job("flight-report")
    .step(select, timeout=timedelta(minutes=1))
    .step(compute, timeout=timedelta(minutes=1), memory_limit="1 GiB")
    .step(render, timeout=timedelta(minutes=2), memory_limit="1 GiB", retry=RetryPolicy(max_attempts=3))
    .step(file, retry=RetryPolicy(max_attempts=10))
)
