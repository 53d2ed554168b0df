"""The verbs about past runs: report, compare, label."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from engine import settings_file
from engine.cli import output
from engine.errors import ExitCode, RunError, SettingsError
from engine.monitor import exports, history, labels
from engine.monitor import report as page
from engine.monitor.alert import number
from engine.monitor.history import Beside, RunRecord
from engine.monitor.measured import beside_plan, measure
from engine.monitor.metrics import Record
from engine.run import start
from engine.run.directory import RunDirectory, read_records


def report(arguments: argparse.Namespace) -> int:
    """Print one run as a page of Markdown, or write it and its metrics as files."""
    takes_stdout = output.goes_to_stdout(arguments, "metrics", "picture", "output")
    run = load(arguments.run)
    if arguments.metrics == output.STDOUT:
        output.write_out(history.to_csv(run))
    elif arguments.metrics:
        exports.write_metrics(run, Path(arguments.metrics))
    if arguments.picture:
        _need_metric([run], arguments.metric)
        _write_picture(page.picture([run], arguments.metric, "iteration"), arguments.picture)
    if arguments.json:
        output.print_json(history.summarise(run))
    elif arguments.output == output.STDOUT:
        output.write_out(page.to_markdown(run))
    elif arguments.output:
        path = Path(arguments.output)
        exports.write(path, page.to_html(run) if path.suffix in (".html", ".htm") else page.to_markdown(run))
    elif not takes_stdout:
        print(output.clean(page.to_markdown(run)), end="")
    return ExitCode.DONE


def _write_picture(svg: str, name: str) -> None:
    if name == output.STDOUT:
        output.write_out(svg)
    else:
        exports.write_picture(svg, Path(name))


def compare(arguments: argparse.Namespace) -> int:
    """Print one metric of several runs side by side, and the settings in which they differ."""
    takes_stdout = output.goes_to_stdout(arguments, "picture")
    runs = [load(reference) for reference in arguments.runs]
    rows = history.compare(runs, arguments.metric, arguments.by, arguments.rows)
    _need_metric(runs, arguments.metric)
    if arguments.picture:
        _write_picture(page.picture(runs, arguments.metric, arguments.by), arguments.picture)
    if takes_stdout:
        return ExitCode.DONE
    differing = history.differing_settings(runs)
    names = [run.name for run in runs]
    if arguments.json:
        output.print_json({
            "by": arguments.by,
            "metric": arguments.metric,
            "runs": [history.summarise(run) for run in runs],
            "rows": [{arguments.by: row[0], "values": row[1:]} for row in rows],
            "settings": dict(differing),
        })  # fmt: skip
        return ExitCode.DONE
    cells = [
        [f"{row[0]:,.0f}", *("" if v is None else f"{v:.4f}" for v in row[1:])] for row in rows if row[0] is not None
    ]
    print(output.clean(output.table(cells, (arguments.by.upper(), *names))))
    if differing:
        print()
        lines = [[key, *(str(value) for value in values)] for key, values in differing]
        print(output.clean(output.table(lines, ("SETTING", *names))))
    return ExitCode.DONE


def label(arguments: argparse.Namespace) -> int:
    """Change the labels of a run, and print them."""
    run = start.find(arguments.run)
    found = labels.read(run.path).with_tags(arguments.add, arguments.remove)
    if arguments.note is not None:
        found = found.with_note(arguments.note)
    if arguments.archive is not None:
        found = replace(found, is_archived=arguments.archive)
    if found != labels.read(run.path):
        labels.write(run.path, found)
    if arguments.json:
        output.print_json({"run": run.name, **asdict(found)})
    else:
        print(output.clean(f"{run.name}: {found.text or 'no labels'}{' (archived)' if found.is_archived else ''}"))
    return ExitCode.DONE


def load(reference: str) -> RunRecord:
    """A run by name, path or `last`, with all its records."""
    run = start.find(reference)
    state = run.read_state().observed()
    records = [record for path in (run.events, run.metrics) for record in read_records(path)]
    known = [record for record in records if isinstance(record.get("t"), (int, float))]
    return RunRecord(
        name=run.name,
        settings=settings_file.load(run.settings),
        records=tuple(sorted(known, key=lambda record: record["t"])),
        status=state.status.value,
        message=state.message,
        directory=str(run.path),
        labels=labels.read(run.path).text,
        beside=_beside(run, known),
    )


def _beside(run: RunDirectory, records: Sequence[Record]) -> tuple[Beside, ...]:
    measured = measure(records)
    try:
        return beside_plan(measured, run.read_plan()) if measured else ()
    except RunError:  # a run that was copied in part
        return ()


def _need_metric(runs: Sequence[RunRecord], metric: str) -> None:
    """Raise SettingsError when no run has a number of that name."""
    if not any(number(record, metric) is not None for run in runs for record in run.records):
        known = sorted({name for run in runs for record in run.records for name in record if "kind" not in record})
        hint = f"there are: {', '.join(known)}" if known else "nothing was measured yet: look at it with gptoss attach"
        raise SettingsError(f"no run has the metric {metric!r}", hint)
