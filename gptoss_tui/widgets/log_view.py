"""A log of any size: follows its end, scrolls both ways, searches by regular expression."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from textual import events
from textual.binding import Binding
from textual.message import Message

from gptoss_tui import words
from gptoss_tui.log_file import LogFile
from gptoss_tui.widgets.canvas import Canvas, Row, Span, heading

POLL_S = 1.0
SIDEWAYS_CELLS = 16

_BAD = re.compile(r"error|traceback|exception|fatal|out of memory|\bnan\b", re.IGNORECASE)
_WARNING = re.compile(r"\bwarn", re.IGNORECASE)
# Megatron counts them on every line, mostly as zero.
_COUNTERS = re.compile(r"number of (?:nan|skipped) iterations:\s+\d+")


class LogView(Canvas, can_focus=True):
    """The lines of one file, with their place in it in the heading."""

    BINDINGS = [
        Binding("up", "scroll(-1)", "Line up", show=False),
        Binding("down", "scroll(1)", "Line down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown,space", "page(1)", "Page down", show=False),
        Binding("home", "to_start", "First line", show=False),
        Binding("end,f", "follow", "Follow the end", show=False),
        Binding("left", "sideways(-1)", "Left", show=False),
        Binding("right", "sideways(1)", "Right", show=False),
        Binding("n", "find(1)", "Next match"),
        Binding("N", "find(-1)", "Match before", show=False),
        Binding("escape", "end_search", "End search", show=False),
    ]

    class NotFound(Message):
        """A search came to the end without a match."""

        def __init__(self, pattern: str) -> None:
            super().__init__()
            self.pattern = pattern

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._file: LogFile | None = None
        self._title = "log"
        self._top = 0
        self._left = 0
        self.is_following = True
        self._pattern: re.Pattern[bytes] | None = None
        self._shown_pattern: re.Pattern[str] | None = None
        self.match_line: int | None = None
        """The line of the match that was jumped to last."""

    def show(self, path: Path | None, title: str) -> None:
        """Show another file from its end; None shows that there is none."""
        if self._file is not None:
            self._file.close()
        self._file = LogFile(path) if path is not None else None
        self._title = title
        self._top = self._left = 0
        self.match_line = None
        self.is_following = True
        self.poll()

    @property
    def path(self) -> Path | None:
        return self._file.path if self._file is not None else None

    def on_mount(self) -> None:
        self.set_interval(POLL_S, self.poll)

    def on_unmount(self) -> None:
        if self._file is not None:
            self._file.close()

    def on_resize(self) -> None:
        self._redraw()

    def on_focus(self) -> None:
        self._redraw()

    def on_blur(self) -> None:
        self._redraw()

    def poll(self) -> None:
        """Take in what was appended; a large file is taken in pieces, so that keys are answered."""
        if self._file is None:
            self._redraw()
            return
        if self._file.update():
            self._redraw()
        if self._file.is_behind:
            self.call_later(self.poll)

    def set_search(self, text: str) -> str:
        """Search for the regular expression `text`; returns what is wrong with it, or nothing."""
        if not text:
            self.action_end_search()
            return ""
        try:
            self._pattern = re.compile(text.encode(), re.MULTILINE)
            self._shown_pattern = re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            return f"{words.shorten(text, 40)!r} is no regular expression: {error}"
        self.match_line = None
        self.action_find(-1)
        return ""

    def action_end_search(self) -> None:
        self._pattern = self._shown_pattern = None
        self.match_line = None
        self._redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._pattern is not None if action in ("find", "end_search") else True

    def action_find(self, direction: int) -> None:
        if self._pattern is not None and self._file is not None:
            self.run_worker(self._find(self._file, self._pattern, direction), exclusive=True, group="search")

    async def _find(self, file: LogFile, pattern: re.Pattern[bytes], direction: int) -> None:
        if self.match_line is None:
            start = self._top + self._page - 1 if direction < 0 else self._top
        else:
            start = self.match_line + direction
        for line in file.search(pattern, start, backwards=direction < 0):
            if line is None:
                await asyncio.sleep(0)
            else:
                self._jump_to(line)
                return
        self.post_message(self.NotFound(pattern.pattern.decode("utf-8", "replace")))

    def _jump_to(self, line: int) -> None:
        self.match_line = line
        self.is_following = False
        if not self._top <= line < self._top + self._page:
            self._top = max(0, line - self._page // 2)
        self._redraw()
        self.refresh_bindings()

    def action_scroll(self, lines: int) -> None:
        last_top = self._last_top
        self._top = min(last_top, max(0, self._top + lines))
        self.is_following = self._top >= last_top and lines > 0
        self._redraw()

    def action_page(self, pages: int) -> None:
        self.action_scroll(pages * max(1, self._page - 1))

    def action_to_start(self) -> None:
        self._left = 0
        self.action_scroll(-self._line_count)

    def action_follow(self) -> None:
        self._left = 0
        self.is_following = True
        self._redraw()

    def action_sideways(self, direction: int) -> None:
        self._left = max(0, self._left + direction * SIDEWAYS_CELLS)
        self._redraw()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_scroll(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_scroll(3)

    @property
    def _page(self) -> int:
        return max(1, self.content_size.height - 1)

    @property
    def _line_count(self) -> int:
        return len(self._file) if self._file is not None else 0

    @property
    def _last_top(self) -> int:
        return max(0, self._line_count - self._page)

    def _redraw(self) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        if self.is_following or self._top > self._last_top:
            self._top = self._last_top
        rows: list[Row] = [self._heading(width)]
        for number in range(self._top, min(self._line_count, self._top + height - 1)):
            assert self._file is not None
            rows.append(self._row(self._file.line(number), number, width))
        if len(rows) == 1 and height > 2:
            rows += [(), (("nothing written yet".center(width), "muted"),)]
        rows += [()] * (height - len(rows))
        self.paint(rows)

    def _heading(self, width: int) -> Row:
        right: list[Span] = []
        if self._shown_pattern is not None:
            right.append((f"/{words.shorten(self._shown_pattern.pattern, 20)}/  ", "mark"))
        if self._left:
            right.append((f"column {self._left + 1}  ", "muted"))
        if self.is_following:
            right.append(("following", "muted"))
        elif self._line_count:
            last = min(self._line_count, self._top + self._page)
            right.append((f"{self._top + 1:,}–{last:,} of {self._line_count:,}", "muted"))
        return heading(self._title, tuple(right), width, is_focused=self.has_focus)

    def _row(self, text: str, number: int, width: int) -> Row:
        style = "text"
        counted = _COUNTERS.sub("", text)
        if _BAD.search(counted):
            style = "bad"
        elif _WARNING.search(counted):
            style = "warning"
        spans = self._with_matches(text, style) if self._shown_pattern else [(text, style)]
        if number == self.match_line:
            spans = [(part, "selected" if part_style == style else part_style) for part, part_style in spans]
        return _window(spans, self._left, width)

    def _with_matches(self, text: str, style: str) -> list[Span]:
        assert self._shown_pattern is not None
        spans: list[Span] = []
        position = 0
        for match in self._shown_pattern.finditer(text):
            if match.end() > match.start():
                spans += [(text[position : match.start()], style), (match.group(), "cursor")]
                position = match.end()
        return [*spans, (text[position:], style)]


def _window(spans: list[Span], left: int, width: int) -> Row:
    """The cells `left`..`left + width` of a row, with an arrow where something is cut off."""
    row: list[Span] = []
    position = 0
    for text, style in spans:
        part = text[max(0, left - position) : max(0, left + width - position)]
        if part:
            row.append((part, style))
        position += len(text)
    if position > left + width and row:
        row[-1] = (row[-1][0][:-1], row[-1][1])
        row.append(("›", "muted"))
    return tuple(row)
