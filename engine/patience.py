"""Calls that may never come back: whatever asks a share whose server is silent.

Such a call cannot be given up: not by a signal, and a thread cannot be ended. So it is made in a
daemon thread, which a program does not wait for when it ends, and the caller stops waiting.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

ANSWER_S = 3.0
"""A share that is only slow answers sooner."""
NEXT_S = 0.3
"""How long those after a silent one are waited for: most likely they are on the same share."""


class NoAnswer(TimeoutError):
    """The call has not come back yet."""

    def __init__(self, seconds: float) -> None:
        super().__init__(errno.ETIMEDOUT, f"no answer within {seconds:g} s")


class Patient:
    """Makes calls one after another, each waited for no longer than `seconds`."""

    def __init__(self, seconds: float = ANSWER_S) -> None:
        self.seconds = seconds
        self._calls: SimpleQueue[tuple[Callable[[], Any], bool] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_waiting = False

    def call[T](self, call: Callable[[], T]) -> T:
        """What `call` returns or raises. Raises NoAnswer, at once while an earlier call has not come back."""
        if self.is_waiting:
            raise NoAnswer(self.seconds)
        self._begin(call, is_awaited=True)
        try:
            value, error = self._answers.get(timeout=self.seconds)
        except Empty:
            self._is_waiting = True
            raise NoAnswer(self.seconds) from None
        if error is not None:
            raise error
        result: T = value
        return result

    def wait_for[T](self, call: Callable[[], T], on_silence: Callable[[], None]) -> T:
        """What `call` returns or raises, however long it takes; Ctrl+C ends the waiting.

        `on_silence` is called once when that is longer than `seconds`; what it raises is raised here.
        """
        self._begin(call, is_awaited=True)
        try:
            value, error = self._answers.get(timeout=self.seconds)
        except Empty:
            on_silence()
            value, error = self._answers.get()
        if error is not None:
            raise error
        result: T = value
        return result

    @property
    def is_waiting(self) -> bool:
        """True while a call that was given up has not come back."""
        if self._is_waiting:
            with contextlib.suppress(Empty):  # not `empty()`: another thread may ask as well, and take it
                self._answers.get_nowait()
                self._is_waiting = False
        return self._is_waiting

    def later(self, call: Callable[[], object]) -> None:
        """Make a call that nobody waits for."""
        self._begin(call, is_awaited=False)

    def _begin(self, call: Callable[[], Any], *, is_awaited: bool) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._carry_out, name="patience", daemon=True)
            self._thread.start()
        self._calls.put((call, is_awaited))

    def close(self) -> None:
        """End the thread once it can; a later call begins another."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    def _carry_out(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, is_awaited = asked
            try:
                answer: tuple[Any, BaseException | None] = (call(), None)
            except BaseException as error:
                answer = (None, error)
            if is_awaited:
                self._answers.put(answer)


_silent: dict[str, Patient] = {}
"""By item: what has not come back is not asked again, or every look would leave another thread behind."""


def each[I, T](
    items: Iterable[I], call: Callable[[I], T], seconds: float = ANSWER_S
) -> Iterator[tuple[I, T | NoAnswer]]:
    """Every item with what `call` makes of it, or with NoAnswer. One that is silent holds up no other."""
    patient = Patient(seconds)
    try:
        for item in items:
            if (before := _silent.get(str(item))) is not None and before.is_waiting:
                yield item, NoAnswer(seconds)
                continue
            _silent.pop(str(item), None)
            try:
                answer: T | NoAnswer = patient.call(lambda item=item: call(item))  # type: ignore[misc]
            except NoAnswer as error:
                _silent[str(item)] = patient
                patient.close()
                patient, answer = Patient(min(seconds, NEXT_S)), error
            yield item, answer
    finally:
        patient.close()


def within[T](call: Callable[[], T], seconds: float = ANSWER_S) -> T:
    """What `call` returns or raises. Raises NoAnswer."""
    patient = Patient(seconds)
    try:
        return patient.call(call)
    finally:
        patient.close()
