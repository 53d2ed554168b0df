"""The same run in small: a tiny gpt-oss on this machine's CPU, in a layout as near as it can be had.

It tries what a night on GPUs would stumble over late: the data, the goal, the split of the model, the export. It says
nothing about memory, speed or the launcher.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from engine.errors import EngineError, PlanError
from engine.machine import Machine
from engine.plan.layout import Layout
from engine.plan.plan import Plan
from engine.plan.planner import make_plan
from engine.settings import Settings

MOST_RANKS = 4
"""Each takes about a gigabyte; more of them than cores only takes longer."""
MOST_MEGABYTES = 2.0
ITERATIONS = 20
_LEARNING_RATES = {"sft": 3e-3, "continue": 1e-2, "pretrain": 1e-2, "lora": 1e-2}
"""A tiny model of random weights learns at rates that released ones do not survive (presets/rehearsal*.toml)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Settings that rehearse others, planned, and what they leave out."""

    settings: Settings
    plan: Plan
    notes: tuple[str, ...]


def rehearse(settings: Settings, plan: Plan, machine: Machine) -> Rehearsal:
    """The rehearsal of `plan`. Raises PlanError when it computes on the CPU anyway, or nothing can run here."""
    if plan.device == "cpu":
        raise PlanError("this set-up computes on the CPU itself", "launch it: there is nothing smaller to try")
    small = settings.with_values(_small(settings))
    problem: EngineError | None = None
    for layout in _layouts(plan.layout):
        ranks = layout.tp * layout.pp * layout.dp
        if ranks > MOST_RANKS:
            continue
        tried = small.with_values(
            {
                "layout.mode": "manual",
                **{f"layout.{name}": getattr(layout, name) for name in ("tp", "pp", "cp", "ep", "vpp")},
                "machine.cpu_ranks": ranks,
                "training.global_batch": 4 * layout.dp * small.training.micro_batch,
            }
        )
        try:
            made = make_plan(tried, machine)
        except EngineError as error:
            problem = problem or error
            continue
        return Rehearsal(settings=tried, plan=made, notes=_notes(settings, plan.layout, layout))
    raise PlanError(
        f"this cannot be rehearsed here: {problem.message if problem else 'no layout is small enough'}",
        problem.hint if problem else "start the preset: gptoss quickstart rehearsal",
    )


def _small(settings: Settings) -> dict[str, object]:
    goal = settings.training.goal
    values: dict[str, object] = {
        "model.name": "tiny", "model.path": "", "model.checkpoint": "", "data.tokenizer": "",
        "training.iterations": ITERATIONS, "training.sequence_length": 128, "training.micro_batch": 1,
        "training.precision": "fp32", "training.recompute": "none", "training.warmup_iterations": 2,
        "training.decay_iterations": 0, "training.learning_rate": _LEARNING_RATES[goal],
        "training.minimum_learning_rate": 0.0, "training.checkpoint_interval": ITERATIONS,
        "training.evaluation_interval": ITERATIONS, "training.evaluation_iterations": 2, "training.log_interval": 1,
        "machine.device": "cpu", "machine.nodes": 1, "machine.gpus_per_node": 0, "machine.hosts": "",
        "launch.launcher": "local", "launch.route": "bridge", "launch.master_addr": "localhost",
        "launch.master_port": 0, "launch.node_rank": 0, "launch.restarts": 0, "output.keep_checkpoints": 1,
    }  # fmt: skip
    if settings.data.source in ("prefix", "mock"):
        # Ids of the real tokenizer do not fit the tiny model's 512.
        values |= {"data.source": "sample", "data.path": ""}
    elif settings.data.source != "sample":
        # With so small a vocabulary a text has several times as many tokens.
        values["training.sequence_length"] = 512
    if goal not in ("sft", "lora"):
        few = settings.data.max_megabytes or MOST_MEGABYTES
        values["data.max_megabytes"] = min(few, MOST_MEGABYTES)
    return values


def _layouts(real: Layout) -> list[Layout]:
    """Layouts with the axes of `real` at two or one, those that keep most of them first."""
    tried = []
    for tp, pp, ep, dp in product(*((2, 1) if size > 1 else (1,) for size in (real.tp, real.pp, real.ep, real.dp))):
        # The experts are spread over the tensor-parallel ranks too.
        tried.append(Layout(tp=tp, pp=pp, ep=ep, dp=max(dp, ep // tp)))
    return sorted(tried, key=lambda one: -sum(size > 1 for size in (one.tp, one.pp, one.ep, one.dp)))


def _notes(settings: Settings, real: Layout, small: Layout) -> tuple[str, ...]:
    """What the rehearsal does otherwise, in sentences."""
    notes = [
        f"{real} becomes {small}, {settings.model.name} a tiny model of the same kind, for {ITERATIONS} iterations."
    ]
    if lost := [name for name in ("tp", "pp", "cp", "ep", "vpp") if getattr(real, name) > 1 == getattr(small, name)]:
        notes.append(f"Not rehearsed: {', '.join(name.upper() for name in lost)}.")
    if settings.data.source in ("prefix", "mock"):
        notes.append("The sample text stands in for the data: the tiny model has a vocabulary of its own.")
    if settings.launch.launcher != "local" or settings.machine.nodes > 1:
        notes.append("It starts on this machine; the launcher and the network are not tried.")
    return tuple(notes)
