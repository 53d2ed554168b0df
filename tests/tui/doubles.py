"""Stand-ins for the engine and for a running training, with frozen data and a frozen clock."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from textual.pilot import Pilot

from engine import models, settings_file
from engine.data.preview import Preview, PreviewRecord, TokenPiece
from engine.errors import NotFoundError, PlanError
from engine.findings import Finding, info
from engine.hardware.gpu import Gpu, GpuSample
from engine.hardware.host import Disk
from engine.machine import Machine
from engine.paths import write_atomic
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.preflight_facts import HubFacts
from engine.presets import Preset
from engine.processes import ProcessId
from engine.run import directory
from engine.run.directory import RunDirectory
from engine.run.state import State, Status, StepState
from engine.settings import Settings
from gptoss_tui.bridge import Services
from gptoss_tui.model_panel import ModelFacts
from tests.limits import LIMIT_S

NOW = 1_767_225_600.0
"""2026-01-01 00:00:00 UTC."""
A_CHAT = (
    "<|start|>",
    "user",
    "<|message|>",
    "2",
    "+",
    "2",
    "?",
    "<|end|>",
    "<|start|>",
    "assistant",
    " 4",
    "<|return|>",
)
STEPS = ("prepare", "convert", "train", "export", "verify")
LAPTOP = Machine(host="laptop", cpu_cores=8, cpu_model="A processor", ram_gib=32.0, ram_free_gib=24.0, shm_gib=16.0)
TINY = {"model": {"name": "tiny"}, "data": {"source": "sample"}, "machine": {"device": "cpu"}}


def dgx() -> Machine:
    """A machine with eight GPUs."""
    gpus = tuple(
        Gpu(index=i, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6, compute_capability=(9, 0), nvlinks=18)
        for i in range(8)
    )
    return replace(LAPTOP, host="dgx", gpus=gpus, cpu_cores=96, ram_gib=2048.0)


def preset(name: str, title: str, tables: dict[str, dict[str, object]]) -> Preset:
    return Preset(name=name, title=title, summary=f"{title}, in more words.", path=Path(), is_user=False, tables=tables)


class FakeServices(Services):
    """An engine that answers at once, remembers what it was asked, and starts nothing."""

    def __init__(self, root: Path, machine: Machine = LAPTOP) -> None:
        self.root = root
        self._machine = machine
        self.started: list[tuple[Settings, str]] = []
        self.asked: list[str] = []
        self.saved: list[str] = []
        self.findings: tuple[Finding, ...] = ()
        self.failure: Exception | None = None

    def presets(self) -> tuple[Preset, ...]:
        large = {"model": {"name": "gpt-oss-20b"}, "training": {"iterations": 5000}}
        return (
            preset("rehearsal", "Tiny gpt-oss on the CPU", {**TINY, "training": {"iterations": 60}}),
            preset("20b-8xh100", "20b on eight H100", large),
        )

    def machine(self) -> Machine:
        return self._machine

    def sample_gpus(self) -> tuple[GpuSample, ...]:
        return tuple(
            GpuSample(index=i, utilisation_percent=90 + i, memory_used_gib=67.5, memory_total_gib=79.6,
                      temperature_c=60 + i, power_w=640.0 + i)
            for i in range(8)
        )  # fmt: skip

    def plan(self, settings: Settings, machine: Machine, *, with_alternatives: bool = True) -> Plan:
        if settings.layout.tp == 3:
            raise PlanError("layout.tp = 3 does not divide the 8 attention heads", "use 1, 2, 4 or 8")
        return make_plan(settings)

    def check(self, settings: Settings, plan: Plan, machine: Machine) -> tuple[Finding, ...]:
        return self.findings

    def model_facts(self, settings: Settings, machine: Machine | None) -> ModelFacts:
        model = models.find(settings)
        cache = Disk(purpose="hugging face cache", path="/cache/hub", free_gib=500.0)
        hub = HubFacts(repository=model.published, cache=cache) if model.published else None
        return ModelFacts(
            model=model, goal=settings.training.goal, hub=hub, download_gib=12.8, source=None, checkpoint=None,
            output=Disk(purpose="runs", path="/runs", free_gib=900.0),
        )  # fmt: skip

    def preview(self, settings: Settings) -> Preview:
        if settings.data.path == "/nowhere":
            raise NotFoundError("there is no file /nowhere", "give a file or a directory")
        pieces = [TokenPiece(text, is_trained=text in (" 4", "<|return|>")) for text in A_CHAT]
        chat = PreviewRecord(text="", tokens=len(pieces), trained_tokens=2, pieces=tuple(pieces))
        return Preview(source=settings.data.source, kind="chat", files=1, size_bytes=12_300, records=(chat,),
                       columns=("messages",), tokenizer="tokenizer.json")  # fmt: skip

    def data_tokens(self, settings: Settings, *, is_packed: bool = True) -> float | None:
        return 1e6

    def delete_preset(self, name: str) -> Path:
        self.asked.append(f"delete {name}")
        return Path(f"{name}.toml")

    def versions(self) -> tuple[Finding, ...]:
        return (info("gpu.none", "there is no NVIDIA GPU", "training needs one; a rehearsal does not"),)

    def save_preset(self, name: str, settings: Settings) -> Path:
        self.saved.append(name)
        return Path(f"{name}.toml")

    def start(self, settings: Settings, plan: Plan, name: str = "") -> RunDirectory:
        if self.failure:
            raise self.failure
        self.started.append((settings, name))
        return FakeRun(self.root, name or "started").run

    def stop(self, run: RunDirectory) -> None:
        self.asked.append(f"stop {run.name}")

    def kill(self, run: RunDirectory) -> None:
        self.asked.append(f"kill {run.name}")

    def resume(self, run: RunDirectory, changes: Mapping[str, object] | None = None) -> None:
        self.asked.append(f"resume {run.name}" + "".join(f" {key}={value}" for key, value in (changes or {}).items()))

    def runs_root(self) -> Path:
        return self.root


def make_plan(settings: Settings) -> Plan:
    steps = tuple(PlannedStep(name=name, ranks_per_node=1, why=f"What {name} is for.") for name in STEPS)
    return Plan(
        device="cpu",
        layout=Layout(ep=2, dp=2),
        ranks_per_node=2,
        nodes=1,
        steps=steps,
        reasons=("EP2: each rank holds half of the experts.",),
        estimate={"memory": {"ram_gib": 2.1, "capacity_gib": 32.0}},
    )


class FakeRun:
    """A run directory as a supervisor and its workers would write it, moment by moment."""

    def __init__(self, root: Path, name: str = "night", *, iterations: int = 200, step: str = "train") -> None:
        self.run = directory.create(root, name)
        settings = Settings().with_values({"model.name": "tiny", "training.iterations": iterations})
        settings_file.save(settings, self.run.settings)
        write_atomic(self.run.plan, make_plan(settings).to_json())
        place = STEPS.index(step)
        done = tuple(
            StepState(
                name=one, status=Status.FINISHED, attempt=i + 1, started=NOW - 90 + 20 * i, ended=NOW - 75 + 20 * i
            )
            for i, one in enumerate(STEPS[:place])
        )
        live = StepState(name=step, status=Status.RUNNING, attempt=place + 1, started=NOW - 50)
        rest = tuple(StepState(name=one) for one in STEPS[place + 1 :])
        self.state = State(
            name=name, status=Status.RUNNING, steps=(*done, live, *rest), step=step, attempt=place + 1,
            created=NOW - 100, heartbeat=NOW, supervisor=ProcessId.of(os.getpid()),
        )  # fmt: skip
        self.attempt = self.run.attempt(place + 1, step)
        self.attempt.mkdir()
        self.put()

    def put(self, **changes: object) -> None:
        """Replace the state."""
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        write_atomic(self.run.state, self.state.to_json())
        os.utime(self.run.state, (NOW, NOW))

    def metrics(self, first: int, last: int) -> None:
        """Append the metric records of some iterations: a falling loss with a wave on it."""
        with self.run.metrics.open("a") as file:
            for n in range(first, last + 1):
                wave = 0.2 * math.sin(n * 1.7)
                record = {
                    "t": NOW - 50 + n / 4, "step": "train", "iteration": n, "loss": 2 + 4 * math.exp(-n / 40) + wave,
                    "grad_norm": 1.5 + wave, "learning_rate": 3e-4, "tokens_per_s": 20_000 + 900 * wave,
                    "iteration_s": 0.25, "skipped": 0, "nan_iterations": 0,
                }  # fmt: skip
                file.write(json.dumps(record) + "\n")

    def validation(self, iteration: int, loss: float) -> None:
        directory.append_line(self.run.metrics, {"step": "train", "iteration": iteration, "validation_loss": loss})

    def event(self, kind: str, message: str, **facts: object) -> None:
        directory.append_line(self.run.events, {"t": NOW - 10, "kind": kind, "message": message, **facts})

    def log(self, text: str, rank: int = 0) -> None:
        with (self.attempt / f"rank-{rank}.log").open("a") as file:
            file.write(text)


def a_full_run(root: Path, name: str = "night") -> FakeRun:
    """A run in the middle of its training, with everything there is to see."""
    fake = FakeRun(root, name)
    fake.metrics(1, 120)
    fake.validation(50, 3.6)
    fake.validation(100, 2.9)
    fake.event("step-started", "train started (attempt 3)", step="train")
    fake.event("checkpoint", "saved the checkpoint of iteration 100", step="train", iteration=100)
    lines = [f" iteration {n:8d}/     200 | lm loss: {4 - n / 60:.6E} | grad norm: 1.955 |" for n in range(1, 121)]
    fake.log("building the model\nWARNING: no flash attention\n" + "\n".join(lines) + "\n", rank=1)
    fake.put(iteration=120, checkpoint=100)
    return fake


async def settled(pilot: Pilot[object], rounds: int = 5) -> None:
    """Let the program work until its picture stays the same."""
    before, same = "", 0

    def is_same() -> bool:
        nonlocal before, same
        strips = pilot.app.screen._compositor.render_strips()
        now = "\n".join(strip.text for strip in strips)
        same = same + 1 if now == before else 0
        before = now
        return same >= rounds

    await until(pilot, is_same)


async def until(pilot: Pilot[object], condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Let the program work until `condition` holds; fails after `limit_s`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while True:
        await pilot.pause()
        if condition():
            return
        assert loop.time() < end, "the condition did not come true"
        await asyncio.sleep(0.005)
