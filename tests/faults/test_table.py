"""The table of docs/reliability.md is what the suite makes of its catalogue and its record."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults import table
from tests.faults.catalogue import ALL, BY_KEY


def test_the_table_is_current():
    """Otherwise: python -m tests.faults.table"""
    assert table.BEGIN + table.render() + table.END in table.PAGE.read_text(encoding="utf-8")


def test_every_fault_has_one_entry_and_a_test():
    assert len(BY_KEY) == len(ALL)
    marked = {key for path in Path(__file__).parent.glob("test_*.py") for key in _marked(path)}
    signals = {fault.key for fault in ALL if hasattr(fault, "number")}
    assert marked | signals == set(BY_KEY)


def _marked(path: Path) -> set[str]:
    """The keys in the `pytest.mark.fault("KEY")` of a module."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    marks = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "fault")
    return {mark.args[0].value for mark in marks if isinstance(mark.args[0], ast.Constant)}


def test_what_was_recorded_belongs_to_the_catalogue():
    assert table.read_record().keys() <= BY_KEY.keys()
