"""Words from a file, a log or another program, as they are shown and written down."""

from __future__ import annotations

import io
import sys

import pytest

from engine import visible
from engine.cli import output
from engine.monitor import report
from engine.monitor.history import RunRecord, to_csv
from engine.settings import Settings

EVIL = "\x1b]52;c;aGk=\x07 \x9b2J \x1bP \u202e \u2066 \u200b \ufeff \udc80 \r"


@pytest.mark.parametrize("letter", [*EVIL.replace(" ", ""), "\x7f", "\x00", "\u2028", "\U000e0041", "\u061c"])
def test_what_is_more_than_seen_is_marked(letter: str) -> None:
    if not letter.isalnum() and letter not in "];=":
        assert visible.clean(f"a{letter}b") == "a�b"


@pytest.mark.parametrize("text", ["plain", "a\tb\nc", "Über", "क्षि", "👩\u200d🚀", "می\u200cخواهم", "Việt\u0323", "表"])
def test_languages_are_left_alone(text: str) -> None:
    assert visible.clean(text) == text


def test_a_flood_of_accents_ends() -> None:
    assert visible.clean("a" + "\u0301" * 500 + "b") == "a" + "\u0301" * 4 + "b"


def test_half_surrogates_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's name that is no UTF-8 comes with them, and JSON may hold them."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="utf-8", write_through=True))
    output.print_error("there is no run b\udcff", "list \ud800")
    assert written.getvalue().decode() == "gptoss: there is no run b�\n        list �\n"


def _page(words: str) -> RunRecord:
    alert = {"t": 1.0, "kind": "alert", "message": words, "evidence": words, "iteration": words}
    return RunRecord(name="night", settings=Settings(), records=(alert,), message=words, labels=words, directory=words)


def test_a_page_is_free_of_what_drives_a_terminal() -> None:
    for page in (report.to_markdown(_page(EVIL)), report.to_html(_page(EVIL))):
        assert page == visible.clean(page) and "]52" in page


def test_words_stay_words_in_markdown_and_html() -> None:
    words = "<script>alert(1)</script>\r\r# head | x | [a](http://x) ![b](http://y) &#60;i> ~~z~~ `c` $d$"
    html = report.to_html(_page(words))
    assert "<script" not in html and "&amp;#60;" in html
    markdown = report.to_markdown(_page(words))
    for token in ("<script", "[a]", "| x |", "&#", "~~", "`c`", "$d"):
        assert token not in markdown.replace("\\" + token[0], "")
    assert not [line for line in markdown.splitlines() if line.startswith("# head")]


def test_a_table_holds_no_formula() -> None:
    """Names of metrics come from the run's files; a spreadsheet carries out what begins with one of =+-@."""
    records = (
        {"t": 1.0, "iteration": 1, "loss": 2.5, "=1+1": 1.0, "@x": 2.0, "source": "=2", "-cmd|x": -3.0, "note": "=3"},
        {"t": 2.0, "iteration": 2, "loss": "=HYPERLINK(1)", "grad_norm": -1.5},
    )
    table = to_csv(RunRecord(name="night", settings=Settings(), records=records))
    cells = [cell.strip('"') for line in table.splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell[:1] in tuple("=+@\t\r")]
    assert [cell for cell in cells if cell.startswith("-")] == ["-3.0", "-1.5"]
