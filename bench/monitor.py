"""What the monitor costs while a run logs: share of one core, and bytes to the terminal.

    python bench/monitor.py [SECONDS] [ITERATIONS_PER_S ...]

Starts the real monitor on a pseudo-terminal and writes metrics, log lines and states the way a
training of two ranks does. Counted after the first screen, when the training is under way.
"""

from __future__ import annotations

import json
import math
import os
import pty
import random
import subprocess
import sys
import tempfile
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from engine import presets, settings_file  # noqa: E402
from engine.paths import write_atomic  # noqa: E402
from engine.processes import ProcessId  # noqa: E402
from engine.run import directory  # noqa: E402
from engine.run.state import State, Status, StepState  # noqa: E402

SIZES = ((80, 24), (200, 50))
LOG_LINE = (
    " [2026-11-22 07:16:32] iteration {n:8d}/{total:8d} | consumed samples: {samples:12d} | elapsed time per iteration "
    "(ms): 79.5 | learning rate: 3.000000E-04 | global batch size:    16 | lm loss: {loss:.6E} | loss scale: 1.0 | "
    "grad norm: {norm:.3f} | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
)


class FakeTraining(threading.Thread):
    """Writes what a training step leaves in its run directory, at a steady pace."""

    def __init__(self, root: Path, name: str, rate: float, total: int) -> None:
        super().__init__(daemon=True)
        self.run_directory = directory.create(root, name)
        self.rate, self.total = rate, total
        self.is_over = threading.Event()
        settings = presets.find("rehearsal").settings.with_values({"training.iterations": total})
        settings_file.save(settings, self.run_directory.settings)
        now = time.time()
        step = StepState(name="train", status=Status.RUNNING, attempt=1, started=now)
        self.state = State(
            name=name, status=Status.RUNNING, steps=(step, StepState(name="export")), step="train", attempt=1,
            created=now, heartbeat=now, supervisor=ProcessId.of(os.getpid()),
        )  # fmt: skip
        self.attempt = self.run_directory.attempt(1, "train")
        self.attempt.mkdir()
        write_atomic(self.run_directory.state, self.state.to_json())

    def run(self) -> None:
        """Log until told to end."""
        random_numbers = random.Random(1)
        begin = last_state = time.time()
        with (self.attempt / "rank-1.log").open("a", buffering=1) as log:
            for n in range(1, self.total + 1):
                if self.is_over.wait(max(0.0, begin + n / self.rate - time.time())):
                    return
                loss = 2 + 4 * math.exp(-n / 400) + random_numbers.gauss(0, 0.08)
                norm = abs(random_numbers.gauss(1.5, 0.4))
                record = {
                    "t": time.time(), "step": "train", "iteration": n, "loss": loss, "grad_norm": norm,
                    "learning_rate": 3e-4, "tokens_per_s": 20_480 + random_numbers.gauss(0, 900),
                    "iteration_s": 1 / self.rate, "memory_gib": 0.91,
                }  # fmt: skip
                directory.append_line(self.run_directory.metrics, record)
                log.write(LOG_LINE.format(n=n, total=self.total, samples=16 * n, loss=loss, norm=norm))
                if time.time() - last_state > 1:
                    last_state = time.time()
                    self.state = replace(self.state, iteration=n, heartbeat=last_state)
                    write_atomic(self.run_directory.state, self.state.to_json())


class Terminal:
    """A pseudo-terminal that counts what the monitor writes to it."""

    def __init__(self, run: Path, size: tuple[int, int]) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (size[1], size[0]))
        code = (
            "from pathlib import Path; from engine.run.directory import RunDirectory;"
            f"from gptoss_tui.app import run_app; run_app('monitor', run=RunDirectory(Path({str(run)!r})))"
        )
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment
        )
        os.close(slave)
        self.bytes = 0
        threading.Thread(target=self._drain, daemon=True).start()

    def cpu_s(self) -> float:
        """Processor seconds used so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _drain(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.bytes += len(data)
        except OSError:
            return


def measure(root: Path, rate: float, size: tuple[int, int], seconds: float) -> dict[str, float]:
    """Watch one training at one screen size."""
    name = f"bench-{rate:g}-{size[0]}"
    training = FakeTraining(root, name, rate, total=100_000)
    training.start()
    terminal = Terminal(training.run_directory.path, size)
    time.sleep(6)  # the first screen, and a chart with something on it
    cpu, written, begin = terminal.cpu_s(), terminal.bytes, time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - begin
    found = {
        "cpu": 100 * (terminal.cpu_s() - cpu) / passed,
        "kb": (terminal.bytes - written) / passed / 1000,
        "memory": terminal.memory_mib(),
    }
    terminal.close()
    training.is_over.set()
    training.join()
    return found


def main(seconds: float, rates: list[float]) -> None:
    """Measure and print the table."""
    print(f"{'screen':<10}{'iterations/s':>13}{'% of a core':>13}{'KB/s':>8}{'MiB':>7}", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as root:
        for size in SIZES:
            for rate in rates:
                one = measure(Path(root), rate, size, seconds)
                found.append({"size": size, "rate": rate, **one})
                numbers = f"{one['cpu']:>13.1f}{one['kb']:>8.2f}{one['memory']:>7.0f}"
                print(f"{size[0]}x{size[1]:<7}{rate:>12g}{numbers}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    arguments = [float(word) for word in sys.argv[1:]]
    main(arguments[0] if arguments else 20, arguments[1:] or [1, 10, 50])
