"""The threads in which the screens call the engine: leaving the program waits for none that only reads.

Python's own pool is waited for twice, when the event loop closes and when the interpreter ends. A thread that
reads a share whose server is silent would keep the person's terminal for as long as that lasts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

MOST_THREADS = 32
LEAVE_S = 1.0
"""How long reading threads may take to notice that the program is being left."""


class DaemonThreads(ThreadPoolExecutor):
    """A pool of daemon threads."""

    def __init__(self) -> None:
        super().__init__(1)  # asyncio takes nothing but one of these; its own threads are never started
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._count = threading.Condition()
        self._started = 0
        self._busy = 0

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def carry_out() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        with self._count:
            self._busy += 1
            if self._busy > self._started and self._started < MOST_THREADS:
                self._started += 1
                threading.Thread(target=self._work, name="engine", daemon=True).start()
        self._calls.put(carry_out)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for a moment; what has not ended by then is left to end with the program."""
        with self._count:
            self._count.wait_for(lambda: not self._busy, LEAVE_S)

    def _work(self) -> None:
        while True:
            self._calls.get()()
            with self._count:
                self._busy -= 1
                self._count.notify_all()


class UnderWay:
    """Counts the calls that change something: those are waited for, however long they take."""

    def __init__(self) -> None:
        self._count = threading.Condition()
        self._calls = 0

    def __enter__(self) -> None:
        with self._count:
            self._calls += 1

    def __exit__(self, *error: object) -> None:
        with self._count:
            self._calls -= 1
            self._count.notify_all()

    def __bool__(self) -> bool:
        return self._calls > 0

    def wait(self) -> None:
        """Wait until none is under way; Ctrl+C ends the waiting."""
        with self._count:
            self._count.wait_for(lambda: not self._calls)


changing = UnderWay()
