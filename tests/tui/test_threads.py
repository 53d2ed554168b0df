"""Leaving the program waits for what changes something, and for nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from gptoss_tui import threads
from gptoss_tui.bridge import Services
from gptoss_tui.threads import DaemonThreads, UnderWay

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
