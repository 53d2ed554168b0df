"""A line chart as SVG, for reports: the same scales and the same band of raw values as on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from engine.monitor.scale import Scale, count, labels, make_scale

type Points = Sequence[tuple[float, float]]

COLOURS = ("#0f7086", "#b36b00", "#2f7d32", "#b3333f", "#3a5f97", "#6b6b6b")
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 30
_COLUMNS = 700
"""More points than this share columns, each with its range and mean."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One named line."""

    title: str
    points: Points


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    place: Callable[[float], str] = count,
    size: tuple[int, int] = (760, 280),
    is_log: bool = False,
) -> str:
    """An `<svg>` element with axes and, for several curves, a legend."""
    width, height = size
    drawn = [curve for curve in curves if curve.points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold" fill="#20262c">{escape(title)}'
        f'<tspan fill="#6b7480" font-weight="normal"> {escape(unit)}</tspan></text>',
    ]
    if drawn:
        parts += _picture(drawn, size, place, is_log)
    else:
        parts.append(f'<text x="{width / 2}" y="{height / 2}" text-anchor="middle" fill="#6b7480">no values</text>')
    if len(curves) > 1:
        parts += _legend(curves, width)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _picture(curves: Sequence[Curve], size: tuple[int, int], place: Callable[[float], str], is_log: bool) -> list[str]:
    values = [value for curve in curves for _, value in curve.points]
    places = [where for curve in curves for where, _ in curve.points]
    down = make_scale(min(values), max(values), is_log=is_log)
    across = Scale(min(places), max(places))
    frame = _Frame(across, down, size)
    parts = [*_axes(frame, place)]
    for number, curve in enumerate(curves):
        parts += _curve(frame, curve, COLOURS[number % len(COLOURS)], has_band=len(curves) == 1)
    return parts


@dataclass(frozen=True, slots=True)
class _Frame:
    across: Scale
    down: Scale
    size: tuple[int, int]

    def x(self, place: float) -> float:
        return _LEFT + self.across.position(place) * (self.size[0] - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.size[1] - _BOTTOM - self.down.position(value) * (self.size[1] - _TOP - _BOTTOM)


def _axes(frame: _Frame, place: Callable[[float], str]) -> list[str]:
    width, height = frame.size
    parts = []
    ticks = frame.down.ticks(5)
    for tick, name in zip(ticks, labels(ticks), strict=True):
        y = frame.y(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{width - _RIGHT}" stroke="#e3e7ea"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#6b7480">{escape(name)}</text>')
    for tick in frame.across.ticks(7):
        x = frame.x(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#6b7480">{escape(place(tick))}</text>'
        )
    return parts


def _curve(frame: _Frame, curve: Curve, colour: str, *, has_band: bool) -> list[str]:
    columns = _columns(curve.points)
    parts = []
    if has_band and len(columns) < len(curve.points):
        top = [f"{frame.x(where):.1f} {frame.y(high):.1f}" for where, _, high, _ in columns]
        low = [f"{frame.x(where):.1f} {frame.y(low):.1f}" for where, low, _, _ in reversed(columns)]
        parts.append(f'<path d="M{"L".join([*top, *low])}Z" fill="{colour}" fill-opacity="0.22"/>')
    line = "L".join(f"{frame.x(where):.1f} {frame.y(mean):.1f}" for where, _, _, mean in columns)
    if len(columns) == 1:
        where, _, _, mean = columns[0]
        return [*parts, f'<circle cx="{frame.x(where):.1f}" cy="{frame.y(mean):.1f}" r="3" fill="{colour}"/>']
    return [*parts, f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>']


def _columns(points: Points) -> list[tuple[float, float, float, float]]:
    """Place, least, greatest and mean value of groups of neighbouring points."""
    each = -(-len(points) // _COLUMNS)
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    found = []
    for group in groups:
        values = [value for _, value in group]
        found.append((group[len(group) // 2][0], min(values), max(values), sum(values) / len(values)))
    return found


def _legend(curves: Sequence[Curve], width: int) -> list[str]:
    parts, x = [], width - _RIGHT
    for number in reversed(range(len(curves))):
        title = curves[number].title
        title = title if len(title) <= 28 else title[:27] + "…"
        parts.append(f'<text x="{x}" y="20" text-anchor="end" fill="#20262c">{escape(title)}</text>')
        x -= 7 * len(title) + 12
        parts.append(f'<circle cx="{x + 4}" cy="16" r="4" fill="{COLOURS[number % len(COLOURS)]}"/>')
        x -= 14
    return parts
