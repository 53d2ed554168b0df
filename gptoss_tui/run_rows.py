"""A run as one line of a list: shape and word of its state, name, how far, loss, when."""

from __future__ import annotations

from engine.run.state import Status
from gptoss_tui import words
from gptoss_tui.feed import Overview
from gptoss_tui.widgets.canvas import Row, cut, fill, width_of
from gptoss_tui.widgets.choices import Item
from gptoss_tui.widgets.steps import status_spans


def run_item(one: Overview, width: int, now: float, *, is_marked: bool = False) -> Item:
    """The line for `one`, in at most `width` cells; its labels give way first, then its name."""
    state = one.state
    shape, word = status_spans(state.status)
    mark: Row = (("◆ ", "mark"),) if is_marked else ()
    left: Row = (*mark, shape, (f"{word[0]:<9}", word[1]), ("  ", ""))
    loss = "" if one.loss is None else words.number(one.loss)
    right: Row = (
        (f"{_how_far(one):>16}", "muted"),
        (f"{loss:>8}", "text"),
        (f"{words.age(max(0.0, now - one.changed)):>12} ", "muted"),
    )
    room = width - width_of(left) - width_of(right) - 1
    name: Row = ((words.shorten(one.run.name, room), "strong" if state.status.is_live else "text"),)
    if tags := " ".join(f"#{tag}" for tag in one.labels.tags):
        free = room - width_of(name) - 2
        name = (*name, (f"  {words.shorten(tags, free)}", "mark")) if free > 3 else name
    return Item(one.run.name, cut(fill((*left, *name), right, width), width))


def _how_far(one: Overview) -> str:
    state = one.state
    if state.status is Status.FINISHED:
        return f"{one.iterations:,} it" if one.iterations else ""
    if state.step == "train" and one.iterations:
        return f"{words.count(state.iteration)} / {words.count(one.iterations)} it"
    return state.step
