"""The threads in which the screens call the engine: leaving the program waits for none that only reads.

Python's own pool is waited for twice, when the event loop closes and when the interpreter ends. A thread that
reads a share whose server is silent would keep the person's terminal for as long as that lasts.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

MOST_THREADS, MOST_IN_ALL = 32, 256
"""How many calls are made at once, and how many with those that are held up."""
HELD_UP_S = 5.0
"""A call that takes longer most likely waits for a share that is silent; it holds up no other."""
LEAVE_S = 1.0
"""How long reading threads may take to notice that the program is being left."""


class DaemonThreads(ThreadPoolExecutor):
    """A pool of daemon threads."""

    def __init__(self) -> None:
        super().__init__(1)  # asyncio takes nothing but one of these; its own threads are never started
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._count = threading.Condition()
        self._started = 0
        self._queued = 0
        self._begun: dict[int, float] = {}
        """When the call was begun that a thread is making, by the number of the thread."""
        self._looks_again = False

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def carry_out() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        with self._count:
            self._queued += 1
            self._calls.put(carry_out)
            self._start_threads()
        return future

    @property
    def is_full(self) -> bool:
        """True when every thread that may be is held up: one more call would wait for them."""
        with self._count:
            return len(self._begun) + self._queued >= MOST_IN_ALL

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for a moment; what has not ended by then is left to end with the program."""
        with self._count:
            self._count.wait_for(lambda: not self._begun and not self._queued, LEAVE_S)

    def _start_threads(self) -> None:
        """As many as the calls that wait need; called with the lock held."""
        now = time.monotonic()
        held_up = sum(now - begun >= HELD_UP_S for begun in self._begun.values())
        most = min(MOST_THREADS + held_up, MOST_IN_ALL)
        while self._queued > self._started - len(self._begun) and self._started < most:
            threading.Thread(target=self._work, args=(self._started,), name="engine", daemon=True).start()
            self._started += 1
        if self._queued > self._started - len(self._begun) and self._started < MOST_IN_ALL and not self._looks_again:
            self._looks_again = True
            later = threading.Timer(HELD_UP_S, self._look_again)
            later.daemon = True
            later.start()

    def _look_again(self) -> None:
        with self._count:
            self._looks_again = False
            self._start_threads()

    def _work(self, number: int) -> None:
        while True:
            call = self._calls.get()
            with self._count:
                self._queued -= 1
                self._begun[number] = time.monotonic()
            call()
            with self._count:
                del self._begun[number]
                self._count.notify_all()


_pool: DaemonThreads | None = None


def serve(loop: asyncio.AbstractEventLoop) -> None:
    """Let `loop` make its calls in daemon threads."""
    global _pool
    _pool = DaemonThreads()
    loop.set_default_executor(_pool)


def are_used_up() -> bool:
    """True when a call that is asked for now would not be made."""
    return _pool is not None and _pool.is_full


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
