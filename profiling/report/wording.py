"""Numbers as people read them; what is absent is "not measured", never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

NOT_MEASURED = "not measured"
MINUS = "\N{MINUS SIGN}"


def significant(value: float, digits: int = 3) -> str:
    """`value` with thousands commas and about `digits` significant digits: 1,234 · 12.3 · 0.00123 · 1.5e-07."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else f"{MINUS}inf"
    sign, size = (MINUS if value < 0 else ""), abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e15:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        return f"{sign}{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}".replace(
            "-", MINUS
        )
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{sign}{size:,.{decimals}f}"


def count(value: float) -> str:
    """A count in words: 302,123,456 -> 302.1 M; below a million all digits."""
    for scale, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= scale:
            return f"{significant(value / scale, 4)} {name}"
    return f"{value:,.0f}"


def prefixed(value: float, unit: str) -> str:
    """A value with an SI prefix from kilo to exa: 3.1e9 FLOP -> 3.10 GFLOP."""
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {prefix}{unit}"
    return f"{significant(value)} {unit}"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: µs, ms, s, min, h."""
    if not math.isfinite(seconds):
        return NOT_MEASURED
    for limit, scale, unit in (
        (1e-3, 1e6, "µs"),
        (1.0, 1e3, "ms"),
        (120.0, 1.0, "s"),
        (7200.0, 1 / 60, "min"),
    ):
        if seconds < limit:
            return f"{significant(seconds * scale)} {unit}"
    return f"{significant(seconds / 3600)} h"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage: 0.8123 -> 81.2 %."""
    return f"{100 * fraction:.{digits}f} %".replace("-", MINUS)


def interval(bounds: tuple[float, float] | None) -> str:
    """A confidence interval of fractions, in percent: 79.1 to 83.0 %."""
    if bounds is None:
        return NOT_MEASURED
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %".replace("-", MINUS)


def moment(value: Any) -> str:
    """A start's time (unix seconds or ISO text) as UTC to the second, or the text as it stands."""
    if isinstance(value, int | float) and math.isfinite(value):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return str(value) if value else "not recorded"


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def plural(n: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def flat(value: Any) -> str:
    """A recorded field on one line: mappings as `key value · key value`, lists with commas, absence spelled
    out.
    """
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " · ".join(f"{key} {flat(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(flat, value)) or "none"
    return str(value)
