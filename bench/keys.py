"""From a key press to the updated screen, at every station of the set-up, re-planning included.

    python bench/keys.py [PRESSES]

The real program runs on a pseudo-terminal of 80x24 and of 120x36, set up for 8 H100 that a machine file describes.
Each press is answered when the last byte of what it changes was written: the letter, the plan, the facts. A screen
counts as at rest after QUIET_S without a byte. At the Layout station other layouts follow PATIENCE_S after
the last key; they are waited for and not counted. The last column is the processor time of one press, which other
programs do not lengthen.
"""

from __future__ import annotations

import math
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from gptoss_tui.screens.planning import PATIENCE_S  # noqa: E402

SIZES = ((80, 24), (120, 36))
QUIET_S = 0.25
ANSWER_S = 3.0
"""A press is waited for so long; one that was answered later would otherwise be left out of the figures."""
MACHINE = """
[gpu]
name = "NVIDIA H100 80GB HBM3"
count = 8
memory_gib = 80.0
nvlinks = 18
nvlink_shape = "switch"
"""
DOWN, UP, RIGHT, LEFT, ENTER, END = "\x1b[B", "\x1b[A", "\x1b[C", "\x1b[D", "\r", "\x1b[F"
# Keys that edit, and then undo the edit, so that presses can go on for ever.
STATIONS: dict[str, tuple[list[str], list[str]]] = {
    "machine": ([], [DOWN, "\x7f", "4", "\x7f", "8", UP]),
    "model": ([], [RIGHT, LEFT, DOWN, UP]),
    "data": ([], [DOWN, UP]),
    "training": ([DOWN, END], ["1", "\x7f", "2", "\x7f"]),
    "training, batch": ([DOWN] * 4 + [END], ["4", "\x7f", "5", "\x7f"]),
    "training, mistakes": ([DOWN, END], ["x", "\x7f"]),
    "layout": ([], [DOWN, UP, RIGHT, LEFT]),
    "launch": ([], [RIGHT, LEFT, DOWN, UP]),
    "review": ([], [RIGHT, LEFT]),
}
"""Keys that go to the place in a station, and those that are measured there."""
ORDER = ("machine", "model", "data", "training", "layout", "launch", "review")


class Program:
    """The set-up on a pseudo-terminal."""

    def __init__(self, home: str, machine: str, size: tuple[int, int]) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (size[1], size[0]))
        environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", "HOME": home, "GPTOSS_RUNS": home}
        arguments = [sys.executable, "-m", "gptoss_tui", "--machine", machine, "new", "20b-continue-8xh100"]
        self._process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, start_new_session=True
        )
        os.close(slave)
        self.settle(first_s=30.0)

    def press(self, key: str) -> float | None:
        """Seconds until the last byte that the key changed; None when it changed nothing."""
        started = time.perf_counter()
        os.write(self._master, key.encode())
        last = self.settle(first_s=ANSWER_S)
        return None if last is None else last - started

    def settle(self, first_s: float = QUIET_S) -> float | None:
        """Wait until the screen is at rest; returns the moment of its last byte."""
        last, wait = None, first_s
        while select.select([self._master], [], [], wait)[0]:
            os.read(self._master, 65536)
            last, wait = time.perf_counter(), QUIET_S
        return last

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor that the program has taken, threads included."""
        used = psutil.Process(self._process.pid).cpu_times()
        return float(used.user + used.system)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def measure(presses: int, size: tuple[int, int]) -> Iterator[tuple[str, list[float], float]]:
    """For every station the seconds of each press that changed the screen, and the processor's for one press."""
    for station, (there, keys) in STATIONS.items():
        with tempfile.TemporaryDirectory() as home:  # else the edits of one station are a question at the next
            machine = Path(home, "machine.toml")
            machine.write_text(MACHINE)
            program = Program(home, str(machine), size)
            for key in [*[DOWN] * ORDER.index(station.partition(",")[0]), ENTER, *there]:
                program.press(key)
            for key in keys:  # what is imported at its first use is not what a key costs
                program.press(key)
            times, before = [], program.cpu_s
            for number in range(presses):
                if station == "layout":
                    program.settle(2 * PATIENCE_S)
                if (took := program.press(keys[number % len(keys)])) is not None:
                    times.append(took)
            yield station, times, (program.cpu_s - before) / presses
            program.close()


def main(presses: int) -> None:
    """Print the table."""
    print(f"load average {', '.join(f'{one:.2f}' for one in os.getloadavg())}; {presses} presses a station")
    print(f"{'station':<18}{'size':>8}{'median':>9}{'p95':>9}{'worst':>9}{'CPU':>9}")
    for size in SIZES:
        for station, times, cpu_s in measure(presses, size):
            p95 = sorted(times)[math.ceil(0.95 * len(times)) - 1]
            told = "".join(f"{one * 1000:>6.0f} ms" for one in (statistics.median(times), p95, max(times), cpu_s))
            print(f"{station:<18}{size[0]:>5}x{size[1]}{told}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
