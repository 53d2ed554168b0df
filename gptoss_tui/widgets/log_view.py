"""A log of any size: follows its end, scrolls, searches by regular expression, narrows to what went wrong."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.timer import Timer

from engine.patience import NoAnswer, Patient
from gptoss_tui import words
from gptoss_tui.log_file import DISK_S, LineFilter, Lines, LogFile
from gptoss_tui.log_lines import BAD, PATTERNS, WARN, Level
from gptoss_tui.log_merged import MergedLog
from gptoss_tui.widgets.canvas import Canvas, Row, Span, heading, take

PIECE_S = 0.01
"""Between two pieces of a long file, so that keys and charts get their turn."""
SIDEWAYS_CELLS = 16
_KEPT_LINES = 1000
"""As drawn; more than any terminal shows."""


class _Look(NamedTuple):
    """All that the rows of a line depend on, but for its file, of which only whole lines are kept."""

    generation: int
    number: int
    width: int
    left: int
    is_wrapped: bool
    pattern: re.Pattern[str] | None
    is_match: bool


class LogView(Canvas, can_focus=True):
    """The lines of one file, or of several in one order, with their place in the heading."""

    BINDINGS = [
        Binding("up,k", "scroll(-1)", "Line up", show=False, id="log.up"),
        Binding("down,j", "scroll(1)", "Line down", show=False, id="log.down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="log.page-up"),
        Binding("pagedown,space", "page(1)", "Page down", show=False, id="log.page-down"),
        Binding("home,g", "to_start", "First line", show=False, id="log.first"),
        Binding("end,f,G", "follow", "Follow the end", show=False, id="log.follow"),
        Binding("left", "sideways(-1)", "Left", show=False, id="log.left"),
        Binding("right", "sideways(1)", "Right", show=False, id="log.right"),
        Binding("n", "find(1)", "Next match", id="log.next-match"),
        Binding("N", "find(-1)", "Match before", show=False, id="log.match-before"),
        Binding("e", "first_error", "First error", show=False, id="log.first-error"),
        Binding("v", "next_level", "Errors only", show=False, id="log.level"),
        Binding("w", "wrap", "Wrap lines", show=False, id="log.wrap"),
        Binding("y", "copy", "Copy what is shown", show=False, id="log.copy"),
        Binding("x", "export", "Save as a file", show=False, id="log.export"),
        Binding("escape", "end_search", "End search", show=False, id="log.end-search"),
    ]

    class NotFound(Message):
        """A search came to the end without a match."""

        def __init__(self, pattern: str) -> None:
            super().__init__()
            self.pattern = pattern

    class Copied(Message):
        """Lines were sent to the terminal's clipboard."""

        def __init__(self, lines: int) -> None:
            super().__init__()
            self.lines = lines

    class ExportWanted(Message):
        """The lines that are left after narrowing are to be written to a file."""

        def __init__(self, paths: tuple[Path, ...], level: Level) -> None:
            super().__init__()
            self.paths = paths
            self.level = level

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._file: Lines | None = None
        self._disk = Patient(DISK_S)
        self.paths: tuple[Path, ...] = ()
        """The files that are shown."""
        self._title = "log"
        self._next_piece: Timer | None = None
        self._top = 0
        self._left = 0
        self.is_following = True
        self.is_wrapped = False
        self.level = Level.ALL
        self._filter: LineFilter | None = None
        self._pattern: re.Pattern[bytes] | None = None
        self._shown_pattern: re.Pattern[str] | None = None
        self._drawn: dict[_Look, list[Row]] = {}
        """Lines that were drawn of late: most of what follows a log moves up and stays as it was."""
        self.match_line: int | None = None
        """The line of the match that was jumped to last."""

    def show(self, paths: tuple[Path, ...], title: str) -> None:
        """Show another file, or several as one, from the end; no path shows that there is none."""
        if self._file is not None:
            self._file.close()
        self.paths = paths
        self._file = (
            LogFile(paths[0], self._disk) if len(paths) == 1 else MergedLog(paths, self._disk) if paths else None
        )
        self._title = title
        self._left = 0
        self._drawn = {}
        self.match_line = None
        self._start_filter()
        self.poll()
        if self._file is not None and not len(self._file):
            self.redraw()  # what is not there, or does not answer, is nothing new; the log before must not stay

    def on_unmount(self) -> None:
        if self._file is not None:
            self._file.close()
        self._disk.close()

    def poll(self) -> None:
        """Take in what was appended; a large file is taken in pieces, so that keys are answered.

        The screen calls it about once a second.
        """
        if self._file is None:
            self.redraw()
            return
        is_new = self._file.update()
        is_filtered = self._filter is not None and self._filter.update()
        # A long file is drawn when it is known to its end; until then only so that something is there.
        if (is_new or is_filtered) and (not self._file.is_behind or not self._rows):
            self.redraw()
        # One at a time: a file of many gigabytes is polled from elsewhere too while its pieces are taken in.
        if self._next_piece is not None:
            self._next_piece.stop()
        is_more = (self._file.is_behind or is_filtered) and not self._disk.is_waiting
        self._next_piece = self.set_timer(PIECE_S, self.poll) if is_more else None

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
        self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._pattern is not None if action in ("find", "end_search") else True

    def action_find(self, direction: int) -> None:
        if self._pattern is None or self._file is None:
            return
        if self.match_line is not None:
            start = self.match_line + direction
        else:
            rows = range(self._top, min(self._row_count, self._top + self._page))
            start = self._number_at(rows[-1] if direction < 0 else rows[0]) if rows else 0
        self._search(self._file, self._pattern, start, direction)

    def action_first_error(self) -> None:
        if self._file is not None:
            self._search(self._file, PATTERNS[Level.ERRORS], 0, 1)

    def _search(self, file: Lines, pattern: re.Pattern[bytes], start: int, direction: int) -> None:
        self.run_worker(self._find(file, pattern, start, direction), exclusive=True, group="search")

    async def _find(self, file: Lines, pattern: re.Pattern[bytes], start: int, direction: int) -> None:
        with suppress(NoAnswer):
            for line in file.search(pattern, start, backwards=direction < 0):
                if line is None:
                    await asyncio.sleep(0)
                elif (row := self._row_of(line)) is not None:
                    self._jump_to(line, row)
                    return
        is_error = pattern is PATTERNS[Level.ERRORS]
        self.post_message(self.NotFound("an error" if is_error else repr(pattern.pattern.decode("utf-8", "replace"))))

    def _jump_to(self, line: int, row: int) -> None:
        self.match_line = line
        self.is_following = False
        if not self._top <= row < self._top + self._page:
            self._top = max(0, row - self._page // 2)
        self.redraw()
        self.refresh_bindings()

    def action_scroll(self, lines: int) -> None:
        last_top = self._last_top
        self._top = min(last_top, max(0, self._top + lines))
        self.is_following = self._top >= last_top and lines > 0
        self.redraw()

    def action_page(self, pages: int) -> None:
        self.action_scroll(pages * max(1, self._page - 1))

    def action_to_start(self) -> None:
        self._left = 0
        self.action_scroll(-self._row_count)

    def action_follow(self) -> None:
        self._left = 0
        self.is_following = True
        self.redraw()

    def action_sideways(self, direction: int) -> None:
        self._left = max(0, self._left + direction * SIDEWAYS_CELLS)
        self.redraw()

    def action_wrap(self) -> None:
        self.is_wrapped = not self.is_wrapped
        self._left = 0
        self.redraw()

    def action_next_level(self) -> None:
        levels = list(Level)
        self.level = levels[(levels.index(self.level) + 1) % len(levels)]
        self._start_filter()
        self.poll()
        self.redraw()

    def action_copy(self) -> None:
        """To the clipboard of the person's own terminal, through ssh and tmux (OSC 52)."""
        rows = range(self._top, min(self._row_count, self._top + self._page))
        if self._file is not None and rows:
            self.app.copy_to_clipboard("".join(f"{self._text(self._number_at(row))}\n" for row in rows))
            self.post_message(self.Copied(len(rows)))

    def action_export(self) -> None:
        if self._file is not None:
            self.post_message(self.ExportWanted(self.paths, self.level))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_scroll(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_scroll(3)

    def _start_filter(self) -> None:
        is_narrow = self.level is not Level.ALL and self._file is not None
        self._filter = LineFilter(self._file, PATTERNS[self.level]) if is_narrow and self._file else None
        self._top = 0
        self.is_following = True

    def _text(self, number: int) -> str:
        assert self._file is not None
        return self._file.label(number) + self._file.line(number)

    @property
    def _page(self) -> int:
        return max(1, self.content_size.height - 1)

    @property
    def _row_count(self) -> int:
        """Lines that can be scrolled through."""
        if self._filter is not None:
            return len(self._filter.numbers)
        return len(self._file) if self._file is not None else 0

    def _number_at(self, row: int) -> int:
        return self._filter.numbers[row] if self._filter is not None else row

    def _row_of(self, number: int) -> int | None:
        return self._filter.row_of(number) if self._filter is not None else number

    @property
    def _last_top(self) -> int:
        return max(0, self._row_count - (1 if self.is_wrapped else self._page))

    def redraw(self) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        if len(self._drawn) > _KEPT_LINES:
            self._drawn = {}
        body = self._body(width, height - 1)
        rows: list[Row] = [self._heading(width), *body]
        if not body and height > 2 and self._file is not None:
            empty = f"no {self.level.value} here" if self._filter is not None else "nothing written yet"
            rows += [(), ((empty.center(width), "muted"),)]
        rows += [()] * (height - len(rows))
        self.paint(rows[:height])

    def _body(self, width: int, height: int) -> list[Row]:
        count = self._row_count
        if self.is_following and self.is_wrapped:
            blocks: list[Row] = []
            self._top = count
            while self._top > 0 and len(blocks) < height:
                self._top -= 1
                blocks = self._rows_of(self._top, width) + blocks
            return blocks[-height:]
        if self.is_following or self._top > self._last_top:
            self._top = self._last_top
        rows: list[Row] = []
        for row in range(self._top, min(count, self._top + height)):
            rows += self._rows_of(row, width)
            if len(rows) >= height:
                break
        return rows[:height]

    def _heading(self, width: int) -> Row:
        right: list[Span] = []
        if self.level is not Level.ALL:
            right.append((f"{self.level.value}  ", "warning"))
        if self._shown_pattern is not None:
            right.append((f"/{words.shorten(self._shown_pattern.pattern, 20)}/  ", "mark"))
        if self._left:
            right.append((f"column {self._left + 1}  ", "muted"))
        if self.is_wrapped:
            right.append(("wrapped  ", "muted"))
        if self._file is None:
            right = []
        elif self.is_following:
            right.append(("following", "muted"))
        elif self._row_count:
            last = min(self._row_count, self._top + self._page)
            right.append((f"{self._top + 1:,}–{last:,} of {self._row_count:,}", "muted"))
        return heading(self._title, tuple(right), width, is_focused=self.has_focus)

    def _rows_of(self, row: int, width: int) -> list[Row]:
        """A line as one row, or as many as it takes when lines are wrapped."""
        assert self._file is not None
        number = self._number_at(row)
        is_match = number == self.match_line
        look = _Look(self._file.generation, number, width, self._left, self.is_wrapped, self._shown_pattern, is_match)
        if (known := self._drawn.get(look)) is not None:
            return known
        text = self._file.line(number)
        rows = self._draw(text, self._file.label(number), look)
        # What could not be read, or is still being written, may read otherwise soon.
        if text and number < self._file.whole_lines:
            self._drawn[look] = rows
        return rows

    def _draw(self, text: str, label: str, look: _Look) -> list[Row]:
        style = "text"
        if BAD.search(text):
            style = "bad"
        elif WARN.search(text):
            style = "warning"
        spans = self._with_matches(text, style) if self._shown_pattern else [(text, style)]
        if look.is_match:
            spans = [(part, "selected" if part_style == style else part_style) for part, part_style in spans]
        label = take(label, look.width // 3)
        left: Row = ((label, "accent"),) if label else ()
        width = look.width - len(label)
        if not self.is_wrapped:
            return [(*left, *_window(spans, self._left, width))]
        starts = range(0, max(1, len(text)), width)
        return [(*left, *_window(spans, start, width, is_cut=False)) for start in starts]

    def _with_matches(self, text: str, style: str) -> list[Span]:
        assert self._shown_pattern is not None
        spans: list[Span] = []
        position = 0
        for match in self._shown_pattern.finditer(text):
            if match.end() > match.start():
                spans += [(text[position : match.start()], style), (match.group(), "cursor")]
                position = match.end()
        return [*spans, (text[position:], style)]


def _window(spans: list[Span], left: int, width: int, *, is_cut: bool = True) -> Row:
    """The cells `left`..`left + width` of a row, with an arrow where something is cut off."""
    row: list[Span] = []
    position = 0
    for text, style in spans:
        part = text[max(0, left - position) : max(0, left + width - position)]
        if part:
            row.append((part, style))
        position += len(text)
    if is_cut and position > left + width and row:
        row[-1] = (row[-1][0][:-1], row[-1][1])
        row.append(("›", "muted"))
    return tuple(row)
