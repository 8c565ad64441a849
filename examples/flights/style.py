"""Fonts, sizes, colours, and the formats of numbers: the whole style of the reports."""

from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import LETTER
from reportlab.lib.styles import ParagraphStyle

PAGE_WIDTH, PAGE_HEIGHT = LETTER
MARGIN = 54
WIDTH = PAGE_WIDTH - 2 * MARGIN

REGULAR, BOLD = "Helvetica", "Helvetica-Bold"
SMALL = 7.5  # labels in charts, captions, header and footer
TABLE = 8.5

INK, MUTED, RULE, SHADE = HexColor("#1B1F24"), HexColor("#5B6570"), HexColor("#D3D8DE"), HexColor("#F1F3F5")
ACCENT, PALE = HexColor("#0072B2"), HexColor("#A6CCE5")
# In the order of figures.OUTCOMES. From Okabe and Ito's colour-blind-safe palette. The late outcomes get darker, so
# that their order survives black-and-white printing.
OUTCOME_COLOURS = tuple(HexColor(code) for code in ("#0072B2", "#F5D08A", "#E69F00", "#B84A00", "#9AA5B1", "#2B3138"))

TITLE = ParagraphStyle("title", fontName=BOLD, fontSize=22, leading=26, textColor=INK)
SUBTITLE = ParagraphStyle("subtitle", fontName=REGULAR, fontSize=11, leading=15, textColor=MUTED)
LEAD = ParagraphStyle("lead", fontName=BOLD, fontSize=11, leading=15, textColor=ACCENT, spaceBefore=10)
BODY = ParagraphStyle("body", fontName=REGULAR, fontSize=9.5, leading=13.5, textColor=INK, spaceBefore=4)
HEADING = ParagraphStyle("heading", fontName=BOLD, fontSize=11, leading=14, textColor=INK)
CAPTION = ParagraphStyle("caption", fontName=REGULAR, fontSize=SMALL, leading=10, textColor=MUTED, spaceBefore=4)

DASH = "\N{EN DASH}"  # also used as the minus sign, which the standard encoding of Helvetica lacks


def whole(number: float) -> str:
    return f"{number:,.0f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent. Only 0 prints as 0%, and only 1 as 100%."""
    smallest = 0.1**digits
    value = 100 * share
    if 0 < value < smallest / 2:
        return f"<{smallest:.{digits}f}%"
    if 100 - smallest / 2 <= value < 100:
        return f">{100 - smallest:.{digits}f}%"
    return f"{value:.{digits}f}%"


def signed(value: float, digits: int = 0) -> str:
    text = f"{abs(value):,.{digits}f}"
    if not float(text.replace(",", "")):
        return text
    return f"{DASH if value < 0 else '+'}{text}"


def minutes(value: float | None) -> str:
    """A delay in minutes; negative is early."""
    if value is None:
        return DASH
    return signed(value, 0 if value == round(value) else 1)


def points(difference: float) -> str:
    return f"{signed(100 * difference, 1)} pts"


def optional(value: float | None, digits: int = 0) -> str:
    if value is None:
        return DASH
    text = f"{abs(value):.{digits}f}"
    return f"{DASH}{text}" if value < 0 and float(text) else text


def clock(hhmm: int) -> str:
    return f"{hhmm // 100:02}:{hhmm % 100:02}"
