"""How a report writes numbers: one way for each kind of quantity, a dash for what is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .statistics import Interval

NOTHING = "–"
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def score(value: float | None) -> str:
    """``2.1034``"""
    return NOTHING if value is None else f"{value:.4f}".replace("-", "−")


def signed(value: float | None) -> str:
    """``+0.0210`` or ``−0.0210``, with a real minus."""
    return NOTHING if value is None else f"{value:+.4f}".replace("-", "−")


def half_width(interval: Interval | None) -> str:
    """``± 0.0123``, for an interval around its mean."""
    return "" if interval is None else f"± {(interval[1] - interval[0]) / 2:.4f}"


def interval(value: Interval | None) -> str:
    """``−0.0310 to +0.0120``"""
    return NOTHING if value is None else f"{signed(value[0])} to {signed(value[1])}"


def probability(value: float | None) -> str:
    """A p value with two digits, not below 0.0001."""
    if value is None:
        return NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def amount(value: float | None) -> str:
    """``312 k``: three digits and a decimal prefix."""
    return NOTHING if value is None else _scaled(value, 1000.0, PREFIXES)


def memory(value: float | None) -> str:
    """``1.5 MiB``: three digits and a binary prefix."""
    return NOTHING if value is None else _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float) -> str:
    """``8.1 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def ratio(value: float | None) -> str:
    """``1.003×``, a multiple of the reference's."""
    return NOTHING if value is None else f"{value:.3f}×"


def percent(value: float | None) -> str:
    """``61.5 %``, of a share between 0 and 1."""
    return NOTHING if value is None else f"{100 * value:.4g} %"


def number(value: float | None) -> str:
    """``0.00123``, ``12,300`` or ``1.2e−6``: three digits, for quantities without a unit."""
    if value is None:
        return NOTHING
    if 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    digits, _, power = f"{value:.3g}".partition("e")
    return f"{digits}e{int(power)}".replace("-", "−") if power else digits.replace("-", "−")


def span(values: Sequence[float | None]) -> str:
    """``0.81 to 1.3``, from the smallest to the largest; a dash where one is not known."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NOTHING
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} to {high}"


def highest(values: Sequence[float | None]) -> str:
    """The largest; a dash where one is not known."""
    known = [value for value in values if value is not None]
    return number(max(known)) if known and len(known) == len(values) else NOTHING


def setting(value: Any) -> str:
    """A JSON value as one would type it; text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nest of settings as dotted paths and written values."""
    leaves: dict[str, str] = {}
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        leaves |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: setting(value)}
    return leaves


def _scaled(value: float, base: float, prefixes: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 0.9995 * base and step + 1 < len(prefixes):
        value, step = value / base, step + 1
    digits = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {prefixes[step]}".rstrip()


_SIGNED = (score, signed, half_width, interval, probability)
_SCALED = (amount, memory, duration, ratio, percent, number, span, highest)
FILTERS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (*_SIGNED, *_SCALED, setting, flat)}
"""What the report's template calls them by."""
