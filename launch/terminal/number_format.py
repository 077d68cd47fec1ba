"""Numbers, durations, sizes and long values for people: on pages, in charts, tables and messages.

Numbers are rounded before their unit is chosen: 999,950 is 1 M, not 1000 k. Where humanize has the
form that the field uses, it does the work; it has none for counts of parameters (it calls 1e9 "G",
not "B") and none for hours of sound.
"""

from typing import Any

import humanize

VALUE_WIDTH = 24  # most characters of a value in a table
_COUNT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


class NumberText(str):
    """A number with its unit, written out; tables align it to the right."""


def format_number(value: float) -> str:
    """2,700; 13.28; 0.0042: all digits of a count, three or four of other numbers."""
    if isinstance(value, int) or abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return _with_minus(text)


def format_count(value: float) -> NumberText:
    """120 k, 1.2 M, 14 B: a count to three digits, of parameters, tokens or utterances."""
    value = float(f"{value:.3g}")
    size, letter = next((unit for unit in _COUNT_UNITS if value >= unit[0]), (1.0, ""))
    return NumberText(f"{value / size:.3g} {letter}".rstrip())


def format_power(value: float) -> NumberText:
    """1.4·10¹⁵: a number to two digits, of FLOPs."""
    digits, power = humanize.scientific(value, precision=1).split(" x ")
    digits = digits.removesuffix(".0")
    return NumberText(power if digits == "1" else f"{digits}·{power}")


def format_constant(value: float) -> str:
    """1.690, 0.3400, 4.1·10⁵: a fitted constant to four digits, or as a power of ten."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return _with_minus(f"{value:#.4g}".rstrip(".")) if plain else format_power(value)


def format_tick(value: float) -> str:
    """0.5, −3, 12000: the number at a tick of an axis, without the noise of its last digits."""
    return _with_minus(f"{round(value, 6):g}")


def format_tick_count(value: float) -> str:
    """1 k, 2.5 M, 3 G: a count at a tick of an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def format_bytes(size: float) -> str:
    """12.30 GB, 7.12 kB: bytes in decimal units."""
    return humanize.naturalsize(size, format="%.2f")


def format_gib(size: float | None) -> str:
    """0.63: bytes as a number of GiB, the unit in which devices' memory is given; or a dash."""
    return "–" if size is None else f"{size / 2**30:.2f}"


def format_hours(hours: float) -> NumberText:
    """12.0 s, 4.2 min, 1.5 h, 1,234 h: hours of sound or of work in the unit that suits them."""
    seconds = round(hours * 3600, 1)
    if seconds < 60:
        return NumberText(f"{seconds:.1f} s")
    if round(hours * 60, 1) < 60:
        return NumberText(f"{hours * 60:.1f} min")
    return NumberText(f"{hours:.1f} h" if round(hours, 1) < 100 else f"{hours:,.0f} h")


def format_seconds(seconds: float | None) -> str:
    """30 s, 12 min, 1.5 h: about how long something will take; "?" where nobody knows."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shorten(value: Any) -> str:
    """A value as text, its middle replaced by "…" where it is longer than VALUE_WIDTH."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) <= VALUE_WIDTH:
        return text
    head = (VALUE_WIDTH - 1) // 2
    return f"{text[:head]}…{text[head + 1 - VALUE_WIDTH :]}"


def _with_minus(text: str) -> str:
    """Hyphens replaced by the minus sign."""
    return text.replace("-", "−")
