"""Numbers, durations and times as people read them. Pure functions, used by every screen."""

from __future__ import annotations

import math
import time

from engine.monitor.scale import count as count


def rough_duration(seconds: float) -> str:
    """How long something predicted takes, in one number: `40 s`, `12 min`, `14.2 h` or `3.5 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def duration(seconds: float | None) -> str:
    """`42 s`, `3:07`, `2:03:07` or `3 d 04 h`; a dash when it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{second:02d}"
    hours, minute = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minute:02d}:{second:02d}"
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02d} h"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits: `just now`, `5 min ago`, `3 h ago`, `2 d ago`."""
    if seconds < 60:
        return "just now"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    raise AssertionError(seconds)


def clock(moment: float, now: float) -> str:
    """The local time of day of `moment`; with the date when it is not today, and a dash beyond every calendar."""
    try:
        then, today = time.localtime(moment), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "–"
    is_today = then[:3] == today[:3]
    return time.strftime("%H:%M" if is_today else "%d %b %H:%M", then)


def number(value: float) -> str:
    """A measured value with four significant digits; small and huge ones as powers of ten."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e9 or size < 1e-2:
        # 1.000e-05 -> 1.000e-5: the leading zero of the exponent says nothing.
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(size)))}f}"


def pace(seconds: float) -> tuple[str, str]:
    """How long one iteration takes, as (value, unit): milliseconds below one second."""
    return (f"{seconds * 1000:.1f}", "ms") if seconds < 1 else (f"{seconds:.2f}", "s")


def percent(done: float, total: float) -> str:
    return f"{min(100.0, max(0.0, 100 * done / total)):.0f} %" if total > 0 else ""


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` cells, its end given up for an ellipsis."""
    if len(text) <= width:
        return text
    return text[: max(0, width - 1)] + "…" if width > 0 else ""


def shorten_path(text: str, width: int) -> str:
    """A path in at most `width` cells; its beginning is given up, the end tells more."""
    if len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :] if width > 1 else "…"[:width]


def plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")
