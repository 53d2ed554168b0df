"""The verbs about past runs: report, compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import settings_file
from engine.cli import output
from engine.errors import ExitCode, SettingsError
from engine.monitor import history
from engine.monitor.history import RunRecord
from engine.run import start
from engine.run.directory import read_records


def report(arguments: argparse.Namespace) -> int:
    """Print one run as a page of Markdown; write its metrics as CSV when asked to."""
    run = load(arguments.run)
    if arguments.csv:
        _write(Path(arguments.csv), history.to_csv(run))
    if arguments.json:
        output.print_json(history.summarise(run))
    elif arguments.output:
        _write(Path(arguments.output), history.to_markdown(run))
    else:
        print(history.to_markdown(run), end="")
    return ExitCode.DONE


def compare(arguments: argparse.Namespace) -> int:
    """Print one metric of several runs side by side, and the settings in which they differ."""
    runs = [load(reference) for reference in arguments.runs]
    rows = history.compare(runs, arguments.metric, arguments.by, arguments.rows)
    if not rows:
        known = sorted({name for run in runs for record in run.records for name in record if "kind" not in record})
        raise SettingsError(f"no run has the metric {arguments.metric!r}", "there are: " + ", ".join(known))
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
        results=state.results,
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}", "choose another file") from error
