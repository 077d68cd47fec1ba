"""Numbers, durations and sizes as people read them."""

import pytest

from launch.terminal import number_format


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        ("format_number", 2700, "2,700"),
        ("format_number", -13.28, "−13.28"),
        ("format_number", 0.0042, "0.0042"),
        ("format_count", 0.12e6, "120 k"),
        ("format_count", 999_950, "1 M"),  # rounded first: not 1000 k
        ("format_count", 14e9, "14 B"),
        ("format_count", 999, "999"),
        ("format_power", 1.4e15, "1.4·10¹⁵"),
        ("format_power", 1e-3, "10⁻³"),
        ("format_power", 9.96e20, "10²¹"),
        ("format_constant", 1.69, "1.690"),
        ("format_constant", 410_000, "4.1·10⁵"),
        ("format_tick", 0.1 + 0.2, "0.3"),
        ("format_tick_count", 2_500_000, "2.5 M"),
        ("format_bytes", 12_300_000_000, "12.30 GB"),
        ("format_bytes", 7_120, "7.12 kB"),
        ("format_gib", 2**30, "1.00"),
        ("format_gib", None, "–"),
        ("format_hours", 12 / 3600, "12.0 s"),
        ("format_hours", 59.99 / 60, "1.0 h"),  # not 60.0 min
        ("format_hours", 1.5, "1.5 h"),
        ("format_hours", 1234, "1,234 h"),
        ("format_seconds", 89, "89 s"),
        ("format_seconds", 90, "2 min"),
        ("format_seconds", 5400, "1.5 h"),
        ("format_seconds", None, "?"),
        ("shorten", 0.001, "0.001"),
        ("shorten", "a/path/of/24/characters/", "a/path/of/24/characters/"),
        ("shorten", "corpora/a/path/of/more/characters", "corpora/a/p…e/characters"),
    ],
)
def test_value_is_written_in_its_form(function, value, text):
    assert getattr(number_format, function)(value) == text
