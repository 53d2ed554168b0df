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

from tests.limits import LIMIT_S
from tests.tui.doubles import a_full_run

SILENCE_S = 2.0
"""A picture that nothing was added to for so long is whole."""
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
        # A worker of pytest-xdist inherits a size there, which would count for more than the terminal's own.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment = {**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
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
            assert time.monotonic() < end, self.text
            self._draw(0.05)

    def settled(self) -> list[str]:
        """The rows of the screen when nothing more comes, without those that tell the time."""
        while self._draw(SILENCE_S):
            pass
        return self.screen.display[3:]

    def _draw(self, wait_s: float) -> bool:
        """Draw what has come. False when nothing came for so long, or will come."""
        if not select.select([self._master], [], [], wait_s)[0]:
            return False
        try:
            self.stream.feed(os.read(self._master, 65536))
        except OSError:  # the program has ended
            time.sleep(0.01)
            return False
        return True

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
    told = "closed: q only leaves the screen"
    monitor.press("?")
    monitor.wait_for(lambda: monitor.shows(told))
    monitor.press("\x1b")
    monitor.wait_for(lambda: monitor.shows("loss ─", "6 ┤", "rank 1") and not monitor.shows(told))
    shown = monitor.settled()
    monitor.screen.reset()
    monitor.press("\x0c")  # all of it is sent anew
    monitor.wait_for(lambda: monitor.shows("loss ─", "6 ┤", "rank 1"))
    assert monitor.settled() == shown


def test_two_presses_of_q_close_the_help_and_leave(monitor):
    monitor.press("?")
    monitor.wait_for(lambda: monitor.shows("closed: q only leaves the screen"))
    monitor.press("qq")
    monitor.wait_for(lambda: monitor.process.poll() is not None)
    assert monitor.process.returncode == 0
