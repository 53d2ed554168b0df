"""Text from elsewhere cannot drive the terminal, whichever part of a screen shows it."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color

from engine.monitor import labels
from gptoss_tui.glyphs import VisibleFilter
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.runs import RunsScreen
from tests.tui.doubles import a_full_run, preset, until

EVIL = (
    "evil\x1b]0;title\x07\x1b]52;c;aGk=\x07\x1b]8;;http://x\x07\x9b2J\x1bPq\x1b\\"
    "\u202eab\u2066c\u200bd\udc80" + "\u0301" * 40
)
OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""The sequences that a picture is drawn with: places, colours, modes."""


def picture(app) -> str:
    """What is written to the terminal to draw the screen anew."""
    update = app.screen._compositor.render_update(full=True)
    return update.render_segments(app.console) if update is not None else ""


def hidden(text: str) -> set[str]:
    """Characters of a picture that do more than be seen."""
    rest = OWN.sub("", text)
    return {letter for letter in rest if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in "\n\r"}


async def test_nothing_in_a_run_reaches_the_terminal(make_app, runs_root):
    fake = a_full_run(runs_root)
    fake.event("alert", EVIL, severity="error", evidence=EVIL, cause=EVIL, next_step=EVIL)
    fake.event("note", f"{EVIL} [/red] [@click=app.quit]x[/]")
    fake.log(f"{EVIL[:-41]}\n" * 40, rank=1)
    fake.put(message=EVIL)
    app = make_app(lambda: MonitorScreen(fake.run))
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await until(pilot, lambda: "evil" in picture(app), 60)
        app.notify(f"[/x] {EVIL}", title=EVIL)
        app.screen.notify(f"[/x] {EVIL}")
        await until(pilot, lambda: "[/x]" in picture(app), 60)
        assert not hidden(picture(app))


async def test_nothing_in_a_list_of_runs_reaches_the_terminal(make_app, runs_root):
    fake = a_full_run(runs_root)
    (fake.run.path / labels.FILE_NAME).write_text(json.dumps({"tags": [], "note": EVIL, "is_archived": False}))
    fake.put(message=EVIL)
    app = make_app(RunsScreen)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: "evil" in picture(app), 60)
        assert not hidden(picture(app))


async def test_nothing_in_a_preset_reaches_the_terminal(make_app, services):
    services.presets = lambda: (preset(EVIL, EVIL, {}),)
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: "evil" in picture(app), 60)
        assert not hidden(picture(app))


@pytest.mark.parametrize("text", [EVIL, "\x1b", "a\u0301\u0302b", "表 ⣿ é", "\udc80\udfff", "क्षि", "👩‍🚀", "\x00" * 9])
def test_what_is_taken_out_moves_nothing(text):
    [[cleaned, _, _]] = VisibleFilter().apply([Segment(text)], Color(0, 0, 0))
    assert cell_len(cleaned) == cell_len(text)
    assert not hidden(cleaned.replace("\u200d", ""))


def test_what_draws_the_picture_itself_is_left_alone():
    control = Segment("\x1b[1;1H", None, [(1,)])
    assert VisibleFilter().apply([control, Segment("plain")], Color(0, 0, 0)) == [control, Segment("plain")]
