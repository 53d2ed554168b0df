"""Leaving the program waits for what changes something, and for nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gptoss_tui import threads
from gptoss_tui.bridge import Services
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.threads import DaemonThreads, UnderWay
from tests.limits import LIMIT_S
from tests.tui.doubles import until

READER_THAT_HANGS = """
import asyncio, threading
from gptoss_tui.threads import DaemonThreads
async def main():
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads())
    assert await loop.run_in_executor(None, sum, (1, 2)) == 3
    loop.run_in_executor(None, threading.Event().wait)
    await asyncio.sleep(0)
asyncio.run(main())
print("left")
"""


def test_a_reader_that_hangs_keeps_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", READER_THAT_HANGS], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("left\n", 0), done.stderr


def test_as_many_calls_at_once_as_there_are_threads() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreads())
        meeting = threading.Barrier(8, timeout=60)
        return await asyncio.gather(*(loop.run_in_executor(None, meeting.wait) for _ in range(8)))

    assert sorted(asyncio.run(main())) == list(range(8))


def test_an_error_is_passed_on() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().run_in_executor(None, lambda: 1 // 0)

    asyncio.run(main())


def test_a_change_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    changing = UnderWay()
    monkeypatch.setattr("gptoss_tui.bridge.changing", changing)
    begun, end = threading.Event(), threading.Event()

    def slow(*arguments: object) -> None:
        begun.set()
        end.wait(60)

    monkeypatch.setattr("engine.presets.delete", slow)
    thread = threading.Thread(target=lambda: Services().delete_preset("mine"))
    thread.start()
    assert begun.wait(60) and changing
    threading.Timer(0.1, end.set).start()
    changing.wait()
    assert end.is_set() and not changing
    thread.join()
    assert not threads.changing


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonThreads]:
    """A pool of two threads, or four with those that are held up."""
    monkeypatch.setattr(threads, "MOST_THREADS", 2)
    monkeypatch.setattr(threads, "MOST_IN_ALL", 4)
    monkeypatch.setattr(threads, "HELD_UP_S", 0.05)
    pool = DaemonThreads()
    monkeypatch.setattr(threads, "_pool", pool)
    yield pool
    pool.shutdown()


def _eventually(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_calls_that_a_silent_share_holds_up_hold_up_no_other(pool: DaemonThreads) -> None:
    silent = threading.Event()
    stuck = [pool.submit(silent.wait, LIMIT_S) for _ in range(3)]
    assert pool.submit(sum, (1, 2)).result(LIMIT_S) == 3
    _eventually(lambda: not threads.are_used_up())
    assert not any(call.done() for call in stuck)
    stuck.append(pool.submit(silent.wait, LIMIT_S))
    waits = pool.submit(sum, (3, 4))
    assert threads.are_used_up()
    silent.set()
    assert waits.result(LIMIT_S) == 7
    assert [call.result(LIMIT_S) for call in stuck] == [True] * 4


async def test_the_screen_says_when_no_call_can_be_made(make_app, pool: DaemonThreads) -> None:
    silent = threading.Event()
    calls = [pool.submit(silent.wait, LIMIT_S) for _ in range(4)]
    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30)) as pilot:
        app.push_screen(AskScreen("Name", "of a thing", act=str.upper, value="abc"))
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press("enter")
        await until(pilot, lambda: "share is silent" in app.screen.query_one("#note").text)
        silent.set()
        for call in calls:
            assert await asyncio.wrap_future(call)
        await until(pilot, lambda: not threads.are_used_up())
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, HomeScreen))
