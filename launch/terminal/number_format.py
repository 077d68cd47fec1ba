"""Numbers, durations and long values for people: on pages, in charts and in tables."""

from typing import Any


class NumberText(str):
    """A number with its unit, written out: to the right of its column."""


def format_number(value: float) -> str:
    """2,700; 13.28; 0.0042: all digits of a count, and as many of other numbers as tell."""
    if isinstance(value, int) or abs(value) >= 100:
        written = f"{value:,.0f}"
    else:
        written = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return written.replace("-", "−")


def format_count(value: float) -> NumberText:
    """120 k, 1.2 M, 14 B: a count to three digits, of parameters or tokens."""
    value = float(f"{value:.3g}")
    for unit, letter in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return NumberText(f"{value / unit:.3g}{letter}")
    return NumberText(f"{value:.3g}")


def format_power(value: float) -> NumberText:
    """1.4·10¹⁵: a number to two digits, of FLOPs."""
    digits, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(_SUPERSCRIPTS)
    digits = digits.removesuffix(".0")
    return NumberText(f"10{raised}" if digits == "1" else f"{digits}·10{raised}")


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_hours(hours: float) -> NumberText:
    """A duration in the unit that suits it."""
    if hours >= 100:
        return NumberText(f"{hours:,.0f} h")
    if hours >= 1:
        return NumberText(f"{hours:.1f} h")
    return NumberText(f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s")


def format_tick(value: float) -> str:
    """The number at a tick of an axis."""
    return f"{round(value, 6):g}".replace("-", "−")


def format_tick_count(value: float) -> str:
    """A count at a tick of an axis: 1 k, 2.5 M, 3 G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


VALUE_WIDTH = 24  # characters of a value in the table


def format_optional_count(number: float | None) -> str:
    """Three digits and a letter: 1.26 M."""
    if number is None:
        return ""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def shorten_end(value: Any) -> str:
    """A value in a table, cut at its end where it is longer than VALUE_WIDTH."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 1]}…"


def format_constant(value: float) -> str:
    """A constant to four digits, or as a power of 10."""
    tame = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:#.4g}".rstrip(".").replace("-", "−") if tame else format_power(value)


def format_seconds(seconds: float | None) -> str:
    """A time as people say it."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shorten_middle(value: Any) -> str:
    """A value in a table, cut in its middle where it is longer than 24 characters."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:11]}…{text[-12:]}"
