"""The sentences of a report."""

from calendar import day_name, month_name, weekday

from .figures import CANCELLED, DIVERTED, OUTCOMES, YEAR, HardDay, Report, Tally
from .style import percent, plural, points, whole

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_FEWEST_FOR_A_BAD_DAY = 5
_MANY = 60  # with this many flights, a single one hardly changes the share


def title(report: Report) -> str:
    subject = report.subject
    return (
        f"{report.name} ({subject.code})" if subject.kind == "carrier" else f"Flights to {report.name} ({subject.code})"
    )


def lead(report: Report) -> str:
    own, everyone = report.own, report.everyone
    if report.flights or own.on_time in (0, own.flights):
        return _lead_of_few(report)
    share, average = own.share(0), everyone.share(0)
    return (
        f"{_in_words(share).capitalize()} of {plural(own.flights, 'flight')} arrived on time, "
        f"{_compared(share - average, 'above', 'below', 'level with')} the New York average."
    )


def body(report: Report) -> str:
    sentences = [_scheduled(report)]
    if not report.flights:
        sentences += [_delays(report.own), _hardest(report)]
    sentences.append(_previous(report))
    if not report.flights and report.own.flights < _MANY:
        change = points(1 / report.own.flights).removeprefix("+").replace("pts", "percentage points")
        sentences.append(f"With so few flights, a single one moves the share on time by {change}.")
    return " ".join(sentence for sentence in sentences if sentence)


def date(report: Report, day: int) -> str:
    return f"{day_name[weekday(YEAR, report.subject.month, day)][:3]}, {month_name[report.subject.month][:3]} {day}"


def _lead_of_few(report: Report) -> str:
    own = report.own
    if own.flights == 1:
        flight = report.flights[0]
        if flight.outcome in (DIVERTED, CANCELLED):
            return f"The only flight was {OUTCOMES[flight.outcome].lower()}."
        delay = flight.arrival_delay or 0
        if delay < 15:
            return "The only flight arrived on time."
        return f"The only flight arrived {plural(round(delay), 'minute')} late."
    if own.on_time in (0, own.flights):
        return f"{'All' if own.on_time else 'None of the'} {plural(own.flights, 'flight')} arrived on time."
    return f"{own.on_time} of {plural(own.flights, 'flight')} arrived on time."


def _scheduled(report: Report) -> str:
    subject, own, total = report.subject, report.own, report.partners_total
    airports = [origin.code for origin in report.origins]
    leaving = "from New York" if len(airports) > 1 else f"from {airports[0]}"
    if subject.kind == "carrier":
        who = report.name
        leaving += f" to {report.partners[0].name}" if total == 1 else ""
    elif total == 1:
        who = f"{report.partners[0].name}, the only carrier,"
    else:
        who = f"{(_NUMBERS[total] if total < len(_NUMBERS) else str(total)).capitalize()} carriers"
    share = f"{_in_words(own.flights / report.everyone.flights)} of all departures"
    ended = "" if report.flights else f"; {_failures(own)}"
    return f"{who} scheduled {plural(own.flights, 'flight')} {leaving} in {subject.period} ({share}){ended}."


def _previous(report: Report) -> str:
    month = report.subject.month
    if month == 1:
        return "The data begin with this month, so there is no earlier one to compare it with."
    if report.previous is None:
        return f"There were no flights in {month_name[month - 1]} to compare with."
    if report.previous.flights == 1:
        did = "arrived" if report.previous.on_time else "did not arrive"
        return f"The only flight in {month_name[month - 1]} {did} on time."
    if report.flights:
        return f"In {month_name[month - 1]}, {report.previous.on_time} of {report.previous.flights:,} arrived on time."
    before = report.previous.share(0)
    difference = _compared(report.own.share(0) - before, "higher than", "lower than", "the same as")
    return f"The share on time was {difference} in {month_name[month - 1]} ({_in_words(before)})."


def _failures(own: Tally) -> str:
    cancelled, diverted = own.cancelled, own.outcomes[DIVERTED]
    if not cancelled and not diverted:
        return "none was cancelled or diverted"
    parts = [
        f"{whole(count)} {'was' if count == 1 else 'were'} {what}"
        for count, what in ((cancelled, f"cancelled ({_in_words(own.share(CANCELLED))})"), (diverted, "diverted"))
        if count
    ]
    return " and ".join(parts)


def _delays(own: Tally) -> str:
    if own.median_delay is None or own.p90_delay is None:
        return ""
    slow = own.p90_delay
    tail = f"one in ten was at least {plural(slow, 'minute')} late" if slow > 0 else "nine in ten were not late at all"
    return f"The median arrival was {_against_schedule(own.median_delay)}; {tail}."


def _against_schedule(delay: float) -> str:
    if delay == 0:
        return "exactly on schedule"
    amount = f"{abs(delay):g} minute{'' if abs(delay) == 1 else 's'}"
    return f"{amount} {'early' if delay < 0 else 'late'}"


def _hardest(report: Report) -> str:
    if not report.hard_days:
        return ""
    day: HardDay = report.hard_days[0]
    tally = day.tally
    if tally.flights < _FEWEST_FOR_A_BAD_DAY:
        return ""
    cancelled = f", {whole(tally.cancelled)} cancelled" if tally.cancelled else ""
    name = day_name[weekday(YEAR, report.subject.month, day.day)]
    return (
        f"The hardest day was {name} the {_ordinal(day.day)}: "
        f"{whole(tally.on_time)} of {plural(tally.flights, 'flight')} on time{cancelled}."
    )


def _in_words(share: float) -> str:
    return percent(share, 1).replace("<", "less than ").replace(">", "more than ")


def _ordinal(day: int) -> str:
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _compared(difference: float, above: str, below: str, same: str) -> str:
    amount = f"{abs(100 * difference):.1f}"
    if amount == "0.0":
        return same
    unit = "percentage point" if amount == "1.0" else "percentage points"
    return f"{amount} {unit} {above if difference > 0 else below}"
