"""How gptoss carries loads that a person may well have: many runs, many watchers, fast records, large logs.

    python bench/load.py [--runs 1000] [--watchers 16] [--seconds 10] [--gigabytes 10]

Prints a Markdown table for docs/reliability.md. Runs, records and logs are made by this file; what reads them is the
program itself. The large log is sparse but for its ends: its size on disk is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.monitor import FakeTraining, Terminal, monitor_command
from engine import paths
from engine.monitor.tail import Tail
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.processes import ProcessId
from engine.run import directory, start
from engine.run.directory import RunDirectory, append_line
from engine.run.health import Health
from engine.run.state import Status
from engine.settings import Settings

PLAN = Plan(
    device="cpu",
    layout=Layout(),
    ranks_per_node=1,
    nodes=1,
    steps=(PlannedStep(name="train", ranks_per_node=1, why="load"),),
)


def make_runs(root: Path, count: int, live: int) -> None:
    """Runs as they lie on disk; `live` of them are recorded as at work by this process."""
    settings = Settings().with_values({"model.name": "tiny", "output.directory": str(root)})
    for number in range(count):
        run = start.create(settings, PLAN, f"run-{number:04d}")
        state = run.read_state()
        if number < live:
            state = replace(state, status=Status.RUNNING, supervisor=ProcessId.of(os.getpid()), step="train", attempt=1)
        else:
            state = replace(state, status=Status.FINISHED, iteration=100, ended=time.time())
        paths.write_atomic(run.state, state.to_json())


def best_of(count: int, work) -> float:  # type: ignore[no-untyped-def]
    """The shortest of `count` times, in seconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def gptoss(*words: str) -> list[str]:
    return [sys.executable, "-m", "gptoss_tui", *words]


def many_runs(root: Path, count: int, live: int) -> list[tuple[str, str]]:
    make_runs(root, count, live)
    listed = best_of(3, lambda: [run.read_state().observed() for run in directory.list_runs(root)])
    verb = best_of(3, lambda: subprocess.run(gptoss("runs", "--json"), check=True, capture_output=True))
    return [
        (f"{count:,} runs listed, {live} of them alive (in process)", f"{listed * 1000:,.0f} ms"),
        ("`gptoss runs --json` over them, start-up included", f"{verb:.2f} s"),
    ]


def many_watchers(root: Path, count: int, rate: int, seconds: float) -> list[tuple[str, str]]:
    """One live run that gets `rate` metrics a second, its supervisor's eye on it, and `count` headless watchers."""
    run = RunDirectory(root / "run-0000")
    watchers = [
        subprocess.Popen(gptoss("attach", run.name, "--headless"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    time.sleep(3)
    health = Health(run, Settings(), lambda text: None)
    before = [_cpu_s(watcher.pid) for watcher in watchers]
    looks, written = 0.0, 0
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        while written < now * rate:
            written += 1
            append_line(run.metrics, {"t": time.time(), "step": "train", "iteration": written, "loss": 1 / written,
                                      "iteration_s": 1 / rate, "tokens_per_s": 1e5, "grad_norm": 0.5})  # fmt: skip
        if int(now) > int(now - 0.05):
            clock = time.thread_time()
            health.look(is_training=True)
            looks += time.thread_time() - clock
        time.sleep(0.05)
    took = time.monotonic() - began
    busy = sorted(_cpu_s(watcher.pid) - old for watcher, old in zip(watchers, before, strict=True))
    memory = max(psutil.Process(watcher.pid).memory_info().rss for watcher in watchers) / 2**20
    for watcher in watchers:
        watcher.terminate()
        watcher.wait()
    seen = health.iteration
    health.close()
    assert seen and seen > 0.8 * written, f"the supervisor saw {seen} of {written}"
    return [
        (f"{rate:,} metrics a second: CPU of the supervisor's rules", f"{looks / took:.1%} of one core"),
        (f"the same watched {count} times: CPU of a watcher, median and most",
         f"{busy[len(busy) // 2] / took:.1%}, {busy[-1] / took:.1%} of one core"),
        ("memory of the largest watcher", f"{memory:,.0f} MiB"),
    ]  # fmt: skip


def many_screens(root: Path, count: int, seconds: float, rate: float = 10.0) -> list[tuple[str, str]]:
    """One run that logs `rate` iterations a second, in `count` full-screen monitors of 80x24."""
    training = FakeTraining(root, "screens", rate, total=100_000)
    training.start()
    screens = [Terminal(monitor_command(training.run_directory.path), (80, 24)) for _ in range(count)]
    for screen in screens:
        screen.await_text("running")
    time.sleep(seconds / 2)
    before = [screen.cpu_s() for screen in screens]
    written = [screen.bytes for screen in screens]
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    busy = sorted((screen.cpu_s() - old) / took for screen, old in zip(screens, before, strict=True))
    sent = sorted((screen.bytes - old) / took / 1000 for screen, old in zip(screens, written, strict=True))
    memory = max(screen.memory_mib() for screen in screens)
    for screen in screens:
        screen.close()
    training.is_over.set()
    training.join()
    return [
        (f"{count} full screens (80x24) on a run of {rate:g} iterations/s: CPU of a screen, median and most",
         f"{busy[count // 2]:.1%}, {busy[-1]:.1%} of one core"),
        ("what such a screen sends to its terminal, median", f"{sent[count // 2]:.2f} KB/s"),
        ("memory of the largest of them", f"{memory:,.0f} MiB"),
    ]  # fmt: skip


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def large_log(root: Path, gigabytes: float) -> list[tuple[str, str]]:
    """The end of a huge rank log, as `gptoss logs` and the failure doctor need it."""
    run = RunDirectory(root / "run-0001")
    attempt = run.attempt(1, "train")
    attempt.mkdir(exist_ok=True)
    state = run.read_state()
    state = replace(state.with_step("train", attempt=1), status=Status.FAILED, step="train", attempt=1)
    paths.write_atomic(run.state, state.to_json())
    log = attempt / "rank-0.log"
    with log.open("wb") as file:
        file.write(b"the first line\n")
        file.truncate(int(gigabytes * 1e9))
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"[00:00:00] an ordinary line of a log\n" * 1000)
        file.write(b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 79 GiB in all\n")
    from engine.monitor.diagnose import diagnose

    found = diagnose(attempt, Settings(), PLAN)
    assert found is not None
    doctor = best_of(3, lambda: diagnose(attempt, Settings(), PLAN))
    opened = best_of(3, lambda: Tail(log).read())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        (f"cause of failure from a log of {gigabytes:g} GB (sparse)", f"{doctor * 1000:,.0f} ms"),
        ("first lines of that log for `gptoss logs`", f"{opened * 1000:,.0f} ms"),
        ("memory of the process that did all of this, at most", f"{peak:,.0f} MiB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--live", type=int, default=200)
    parser.add_argument("--watchers", type=int, default=16)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--gigabytes", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["GPTOSS_RUNS"] = place
        rows = many_runs(root, arguments.runs, arguments.live)
        rows += many_watchers(root, arguments.watchers, arguments.rate, arguments.seconds)
        rows += many_screens(root, arguments.watchers, arguments.seconds)
        rows += large_log(root, arguments.gigabytes)
    print(json.dumps({"load average at the end": os.getloadavg()}), file=sys.stderr)
    print("| Load | Measured |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
