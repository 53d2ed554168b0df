"""The real program in a real terminal, from keys to a finished rehearsal."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.run import directory
from engine.run.state import Status
from tests.limits import LONG_LIMIT_S as LIMIT_S

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
# The rehearsal at its shortest: random weights need no conversion, and nothing is exported.
SETTINGS = """
title = "Short"
[model]
name = "tiny"
[data]
source = "sample"
max_megabytes = 0.2
[training]
goal = "pretrain"
iterations = 50
sequence_length = 64
global_batch = 4
learning_rate = 1e-2
warmup_iterations = 1
precision = "fp32"
evaluation_iterations = 1
[machine]
device = "cpu"
cpu_ranks = 1
[output]
export = false
"""


class Terminal:
    """gptoss in tmux, as a person sees it."""

    def __init__(self, socket: Path, home: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        (home / "short.toml").write_text(SETTINGS)
        # A session of its own keeps the server, and so the last screen, when the program ends.
        self._call("new-session", "-d", "-s", "spare", "sleep", "600")
        program = shlex.join(
            ["env", f"HOME={home}", f"GPTOSS_RUNS={home / 'runs'}", "LANG=C.UTF-8", "TERM=tmux-256color",
             "PYTHONSAFEPATH=1", sys.executable, "-m", "gptoss_tui", "new", str(home / "short.toml")]
        )  # fmt: skip
        self._call(
            "new-session", "-d", "-s", "gptoss", "-x", "80", "-y", "24", f"{program}; echo ended with $?; sleep 600"
        )

    def press(self, *keys: str) -> None:
        self._call("send-keys", "-t", "gptoss", *keys)

    def wait_for(self, *texts: str) -> str:
        """The screen, as soon as it shows every one of the texts."""
        return self._wait(str(texts), lambda screen: all(text in screen for text in texts))

    def wait_for_station(self, cursor: str, title: str) -> str:
        """The screen, as soon as a station is highlighted; how it stands depends on what the checks find here."""
        line = re.compile(rf"^ *{cursor} [✓!✗] {title}\b", re.MULTILINE)
        return self._wait(f"{cursor} {title}", lambda screen: line.search(screen) is not None)

    def _wait(self, what: str, holds: Callable[[str], bool]) -> str:
        end = time.monotonic() + LIMIT_S
        while not holds(screen := self._call("capture-pane", "-p", "-t", "gptoss")):
            assert time.monotonic() < end, f"{what} did not appear:\n{screen}"
            time.sleep(0.1)
        return screen

    def close(self) -> None:
        self._call("kill-server")

    def _call(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path / "tmux", tmp_path)
    yield opened
    opened.close()


def test_from_keys_to_a_finished_rehearsal(terminal, tmp_path):
    terminal.wait_for("✓ can run")
    terminal.wait_for_station("▸", "Machine")
    terminal.press("Down", "Down", "Down", "Enter")
    terminal.wait_for("[pretrain]")
    terminal.wait_for_station("›", "Training")
    terminal.press("Down", "4")
    terminal.wait_for("= 1.02k tokens = 16 samples")
    terminal.press("F8")
    terminal.wait_for("Changed from", "50 → 4")
    terminal.press("Enter")
    terminal.wait_for("Start your settings?", "It goes on by itself")
    terminal.press("Enter")
    terminal.wait_for("q Detach")
    (run,) = directory.list_runs(tmp_path / "runs")
    end = time.monotonic() + LIMIT_S
    while (state := run.read_state().observed()).status.is_live:
        assert time.monotonic() < end, state
        time.sleep(0.2)
    assert state.status is Status.FINISHED, state.message
    assert state.iteration == 4
    terminal.wait_for("✓ finished")
    terminal.press("q")
    terminal.wait_for("set-up ›")
    terminal.press("q")
    terminal.wait_for_station("▸", "Review")
    terminal.press("q")
    terminal.wait_for("ended with 0")
