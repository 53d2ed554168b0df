"""The last things that happened to a run, the newest at the bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gptoss_tui import words
from gptoss_tui.log_file import readable
from gptoss_tui.widgets.canvas import Canvas, Row, heading

_STYLES = {
    "step-failed": "bad",
    "failed": "bad",
    "killing": "bad",
    "restart": "warning",
    "stopping": "warning",
    "stopped": "warning",
    "step-stopped": "warning",
    "finished": "good",
    "step-finished": "good",
    "checkpoint": "accent",
    "measured": "accent",
}
_SEVERITIES = {"error": "bad", "warning": "warning"}


class Events(Canvas):
    """As many events as there is room for."""

    def show(self, events: Sequence[dict[str, Any]]) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        room = height - 1
        rows = [heading("events", (), width)]
        rows += [self._row(event, width) for event in list(events)[-room:]] if room else []
        self.paint(rows[:height] + [()] * (height - len(rows)))

    @staticmethod
    def _row(event: dict[str, Any], width: int) -> Row:
        t = event.get("t")
        moment = time.strftime("%H:%M:%S", time.localtime(t)) if isinstance(t, (int, float)) else " " * 8
        message = readable(str(event.get("message", "")).replace("\n", " "))
        style = _STYLES.get(str(event.get("kind"))) or _SEVERITIES.get(str(event.get("severity")), "text")
        return ((f"{moment} ", "muted"), (words.shorten(message, width - 9), style))
