"""FakeTraining: stands in for the interpreter, torchrun and the workers of a run, without torch.

It is what `launch.python` names, is called with the arguments a real interpreter would get, and is
supervised exactly as a training is: a launcher starts ranks in sessions of their own and treats
signals and lost ranks as torchrun does; the ranks report through the real `engine.workers.report`,
wait for each other at every iteration and for ever, save checkpoints in parts, and go on from
where the real `engine.workers.checkpoints` says. The loss is a chain: one lost or repeated
iteration changes every later one.

`pace.json` in the run says how long things take, and whether a first attempt hangs or is deaf to SIGTERM.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.checkpoints import torch_dist, training
from engine.run import rotation
from engine.workers import checkpoints, files
from engine.workers.report import Report, Stopped, run_worker

PACE = {"iteration_s": 0.015, "save_s": 0.12, "step_s": 0.3, "rank_bytes": 65_536, "hang_at": 0, "deaf": 0}
CHECKPOINTS = Path("checkpoints")
"""Relative to the run, which is where ranks work: what Megatron is given too."""
OF_STEP = {"prepare": "data", "convert": "converted", "export": "export"}


# What torchrun does.


def launch(step: str, run: str, ranks: int) -> int:
    """Start the ranks; end all when one fails or a signal comes."""
    ended_by: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: ended_by.append(number))
    children = [_start_rank(step, run, rank, ranks) for rank in range(ranks)]
    while any(child.poll() is None for child in children):
        if ended_by or any(child.poll() not in (None, 0) for child in children):
            _end(children)
            return 1
        time.sleep(0.02)
    return 0 if all(child.returncode == 0 for child in children) else 1


def _start_rank(step: str, run: str, rank: int, ranks: int) -> subprocess.Popen[bytes]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "TORCHELASTIC_RUN_ID": "double"}
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    words = [sys.executable, __file__, "--rank", step, run]
    return subprocess.Popen(words, env=environment, start_new_session=True)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))
    while any(child.poll() is None for child in children):
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.02)


# What the workers do.


def step_work(report: Report) -> Mapping[str, Any]:
    """A step that makes one directory, whole or not at all."""
    seconds = _pace(report)["step_s"]
    if report.step not in OF_STEP:
        _take_time(report, seconds)
        return {"verified": True}
    final = report.run.path / OF_STEP[report.step]
    made = files.partial(final)
    made.mkdir()
    for part in range(4):
        (made / f"part-{part}").write_bytes(_content(report, part))
        _take_time(report, seconds / 4)
    files.publish(made, final)
    return {"files": 4}


def _content(report: Report, part: int) -> bytes:
    if report.step != "export":
        return bytes([part]) * 1000
    newest = training.newest_whole(report.run.checkpoints)
    assert newest is not None
    return (training.directory(report.run.checkpoints, newest) / "__0_0.distcp").read_bytes()[:8]


def _take_time(report: Report, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    report.progress("a part", 1, 1, "parts")


def train(report: Report) -> Mapping[str, Any]:
    """Iterations that depend on all before them, on all ranks together."""
    resumed = None
    if report.rank == 0:
        resumed, sentences = checkpoints.repair(report.run, report.settings)
        for sentence in sentences:
            report.event("warning", sentence)
    exchange = Exchange(report)
    exchange.wait(-1, 0.0, asked=False)  # Megatron's ranks agree on where to begin
    if report.rank:
        resumed = training.newest_whole(report.run.checkpoints)
    return _Training(report, exchange, resumed).run()


class _Training:
    def __init__(self, report: Report, exchange: Exchange, resumed: int | None) -> None:
        self.report, self.exchange, self.iteration = report, exchange, resumed or 0
        self.pace = _pace(report)
        self.value = report.rank + 1
        if resumed:
            self.value = struct.unpack("<q", self._part(resumed).read_bytes()[:8])[0]
        self.asked = False
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self.pace["deaf"] else self._on_stop)

    def run(self) -> Mapping[str, Any]:
        chosen = self.report.settings.training
        self.report.phase(f"training from iteration {self.iteration}")
        while self.iteration < chosen.iterations:
            self._iterate()
            stop = self._is_stop_wanted()
            if stop or self.iteration % chosen.checkpoint_interval == 0 or self.iteration == chosen.iterations:
                self._save()
            if stop:
                raise Stopped({"iteration": self.iteration})
        return {"iteration": self.iteration} if self.report.rank == 0 else {}

    def _iterate(self) -> None:
        time.sleep(self.pace["iteration_s"])
        # One step of a linear congruential generator: no two chains of different length agree.
        self.value = (self.value * 6364136223846793005 + 1442695040888963407) % 2**61
        self.iteration += 1
        if self.iteration == self.pace["hang_at"] and len(list(self.report.run.attempts.glob("*-train"))) == 1:
            threading.Event().wait()
        loss = self.exchange.sum(self.iteration, self.value / 2**61, asked=self.asked)
        if self.report.rank == 0:
            self.report.metric(self.iteration, loss=loss, iteration_s=self.pace["iteration_s"])

    def _is_stop_wanted(self) -> bool:
        return self.exchange.any_asked(self.iteration)

    def _save(self) -> None:
        directory = training.directory(CHECKPOINTS, self.iteration)
        directory.mkdir(parents=True, exist_ok=True)
        with self._part(self.iteration).open("wb") as file:
            file.write(struct.pack("<q", self.value))
            for _ in range(8):
                file.write(bytes(int(self.pace["rank_bytes"]) // 8))
                file.flush()
                time.sleep(self.pace["save_s"] / 8)
        self.exchange.wait(self.iteration + 0.5, 0.0, asked=self.asked)
        if self.report.rank == 0:
            _complete(self.report, directory, self.iteration)
        self.exchange.wait(self.iteration + 0.75, 0.0, asked=self.asked)

    def _part(self, iteration: int) -> Path:
        return training.directory(CHECKPOINTS, iteration) / f"__{self.report.rank}_0.distcp"

    def _on_stop(self, number: int, frame: object) -> None:
        self.asked = True


def _complete(report: Report, directory: Path, iteration: int) -> None:
    """What rank 0 writes when every part is there, in Megatron's order."""
    parts = {f"rank{path.name}": path for path in directory.glob("*.distcp")}
    (directory / ".metadata").write_bytes(_metadata(parts))
    (directory / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (directory / "train_state.pt").write_text(str(iteration))
    shutil.copyfile(directory / "train_state.pt", CHECKPOINTS / checkpoints.TRAIN_STATE)
    (CHECKPOINTS / torch_dist.TRACKER).write_text(str(iteration))
    (directory / "run_config.yaml").write_text("scheduler:\n  lr_decay_iters: 1\n")
    report.event("checkpoint", f"checkpoint of iteration {iteration} saved", iteration=iteration)
    rotation.rotate(report.run, report.settings)


def _metadata(parts: Mapping[str, Path]) -> bytes:
    """An index like torch's: a pickle of objects that name torch, and where each part ends."""
    modules = {"torch": ModuleType("torch"), "torch.double": (module := ModuleType("torch.double"))}
    names = ("Index", "Info", "BytesStorageMetadata", "Metadata")
    kinds = {name: type(name, (SimpleNamespace,), {"__module__": module.__name__}) for name in names}
    for name, kind in kinds.items():
        kind.__hash__ = lambda self: hash(self.fqn)  # type: ignore[method-assign,attr-defined]
        setattr(module, name, kind)
    places = {
        kinds["Index"](fqn=key): kinds["Info"](relative_path=path.name, offset=0, length=path.stat().st_size)
        for key, path in parts.items()
    }
    entries = {key: kinds["BytesStorageMetadata"]() for key in parts}
    root = kinds["Metadata"](storage_data=places, state_dict_metadata=entries)
    with patch.dict(sys.modules, modules):
        return pickle.dumps(root)


class Exchange:
    """What NCCL is to real ranks: nobody goes on before everybody came, however long that takes."""

    SLOT = struct.Struct("<dd?7x")

    def __init__(self, report: Report) -> None:
        self.rank, self.ranks = report.rank, report.world_size
        attempt = Path(os.environ["GPTOSS_ATTEMPT"])
        network = os.environ.get("FAKE_NETWORK")  # a directory on no share: real ranks do not talk through one
        path = Path(network) / f"exchange-{attempt.name}" if network else attempt / "exchange"
        size = self.SLOT.size * self.ranks * 2
        with path.open("ab") as file:
            file.truncate(size)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        self._turn = 0

    def wait(self, at: float, value: float, *, asked: bool) -> list[tuple[float, float, bool]]:
        """Everybody's value at the point `at` of the training."""
        # Two sets of slots in turn: nobody can be two points ahead.
        self._turn = 1 - self._turn
        self.SLOT.pack_into(self._memory, self._place(self.rank), at + 2, value, asked)
        while True:
            slots = [self.SLOT.unpack_from(self._memory, self._place(rank)) for rank in range(self.ranks)]
            if all(slot[0] == at + 2 for slot in slots):
                self._last = slots
                return slots
            time.sleep(0.001)

    def sum(self, at: float, value: float, *, asked: bool) -> float:
        return sum(slot[1] for slot in self.wait(at, value, asked=asked))

    def any_asked(self, at: float) -> bool:
        return any(slot[2] for slot in self._last)

    def _place(self, rank: int) -> int:
        return (self._turn * self.ranks + rank) * self.SLOT.size


def _pace(report: Report) -> dict[str, float]:
    try:
        return PACE | json.loads((report.run.path / "pace.json").read_text())
    except FileNotFoundError:
        return dict(PACE)


def main(words: list[str]) -> int:
    if words[0] == "--rank":
        return run_worker(words[1], train if words[1] == "train" else step_work, words[2:])
    step = next(word for word in words if word.startswith("engine.workers.")).rpartition(".")[2]
    if "torch.distributed.run" not in words:
        return run_worker(step, step_work, words[-1:])
    return launch(step, words[-1], int(words[words.index("--nproc-per-node") + 1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
