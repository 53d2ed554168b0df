"""Changed settings that may cure a diagnosed failure: each cure is named in catalogue.toml.

A cure gets what the failure said and how the run was set up, and returns `table.name` values, or
nothing where no setting would help. It proposes; a person or the supervisor applies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from engine.errors import EngineError
from engine.models import find as find_model
from engine.options import Value
from engine.plan import memory
from engine.plan.job import from_training
from engine.plan.layout import Layout
from engine.plan.plan import Plan
from engine.settings import Settings

type Edit = dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One failed run: its settings, its plan when there is one, and the words of the failure."""

    settings: Settings
    plan: Plan | None
    said: Mapping[str, str]
    """The named parts of the line that matched."""

    @property
    def layout(self) -> Layout:
        if self.plan is not None:
            return self.plan.layout
        chosen = self.settings.layout
        return Layout(tp=chosen.tp, pp=chosen.pp, cp=chosen.cp, ep=chosen.ep, vpp=chosen.vpp)


def less_gpu_memory(patient: Patient) -> Edit:
    """The cheapest change that fits by the planner's formula; without a plan, the next cheaper one."""
    steps = list(_cheaper(patient.settings))
    capacity = capacity_gib(patient)
    for edit in steps:
        need = need_gib(patient, edit)
        if capacity and need is not None and need <= memory.SAFE_SHARE * capacity - _shortfall_gib(patient, capacity):
            return edit
    # The formula knows nothing of this failure: take what saves most without another layout.
    return steps[-1] if capacity and steps else (steps[0] if steps else planned_layout(patient))


def fewer_cpu_ranks(patient: Patient) -> Edit:
    """One process fewer for a rehearsal; for GPUs nothing can be said."""
    machine = patient.settings.machine
    on_cpu = patient.plan.device == "cpu" if patient.plan else machine.device == "cpu"
    if not on_cpu or machine.cpu_ranks <= 1:
        return {}
    return {"machine.cpu_ranks": machine.cpu_ranks // 2, "layout.mode": "auto"}


def use_what_is_there(patient: Patient) -> Edit:
    """Let the device be found, for those that asked for GPUs."""
    return {"machine.device": "auto"} if patient.settings.machine.device == "gpu" else {}


def all_gpus(patient: Patient) -> Edit:
    """As many GPUs as there are, and a layout for them."""
    return {"machine.gpus_per_node": 0, "layout.mode": "auto"} if patient.settings.machine.gpus_per_node else {}


def own_tokenizer(patient: Patient) -> Edit:
    """The model's own tokenizer."""
    return {"data.tokenizer": ""} if patient.settings.data.tokenizer else {}


def no_context_parallel(patient: Patient) -> Edit:
    """No split of the sequence: attention sinks under it need the newest kernels."""
    return {"layout.cp": 1} if patient.settings.layout.cp > 1 else {}


def no_tensor_parallel(patient: Patient) -> Edit:
    """No split of the matrices, with a layout for that."""
    return {"layout.mode": "auto"} if patient.settings.layout.tp > 1 else {}


def planned_layout(patient: Patient) -> Edit:
    """A layout chosen by the planner."""
    return {"layout.mode": "auto"} if patient.settings.layout.mode == "manual" else {}


def fitting_batch(patient: Patient) -> Edit:
    """The nearest global batch that is a multiple of micro batch x data-parallel size."""
    try:
        share = int(patient.said["micro"]) * int(patient.said["data"])
        batch = int(patient.said["batch"])
    except (KeyError, ValueError):
        return {}
    return {"training.global_batch": max(share, round(batch / share) * share)}


def other_recompute(patient: Patient) -> Edit:
    """Whole layers instead of single modules."""
    return {"training.recompute": "full"} if patient.settings.training.recompute == "moe" else {}


def bridge_route(patient: Patient) -> Edit:
    """Train with Megatron-Bridge."""
    return {"launch.route": "bridge"} if patient.settings.launch.route != "bridge" else {}


def saved_schedule(patient: Patient) -> Edit:
    """The length of the schedule as the checkpoint has it; Megatron counts it in samples."""
    if "iterations" not in patient.said.get("what", ""):
        return {}
    try:
        samples = float(patient.said["saved"])
    except (KeyError, ValueError):
        return {}
    iterations = samples / patient.settings.training.global_batch
    return {"training.decay_iterations": int(iterations)} if iterations.is_integer() and iterations >= 1 else {}


def gentler_learning(patient: Patient) -> Edit:
    """Half the learning rate, a longer warm-up."""
    training = patient.settings.training
    edit: Edit = {
        "training.learning_rate": training.learning_rate / 2,
        "training.warmup_iterations": min(training.iterations, max(10, training.warmup_iterations * 2)),
    }
    if training.minimum_learning_rate > training.learning_rate / 2:
        edit["training.minimum_learning_rate"] = training.learning_rate / 2
    return edit


def fewer_checkpoints(patient: Patient) -> Edit:
    """Keep fewer of them."""
    kept = patient.settings.output.keep_checkpoints
    return {"output.keep_checkpoints": 1 if kept else 2} if kept != 1 else {}


def free_port(patient: Patient) -> Edit:
    """A free port instead of a fixed one; between nodes, the next one."""
    launch = patient.settings.launch
    if patient.settings.machine.nodes == 1:
        return {"launch.master_port": 0} if launch.master_port else {}
    return {"launch.master_port": (launch.master_port or 29500) + 1}


def requeue(patient: Patient) -> Edit:
    """Let Slurm queue the job again by itself."""
    launch = patient.settings.launch
    return {"launch.requeue": True} if launch.launcher == "slurm" and not launch.requeue else {}


_ALL: tuple[Callable[[Patient], Edit], ...] = (
    less_gpu_memory,
    fewer_cpu_ranks,
    use_what_is_there,
    all_gpus,
    own_tokenizer,
    no_context_parallel,
    no_tensor_parallel,
    planned_layout,
    fitting_batch,
    other_recompute,
    bridge_route,
    saved_schedule,
    gentler_learning,
    fewer_checkpoints,
    free_port,
    requeue,
)
CURES = {cure.__name__: cure for cure in _ALL}
"""Every cure by the name that the catalogue uses."""


def propose(name: str, patient: Patient) -> Edit:
    """What the cure called `name` would change; nothing that is so already, nothing for no name."""
    if not name:
        return {}
    return {key: value for key, value in CURES[name](patient).items() if patient.settings.value(key) != value}


EDITED = (
    "training.micro_batch",
    "training.global_batch",
    "training.recompute",
    "training.learning_rate",
    "training.minimum_learning_rate",
    "training.warmup_iterations",
    "training.decay_iterations",
    "data.tokenizer",
    "layout.mode",
    "layout.cp",
    "machine.device",
    "machine.cpu_ranks",
    "machine.gpus_per_node",
    "launch.route",
    "launch.master_port",
    "launch.requeue",
    "output.keep_checkpoints",
)
"""Every setting that a cure may propose to change."""


def _cheaper(settings: Settings) -> Iterator[Edit]:
    """Changes that save GPU memory, the cheapest in time first, none that changes what is learnt."""
    training = settings.training
    ladder = ["none", "moe", "full"]
    stronger = ladder[ladder.index(training.recompute) + 1 :]
    if training.micro_batch > 1:
        yield {"training.micro_batch": training.micro_batch // 2}
    smallest: Edit = {"training.micro_batch": 1} if training.micro_batch > 1 else {}
    if training.micro_batch > 2:
        yield dict(smallest)
    for recompute in stronger:
        yield {**smallest, "training.recompute": recompute}


def capacity_gib(patient: Patient) -> float:
    """Memory of the GPU, as the failure said or as the plan knew; 0 when neither tells."""
    try:
        return float(patient.said["capacity"])
    except (KeyError, ValueError):
        known = patient.plan.estimate.get("memory") if patient.plan else None
        found = known.get("capacity_gib") if isinstance(known, Mapping) else None
        return float(found) if isinstance(found, (int, float)) else 0.0


def need_gib(patient: Patient, edit: Mapping[str, Value]) -> float | None:
    """Memory of the fullest GPU by the planner's formula, with `edit` applied; None when it cannot be told."""
    try:
        settings = patient.settings.with_values(edit)
        job = from_training(settings.training, find_model(settings), settings.finetune.lora_rank)
        return max(stage.total_gib for stage in memory.estimate(job, patient.layout))
    except EngineError:
        return None


def _shortfall_gib(patient: Patient, capacity: float) -> float:
    """By how much the formula was too low for the job as it ran: it did not fit, so at least to the brim."""
    need = need_gib(patient, {})
    return max(0.0, capacity - need) if need is not None and math.isfinite(need) else 0.0
