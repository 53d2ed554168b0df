"""What the monitor costs, and what its peers do.

    python bench/monitor.py live [SECONDS] [ITERATIONS_PER_S ...]
    python bench/monitor.py open [ITERATIONS] [LOG_MIB]
    python bench/monitor.py soak [MINUTES] [ITERATIONS_PER_S]
    python bench/monitor.py peers PYTHON [SECONDS] [ITERATIONS_PER_S ...]
    python bench/monitor.py gpus PYTHON [SECONDS]

`live`: share of one core, and bytes to the terminal, while a run logs. `open`: time until a long run, and a
long log, are on the screen. `soak`: memory over time. `peers`: the same as `live` for W&B's terminal program,
whose wandb the given PYTHON has, following a run that wandb itself writes. `gpus`: beside that PYTHON's nvitop,
over eight fake GPUs. Each starts the real program on a pseudo-terminal; a run is written the way a training of
two ranks writes it. The load average is printed, as other work on the machine shows in every number.
"""

from __future__ import annotations

import json
import math
import os
import pty
import random
import re
import sys
import tempfile
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from engine import presets, settings_file  # noqa: E402
from engine.paths import write_atomic  # noqa: E402
from engine.processes import ProcessId  # noqa: E402
from engine.run import directory  # noqa: E402
from engine.run.state import State, Status, StepState  # noqa: E402
from gptoss_tui.log_file import LogFile  # noqa: E402

SIZES = ((80, 24), (200, 50))
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
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
        with self.log.open("a", buffering=1) as log:
            for n in range(1, self.total + 1):
                if self.is_over.wait(max(0.0, begin + n / self.rate - time.time())):
                    return
                record = record_of(n, self.rate, random_numbers)
                directory.append_line(self.run_directory.metrics, record)
                loss, norm = record["loss"], record["grad_norm"]
                log.write(LOG_LINE.format(n=n, total=self.total, samples=16 * n, loss=loss, norm=norm))
                if time.time() - last_state > 1:
                    last_state = time.time()
                    self.put(iteration=n, heartbeat=last_state)

    @property
    def log(self) -> Path:
        return self.attempt / "rank-1.log"

    def put(self, **changes: object) -> None:
        """Replace the state."""
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        write_atomic(self.run_directory.state, self.state.to_json())


def record_of(n: int, rate: float, random_numbers: random.Random) -> dict[str, Any]:
    """The metric record of one iteration."""
    return {
        "t": time.time(), "step": "train", "iteration": n,
        "loss": 2 + 4 * math.exp(-n / 400) + random_numbers.gauss(0, 0.08),
        "grad_norm": abs(random_numbers.gauss(1.5, 0.4)), "learning_rate": 3e-4,
        "tokens_per_s": 20_480 + random_numbers.gauss(0, 900), "iteration_s": 1 / rate, "memory_gib": 0.91,
    }  # fmt: skip


class Terminal:
    """A pseudo-terminal that counts what a program writes to it."""

    def __init__(self, command: list[str], size: tuple[int, int]) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (size[1], size[0]))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        self.began = time.perf_counter()
        self.process = psutil.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment)
        os.close(slave)
        self.bytes = 0
        self._text = ""
        threading.Thread(target=self._drain, daemon=True).start()

    def cpu_s(self) -> float:
        """Processor seconds used so far, of all threads and children."""
        return sum(times.user + times.system for one in self._tree() for times in [one.cpu_times()])

    def memory_mib(self) -> float:
        return sum(one.memory_info().rss for one in self._tree()) / 2**20

    def await_text(self, text: str, limit_s: float = 300.0) -> float:
        """Seconds from the start until `text` was written; raises TimeoutError."""
        while time.perf_counter() - self.began < limit_s:
            if text in self._text:
                return time.perf_counter() - self.began
            time.sleep(0.005)
        raise TimeoutError(f"{text!r} did not appear in {limit_s:.0f} s")

    def close(self) -> None:
        for one in self._tree():
            one.kill()
        self.process.wait()

    def _tree(self) -> list[psutil.Process]:
        return [*self.process.children(recursive=True), self.process]

    def _drain(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.bytes += len(data)
                self._answer(data)
                plain = _ESCAPES.sub("", data.decode("utf-8", "replace"))
                self._text = (self._text + plain)[-1_000_000:]
        except OSError:
            return

    def _answer(self, data: bytes) -> None:
        """What a real terminal would say: some programs wait for it before they draw."""
        for asked, told in ((b"\x1b[6n", b"\x1b[1;1R"), (b"\x1b]11;?", b"\x1b]11;rgb:1212/1616/1b1b\x1b\\"),
                            (b"\x1b[c", b"\x1b[?62;22c")):  # fmt: skip
            if asked in data:
                os.write(self.master, told)


def monitor_command(run: Path) -> list[str]:
    """The monitor of one run."""
    code = (
        "from pathlib import Path; from engine.run.directory import RunDirectory;"
        f"from gptoss_tui.app import run_app; run_app('monitor', run=RunDirectory(Path({str(run)!r})))"
    )
    return [sys.executable, "-c", code]


def measure(terminal: Terminal, seconds: float) -> dict[str, float]:
    """What a program that runs already takes for some time."""
    cpu, written, begin = terminal.cpu_s(), terminal.bytes, time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - begin
    return {
        "cpu": 100 * (terminal.cpu_s() - cpu) / passed,
        "kb": (terminal.bytes - written) / passed / 1000,
        "memory": terminal.memory_mib(),
    }


def live(seconds: float, rates: list[float]) -> None:
    """The monitor at both sizes and all rates."""
    _head()
    with tempfile.TemporaryDirectory() as root:
        for size in SIZES:
            for rate in rates:
                training = FakeTraining(Path(root), f"bench-{rate:g}-{size[0]}", rate, total=100_000)
                training.start()
                terminal = Terminal(monitor_command(training.run_directory.path), size)
                time.sleep(6)  # the first screen, and a chart with something on it
                _row("gptoss", size, rate, measure(terminal, seconds))
                terminal.close()
                training.is_over.set()
                training.join()


def opening(iterations: int, log_mib: int) -> None:
    """How long it takes until a long run is there."""
    print(f"load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as root:
        training = FakeTraining(Path(root), "long", 1.0, total=iterations)
        _write_long(training, iterations, log_mib)
        sizes = [path.stat().st_size / 2**20 for path in (training.run_directory.metrics, training.log)]
        print(f"{iterations:,} iterations ({sizes[0]:.0f} MiB of metrics), a log of {sizes[1]:.0f} MiB")
        terminal = Terminal(monitor_command(training.run_directory.path), SIZES[1])
        # The chart of the throughput is painted with the rest, once there are values.
        print(f"first picture         {terminal.await_text('tokens/s'):6.2f} s", flush=True)
        # The first charts show a part of the run; when it is read whole, the program has nothing more to do.
        while measure(terminal, 1.0)["cpu"] > 20:
            pass
        print(f"every iteration read  {time.perf_counter() - terminal.began - 1:6.2f} s", flush=True)
        print(f"memory                {terminal.memory_mib():6.0f} MiB")
        quiet = measure(terminal, 10)
        print(f"then                  {quiet['cpu']:6.1f} % of a core, {quiet['kb']:.2f} KB/s")
        terminal.close()
        file, begin = LogFile(training.log), time.perf_counter()
        while file.update():
            pass
        print(f"log indexed           {time.perf_counter() - begin:6.2f} s, {len(file):,} lines")


def soak(minutes: float, rate: float) -> None:
    """Memory and cost over time."""
    print(f"{'minutes':>8}{'MiB':>8}{'% of a core':>13}{'KB/s':>8}{'load':>7}")
    with tempfile.TemporaryDirectory() as root:
        training = FakeTraining(Path(root), "soak", rate, total=10_000_000)
        training.start()
        terminal = Terminal(monitor_command(training.run_directory.path), SIZES[0])
        time.sleep(6)
        begin = time.monotonic()
        memory: list[float] = []
        while time.monotonic() - begin < minutes * 60:
            one = measure(terminal, min(60.0, minutes * 60))
            passed = (time.monotonic() - begin) / 60
            load = os.getloadavg()[0]
            print(f"{passed:>8.1f}{one['memory']:>8.1f}{one['cpu']:>13.1f}{one['kb']:>8.2f}{load:>7.1f}", flush=True)
            memory.append(one["memory"])
        terminal.close()
        training.is_over.set()
    # The first readings show the program as it fills its fixed buffers.
    settled = memory[len(memory) // 5 :]
    print(f"settled at {settled[0]:.1f} MiB, {settled[-1]:.1f} at the end, {max(settled):.1f} at most")


_LOG_WITH_WANDB = """
import os, sys, time, math
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
import wandb
run = wandb.init(project="bench", name="bench", dir=sys.argv[1],
                 settings=wandb.Settings(x_disable_stats=True, console="off"))
begin, rate, total = time.time(), float(sys.argv[2]), int(sys.argv[3])
for n in range(1, total + 1):
    if rate:
        time.sleep(max(0.0, begin + n / rate - time.time()))
    run.log({"loss": 2 + 4 * math.exp(-n / 400), "grad_norm": 1.5, "learning_rate": 3e-4,
             "tokens_per_s": 20480 + n % 7, "iteration_s": 0.1, "memory_gib": 0.91}, step=n)
run.finish()
"""


def peers(python: str, seconds: float, rates: list[float]) -> None:
    """W&B's terminal program beside ours, at the same rates."""
    leet = str(Path(python).parent / "wandb")
    _head()
    for size in SIZES:
        for rate in rates:
            with tempfile.TemporaryDirectory() as root:
                writer = psutil.Popen([python, "-c", _LOG_WITH_WANDB, root, str(rate), "1000000"])
                file = _await_file(Path(root))
                terminal = Terminal([leet, "leet", "run", str(file)], size)
                time.sleep(6)
                _row("leet", size, rate, measure(terminal, seconds))
                terminal.close()
                for one in [*writer.children(recursive=True), writer]:
                    one.kill()
                writer.wait()


def gpus(python: str, seconds: float) -> None:
    """Eight GPUs of the tests' fake driver, whose readings stand still: nvitop, and our monitor with a run."""
    fake = [sys.executable, "-m", "tests.fakes.nvml", "8xh100"]
    nvitop = str(Path(python).parent / "nvitop")
    _head()
    for size in SIZES:
        terminal = Terminal([*fake, nvitop], size)
        time.sleep(6)
        _row("nvitop", size, 0, measure(terminal, seconds))
        terminal.close()
        with tempfile.TemporaryDirectory() as root:
            training = FakeTraining(Path(root), "bench", 1, total=100_000)
            training.start()
            terminal = Terminal([*fake, *monitor_command(training.run_directory.path)], size)
            time.sleep(6)
            _row("gptoss", size, 1, measure(terminal, seconds))
            terminal.close()
            training.is_over.set()
            training.join()


def _await_file(root: Path, limit_s: float = 60.0) -> Path:
    begin = time.monotonic()
    while time.monotonic() - begin < limit_s:
        if found := [path for path in root.glob("wandb/*run-*/*.wandb") if path.stat().st_size]:
            return found[0]
        time.sleep(0.1)
    raise TimeoutError(f"wandb wrote no file in {limit_s:.0f} s")


def _write_long(training: FakeTraining, iterations: int, log_mib: int) -> None:
    random_numbers = random.Random(1)
    with training.run_directory.metrics.open("w") as metrics:
        for n in range(1, iterations + 1):
            metrics.write(json.dumps(record_of(n, 1.0, random_numbers)) + "\n")
    block = "".join(LOG_LINE.format(n=n, total=iterations, samples=16 * n, loss=2.0, norm=1.5) for n in range(1, 2001))
    with training.log.open("w") as log:
        for _ in range(log_mib * 2**20 // len(block)):
            log.write(block)
    training.put(iteration=iterations)


def _head() -> None:
    print(f"{'':<8}{'screen':<10}{'it/s':>6}{'% of a core':>13}{'KB/s':>8}{'MiB':>7}{'load':>7}", flush=True)


def _row(name: str, size: tuple[int, int], rate: float, one: dict[str, float]) -> None:
    load = os.getloadavg()[0]
    numbers = f"{one['cpu']:>13.1f}{one['kb']:>8.2f}{one['memory']:>7.0f}{load:>7.1f}"
    print(f"{name:<8}{size[0]}x{size[1]:<7}{rate:>5g}{numbers}", flush=True)


def main(words: list[str]) -> None:
    """Carry out one of the measurements."""
    kind, rest = (words[0], words[1:]) if words else ("live", [])
    if kind == "peers":
        numbers = [float(word) for word in rest[1:]]
        peers(rest[0], numbers[0] if numbers else 20, numbers[1:] or [1, 10])
        return
    if kind == "gpus":
        gpus(rest[0], float(rest[1]) if len(rest) > 1 else 20)
        return
    numbers = [float(word) for word in rest]
    if kind == "live":
        live(numbers[0] if numbers else 20, numbers[1:] or [1, 10, 50])
    elif kind == "open":
        opening(int(numbers[0]) if numbers else 1_000_000, int(numbers[1]) if len(numbers) > 1 else 1024)
    elif kind == "soak":
        soak(numbers[0] if numbers else 30, numbers[1] if len(numbers) > 1 else 50)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
