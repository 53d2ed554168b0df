"""One key after the other: each is handed out when what the one before set in motion is done.

Textual 8.2 (`App.on_event`) hands a key to whatever has the focus at that moment, also while the key before it is
still on its way to move the focus or to close a dialog. Typed ahead, or over a slow line, keys arrive together.
What looks into Textual to know that may be wrong one day: then keys are handed out as they come.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from textual import events
from textual.message_pump import MessagePump

from engine.defects import keep_trace

if TYPE_CHECKING:
    from textual.app import App
    from textual.widget import Widget

LIMIT_S = 2.0
"""A program that has not come to rest after so long gets the next key all the same."""
LOST_S = 30.0
"""A key that was posted and has not come back after so long never will."""
_LOOK_S = 0.002

type Typed = events.Key | events.Paste


class KeyOrder:
    """What was typed and waits for its turn."""

    def __init__(self, app: App[Any]) -> None:
        self._app = app
        self._waiting: deque[Typed] = deque()
        self._let_go: list[Typed] = []
        """Posted to the app and not back yet."""
        self._awaited: Typed | None = None
        """The last of them, while the next key waits for it."""
        self._was_text = False
        self._task: asyncio.Task[None] | None = None
        self._has_failed = False

    def holds(self, event: Typed) -> bool:
        """True when it is not the turn of `event` yet: it will be posted to the app again."""
        if any(event is one for one in self._let_go):
            self._let_go = [one for one in self._let_go if one is not event]
            self._awaited = None if event is self._awaited else self._awaited
        elif self._is_handing_out or self._awaited is not None or not self._is_free(app_is_at_work=True):
            self._waiting.append(event)
            if not self._is_handing_out:
                self._task = asyncio.create_task(self._let_go_in_turn())
            return True
        self._was_text = self._safely(lambda: self._is_text(event), otherwise=False)
        return False

    async def _let_go_in_turn(self) -> None:
        try:
            while self._waiting:
                await self._turn()
                self._hand_out()
        finally:
            while self._waiting:
                self._hand_out()

    @property
    def _is_handing_out(self) -> bool:
        # A task that had nothing to wait for is done before its maker knows it: Textual's loop begins tasks at once.
        return self._task is not None and not self._task.done()

    async def _turn(self) -> None:
        """Wait until the next key may go."""
        begun = time.monotonic()
        while self._awaited is not None and time.monotonic() - begun < LOST_S:
            await asyncio.sleep(_LOOK_S)
        while not self._is_free() and time.monotonic() - begun < LIMIT_S:
            await asyncio.sleep(_LOOK_S)

    def _hand_out(self) -> None:
        self._awaited = self._waiting.popleft()
        self._let_go.append(self._awaited)
        self._app.post_message(self._awaited)

    def _is_free(self, *, app_is_at_work: bool = False) -> bool:
        return self._was_text or self._safely(lambda: self._is_at_rest(app_is_at_work=app_is_at_work), otherwise=True)

    def _safely(self, look: Callable[[], bool], *, otherwise: bool) -> bool:
        """What `look` finds. A mistake in it must not keep a key; the first one is noted."""
        try:
            return look()
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                keep_trace()
            return otherwise

    def _is_text(self, event: Typed) -> bool:
        """True for what a text field takes as text: it moves nothing."""
        focused = self._app.focused
        if focused is None:
            return False
        return isinstance(event, events.Paste) or focused.check_consume_key(event.key, event.character)

    def _is_at_rest(self, *, app_is_at_work: bool = False) -> bool:
        """True when no message waits and none is being dealt with, and nothing waits for the screen to be drawn."""
        screen = self._app.screen
        if screen._callbacks or self._app._message_queue.qsize():
            return False
        pumps: list[MessagePump] = [] if app_is_at_work else [self._app]
        return all(map(_is_idle, [*pumps, screen, *_descendants(screen)]))


def _descendants(widget: Widget) -> Iterator[Widget]:
    for child in widget._nodes:
        yield child
        yield from _descendants(child)


def _is_idle(pump: MessagePump) -> bool:
    if pump._closing or pump._closed:
        return True
    queue = pump._message_queue
    # A loop that deals with a message does not wait for the next one.
    waits = bool(queue.ready_event._waiters)
    return queue.empty() and waits and not pump._next_callbacks
