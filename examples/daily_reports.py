"""A report every night at midnight in Los Angeles, and one immediately.

python examples/daily_reports.py
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from underway import Context, Done, To, Underway

app = Underway(os.environ.get("UNDERWAY_DATABASE_URL", "embedded:"))

LOS_ANGELES = ZoneInfo("America/Los_Angeles")


@dataclass
class DailyReport:
    site_id: int


def report(cx: Context, site: DailyReport) -> Done[str]:
    # The slot says which day is reported, however late the run starts. A run enqueued by hand has no slot.
    midnight = cx.scheduled_at or datetime.now(UTC)
    day = (midnight.astimezone(LOS_ANGELES) - timedelta(hours=1)).date()
    return To.done(f"report of site {site.site_id} for {day:%A}, {day}")


daily_report = app.job("daily-report").step(report)

if __name__ == "__main__":
    app.migrate()
    # Runs at every start: it applies changed options and keeps the next slot of the schedule.
    nightly = daily_report.schedule("@daily[America/Los_Angeles]", DailyReport(site_id=42))
    for slot in nightly.next_slots(3):
        print(f"scheduled for {slot:%Y-%m-%d %H:%M %Z}")
    run = daily_report.enqueue(DailyReport(site_id=42))
    app.run(procs=2, until_idle=True)
    print(f"{run.status()}: {run.result()}")
