"""A run as one page: Markdown to paste, HTML with pictures to send. Both are drawn from the same parts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from engine import secrets, visible
from engine.monitor.history import RunRecord, curve, differing_settings, summarise
from engine.monitor.metrics import Record
from engine.monitor.scale import bounded
from engine.monitor.svg import Curve, line_chart
from engine.settings import Settings

_SPARKS = "▁▂▃▄▅▆▇█"
_MARKDOWN = re.compile(r"([\\`*\[\]<>|&~$])")
PICTURES = (
    ("loss", "Loss", ""),
    ("tokens_per_s", "Throughput", "tokens/s"),
    ("grad_norm", "Gradient norm", ""),
    ("learning_rate", "Learning rate", ""),
    ("load_balance", "Busiest expert over the mean", ""),
    ("memory_gib", "Peak memory of a rank", "GiB"),
)
"""What a page shows of the metrics, where there are any: name, title, unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a page: a table, a list, or a metric's curve."""

    title: str = ""
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    items: tuple[str, ...] = ()
    metric: str = ""
    unit: str = ""


def to_markdown(run: RunRecord) -> str:
    """The page as Markdown; curves are one line of characters."""
    lines = [f"# {_plain(run.name)}", "", _plain(_headline(run)), ""]
    for part in _parts(run):
        lines += [f"## {part.title}", ""] if part.title else []
        if part.metric:
            points = [value for _, value in curve(run, part.metric, "iteration")]
            lines.append(f"`{sparkline(points)}` {points[0]:.4g} → {points[-1]:.4g} {part.unit}".rstrip())
        if part.heads:
            lines += ["| " + " | ".join(part.heads) + " |", "|" + "---|" * len(part.heads)]
            lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in part.rows]
        lines += [f"- {_plain(item)}" for item in part.items]
        lines.append("")
    return "\n".join(lines)


def to_html(run: RunRecord) -> str:
    """The page as one HTML file that needs nothing else."""
    body = [f"<h1>{_escaped(run.name)}</h1>", f"<p>{_escaped(_headline(run))}</p>"]
    for part in _parts(run):
        body += [f"<h2>{_escaped(part.title)}</h2>"] if part.title and not part.metric else []
        if part.metric:
            body.append(picture([run], part.metric, "iteration"))
        if part.heads:
            body += ["<table>", _row(part.heads, "th") if any(part.heads) else ""]
            body += [*(_row(row, "td") for row in part.rows), "</table>"]
        if part.items:
            body += ["<ul>", *(f"<li>{_escaped(item)}</li>" for item in part.items), "</ul>"]
    return _PAGE.format(title=_escaped(run.name), body="\n".join(body))


def picture(runs: Sequence[RunRecord], metric: str, by: str, *, is_log: bool = False) -> str:
    """One metric of one or several runs as an SVG chart."""
    named = {name: (title, unit) for name, title, unit in PICTURES}
    title, unit = named.get(metric, (metric.replace("_", " "), ""))
    curves = [Curve(run.name, curve(run, metric, by)) for run in runs]
    places: dict[str, Callable[[float], str]] = {"time": _hours}
    axis = f"{unit} by {by}".strip()
    if by in places:
        return line_chart(title, curves, unit=axis, place=places[by], is_log=is_log)
    return line_chart(title, curves, unit=axis, is_log=is_log)


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """The shape of a curve in one line of characters."""
    if not values:
        return ""
    count = min(width, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(map(bounded, part)) / len(part) for part in parts]
    low, high = min(means), max(means)
    step = (high - low) / (len(_SPARKS) - 1) or 1.0
    return "".join(_SPARKS[round((mean - low) / step)] for mean in means)


def _headline(run: RunRecord) -> str:
    parts = [run.status or "unknown", run.message, run.labels]
    return ": ".join(part for part in parts[:2] if part) + (f" · {run.labels}" if run.labels else "")


def _parts(run: RunRecord) -> list[Part]:
    facts = summarise(run)
    parts = [Part(heads=("", ""), rows=tuple(_fact_rows(run, facts)))]
    parts += [
        Part(title=title, metric=metric, unit=unit)
        for metric, title, unit in PICTURES
        if curve(run, metric, "iteration")
    ]
    if validation := curve(run, "validation_loss", "iteration"):
        rows = tuple((f"{place:.0f}", f"{value:.4f}") for place, value in validation[-12:])
        parts.append(Part(title="Validation", heads=("iteration", "validation loss"), rows=rows))
    parts += _event_parts(run)
    changed = differing_settings([RunRecord(name="", settings=Settings(), records=()), run])
    rows = tuple((key, str(values[1])) for key, values in changed)
    return [*parts, Part(title="Settings that are not the default", heads=("setting", "value"), rows=rows)]


def _fact_rows(run: RunRecord, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    training = run.settings.training
    tokens = facts["iterations"] * training.global_batch * training.sequence_length
    rows = [
        ("model", run.settings.model.name),
        ("iterations", f"{facts['iterations']:,} of {training.iterations:,}"),
        ("tokens", f"{tokens:,}"),
        ("loss", _arrow(facts["first_loss"], facts["last_loss"])),
        ("validation loss", _arrow(facts["first_validation_loss"], facts["validation_loss"])),
        ("median iteration", _text(facts["iteration_s"], ".3f", " s")),
        ("median throughput", _text(facts["tokens_per_s"], ",.0f", " tokens/s")),
        ("peak memory of a rank", _text(facts["memory_gib"], ".2f", " GiB")),
        ("time at work", _text(facts["training_s"], ",.0f", " s")),
        ("checkpoints", str(facts["checkpoints"])),
        ("restarts", str(facts["restarts"])),
        ("directory", run.directory),
    ]
    rows += [(f"{one.name}, planned", f"{one.planned:,.4g} {one.unit}: {one.ratio:.0%} measured") for one in run.beside]
    return [(name, text) for name, text in rows if text]


def _event_parts(run: RunRecord) -> list[Part]:
    alerts = [record for record in run.records if record.get("kind") == "alert"]
    steps = [record for record in run.records if str(record.get("kind", "")).startswith(("step-", "restart"))]
    parts: list[Part] = []
    if steps:
        items = tuple(f"{_clock(record)} {record.get('message', '')}" for record in steps)
        parts.append(Part(title="What happened", items=items))
    if alerts:
        rows = tuple(
            (_clock(record), str(record.get("iteration") or ""), str(record.get("message", "")),
             str(record.get("evidence", "")))
            for record in alerts
        )  # fmt: skip
        parts.append(Part(title="Alerts", heads=("when", "iteration", "what", "evidence"), rows=rows))
    return parts


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells) + "</tr>"


def _plain(text: str) -> str:
    """`text` as Markdown shows it, in one line: a path or a message may hold any character."""
    return _MARKDOWN.sub(r"\\\1", visible.clean(secrets.redact(text)).replace("\n", " "))


def _escaped(text: str) -> str:
    """`text` as HTML shows it."""
    return escape(visible.clean(secrets.redact(text)))


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 600 else f"{minutes // 60}:{minutes % 60:02d} h"


def _clock(record: Record) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["t"]))
    except (OverflowError, ValueError, OSError):
        return "?"  # no time that this machine's calendar has


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _arrow(first: float | None, last: float | None) -> str:
    return "" if first is None or last is None else f"{first:.4f} → {last:.4f}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; color: #20262c; max-width: 800px; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 0.5rem 0; }}
td, th {{ text-align: left; padding: 0.15rem 1.2rem 0.15rem 0; border-bottom: 1px solid #e3e7ea; }}
td {{ overflow-wrap: anywhere; }}
svg {{ display: block; max-width: 100%; height: auto; margin: 1rem 0; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
