"""The table of docs/reliability.md: `python -m tests.faults.table` writes it from the catalogue and the record.

The record says what the last `make faults` came to; it is written by `pytest --record-faults`.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from tests.faults.catalogue import ALL, Fault

RECORD = Path(__file__).with_name("recorded.json")
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->\n", "<!-- faults: end -->"
TIERS = ("double", "rehearsal")

type Record = dict[str, dict[str, dict[str, str]]]
"""Fault, then tier, then test: how it ended."""


def note(key: str, tier: str, test: str, outcome: str) -> None:
    """Note how a test of a fault ended; the others keep what is known of them."""
    with RECORD.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _note(key, tier, test, outcome)


def _note(key: str, tier: str, test: str, outcome: str) -> None:
    record = read_record()
    record.setdefault(key, {}).setdefault(tier, {})[test] = outcome
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_record() -> Record:
    text = RECORD.read_text() if RECORD.exists() else ""
    return json.loads(text) if text else {}


def render() -> str:
    """The table as Markdown."""
    record = read_record()
    lines = [
        "| Fault | What becomes of the run | It says | With the double | In the rehearsal |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(fault, record.get(fault.key, {})) for fault in ALL]
    return "\n".join(lines) + "\n"


def _row(fault: Fault, record: dict[str, dict[str, str]]) -> str:
    cells = [_cell(record.get(tier, {})) for tier in TIERS]
    seen = f"“… {fault.seen} …”" if fault.seen else ""
    return f"| {fault.what} | {fault.then} | {seen} | {cells[0]} | {cells[1]} |"


def _cell(outcomes: dict[str, str]) -> str:
    tried = [outcome for outcome in outcomes.values() if outcome != "skipped"]
    return f"{tried.count('passed')} of {len(tried)}" if tried else "not run"


def write() -> None:
    """Replace the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + render() + END + after, encoding="utf-8")


if __name__ == "__main__":
    write()
