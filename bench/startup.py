"""How long the program takes to show itself, beside a bare Textual app in the same run.

    python bench/startup.py [ROUNDS]

Each row is the median of interleaved rounds, so that a busy machine slows all of them alike. The
first frame is counted until its last byte was written to a pseudo-terminal of 80x24.
"""

from __future__ import annotations

import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BARE = """
from textual.app import App
from textual.widgets import Static
class Bare(App):
    def compose(self):
        yield Static("first frame")
Bare().run()
"""
OURS = "from gptoss_tui.app import run_app; run_app()"
HELP = "import sys; sys.argv = ['gptoss', '--help']; from gptoss_tui.__main__ import main; main()"


def first_frame_s(code: str, marker: bytes, home: str) -> float:
    """Seconds from the start of Python until `marker` is on the terminal."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", "HOME": home, "GPTOSS_RUNS": home}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment
    )
    os.close(slave)
    written = b""
    while marker not in written:
        if not select.select([master], [], [], 60)[0]:
            raise SystemExit(f"{marker!r} was not shown within a minute")
        written += os.read(master, 65536)
    took = time.perf_counter() - started
    process.kill()
    process.wait()
    os.close(master)
    return took


def help_s() -> float:
    """Seconds that `gptoss --help` takes, from start to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    """Measure and print the table."""
    bare, ours, shown_help = [], [], []
    with tempfile.TemporaryDirectory() as home:
        # An installation ships byte-code; here it is written even where that is switched off.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{home}/pycache"
        for code, marker in ((BARE, b"first frame"), (OURS, b"Start")):
            first_frame_s(code, marker, home)  # byte-code and page cache
        for _ in range(rounds):
            bare.append(first_frame_s(BARE, b"first frame", home))
            ours.append(first_frame_s(OURS, b"Start", home))
            shown_help.append(help_s())
    base = statistics.median(bare)
    print(f"{'median of ' + str(rounds):<28}{'ms':>8}{'ratio':>8}{'beyond bare':>14}")
    for name, times in (("bare Textual app", bare), ("gptoss, first frame", ours), ("gptoss --help", shown_help)):
        middle = statistics.median(times)
        print(f"{name:<28}{middle * 1000:>8.0f}{middle / base:>8.2f}{(middle - base) * 1000:>+11.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
