"""The real program on a pseudo-terminal, its screen drawn by a terminal emulator."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from tests.tui.doubles import a_full_run

LIMIT_S = 60.0
COLUMNS, ROWS = 100, 30
MONITOR = (
    "import sys; from pathlib import Path; from engine.run.directory import RunDirectory;"
    "from gptoss_tui.app import run_app; sys.exit(run_app('monitor', run=RunDirectory(Path({!r}))))"
)


class Terminal:
    """A program, the keys that are typed to it and the screen that it draws."""

    def __init__(self, code: str, home: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (ROWS, COLUMNS))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        environment |= {"HOME": str(home), "GPTOSS_RUNS": str(home / "runs")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)

    def press(self, keys: str) -> None:
        """Type all of it in one go."""
        os.write(self._master, keys.encode())

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Draw what comes until the condition holds."""
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end, "\n".join(self.screen.display)
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.stream.feed(os.read(self._master, 65536))
                except OSError:  # the program has ended
                    time.sleep(0.01)

    def shows(self, *texts: str) -> bool:
        return all(text in self.text for text in texts)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def spoil(self) -> None:
        """Another program writes over the screen."""
        self.stream.feed(b"\x1b[5;1H" + b"a message from elsewhere\r\n" * 10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "runs").mkdir()
    terminal = Terminal(MONITOR.format(str(a_full_run(tmp_path / "runs").run.path)), tmp_path)
    terminal.wait_for(lambda: terminal.shows("iteration 120 / 200", "q Detach", "tokens/s", "checkpoint"))
    yield terminal
    terminal.close()


def test_ctrl_l_brings_a_spoilt_screen_back(monitor):
    monitor.spoil()
    assert monitor.shows("a message from elsewhere")
    monitor.press("\x0c")
    monitor.wait_for(lambda: not monitor.shows("elsewhere") and monitor.shows("loss ─", "6 ┤", "rank 1"))


def test_a_program_that_was_stopped_draws_everything_when_it_goes_on(monitor):
    os.kill(monitor.process.pid, signal.SIGTSTP)
    os.waitid(os.P_PID, monitor.process.pid, os.WSTOPPED | os.WNOWAIT)
    monitor.spoil()
    os.kill(monitor.process.pid, signal.SIGCONT)
    monitor.wait_for(lambda: not monitor.shows("elsewhere") and monitor.shows("loss ─", "6 ┤", "rank 1"))


def test_the_screen_is_whole_after_an_overlay_came_and_went(monitor):
    before, told = monitor.text, "closed: q only leaves the screen"
    monitor.press("?")
    monitor.wait_for(lambda: monitor.shows(told))
    monitor.press("\x1b")
    monitor.wait_for(lambda: monitor.shows("loss ─", "6 ┤", "rank 1") and not monitor.shows(told))
    monitor.wait_for(lambda: monitor.screen.display[3:20] == before.split("\n")[3:20])


def test_two_presses_of_q_close_the_help_and_leave(monitor):
    monitor.press("?")
    monitor.wait_for(lambda: monitor.shows("closed: q only leaves the screen"))
    monitor.press("qq")
    monitor.wait_for(lambda: monitor.process.poll() is not None)
    assert monitor.process.returncode == 0
