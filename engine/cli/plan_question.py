"""What a `gptoss plan` command line asks: flags over settings over the planner's own choice.

A setting that was typed with `--set` counts or is refused; none is passed over in silence.
"""

from __future__ import annotations

import argparse

from engine import local_paths, models, presets
from engine.errors import SettingsError
from engine.machine import Machine
from engine.options import Value
from engine.plan import report
from engine.plan.cluster import Cluster, named, of_machine
from engine.plan.job import RECOMPUTE_OF_SETTING
from engine.plan.layout import Layout
from engine.plan.report import Question
from engine.settings import Settings, parse_assignments

_SIZES = ("layout.tp", "layout.pp", "layout.cp", "layout.ep", "layout.vpp")
_FLAGS = {
    "training.goal": "goal",
    "training.sequence_length": "sequence_length",
    "training.global_batch": "global_batch",
    "training.micro_batch": "micro_batch",
    "training.precision": "precision",
    "training.recompute": "recompute",
    "training.iterations": "tokens",
    "machine.nodes": "nodes",
    "machine.gpus_per_node": "gpus_per_node",
    "model.name": "model",
    "model.path": "model",
    "layout.mode": "layout",
    **dict.fromkeys(_SIZES, "layout"),
}
"""Settings that a flag of the verb says, too."""
_COUNTED = {*_FLAGS, "finetune.lora_rank", "machine.device", "launch.route"}
"""Every setting that a plan looks at."""


def question_of(arguments: argparse.Namespace, machine: Machine | None) -> Question:
    """What is asked, on `machine` or on the GPUs that were named. Raises SettingsError and PlanError."""
    typed = parse_assignments(arguments.assignments)
    preset = presets.find(arguments.preset).settings if arguments.preset else None
    settings = local_paths.absolute((preset or Settings()).with_values(typed))
    _refuse_unheard(typed, settings, arguments)
    if arguments.model:
        if settings.launch.route == "tutorial":
            hint = "leave --model out, or add --set launch.route=bridge"
            raise SettingsError(f"--model {arguments.model}: the tutorial's script trains a toy of its own", hint)
        key = "model.name" if arguments.model in models.CATALOGUE else "model.path"
        custom = {"model.path": ""} if key == "model.name" else {"model.name": "custom"}
        settings = settings.with_values({key: arguments.model, **custom})
    training = settings.training

    def is_chosen(key: str) -> bool:
        """True for what a person or a preset decided; the rest is the planner's to choose."""
        return preset is not None or key in typed

    recompute = report.parse_recompute(arguments.recompute) if arguments.recompute else None
    if recompute is None and is_chosen("training.recompute"):
        recompute = tuple(sorted(RECOMPUTE_OF_SETTING[training.recompute]))
    return Question(
        model=models.find(settings),
        cluster=_cluster(arguments, settings, machine, is_sized="machine.nodes" in typed),
        goal=arguments.goal or training.goal,
        sequence_length=arguments.sequence_length or training.sequence_length,
        global_batch=arguments.global_batch or training.global_batch,
        micro_batch=arguments.micro_batch or (training.micro_batch if is_chosen("training.micro_batch") else None),
        precision=arguments.precision or (training.precision if is_chosen("training.precision") else None),
        gradient_precision=arguments.gradient_precision or None,
        recompute=recompute,
        lora_rank=settings.finetune.lora_rank,
        layout=report.parse_layout(arguments.layout) if arguments.layout else _layout(settings),
        tokens=arguments.tokens or (_tokens(arguments, settings) if "training.iterations" in typed else None),
        price=arguments.price,
    )


def _cluster(arguments: argparse.Namespace, settings: Settings, machine: Machine | None, *, is_sized: bool) -> Cluster:
    """`is_sized`: somebody typed how many nodes there are; else a machine file may say more."""
    wanted = settings.machine
    gpus = arguments.gpus_per_node or wanted.gpus_per_node
    if machine is None:
        return named(arguments.gpu, gpus or 8, arguments.nodes or wanted.nodes)
    if machine.gpus and gpus > len(machine.gpus):
        raise SettingsError(
            f"{gpus} GPUs per node were asked for, and the machine has {len(machine.gpus)}",
            f"give 1 to {len(machine.gpus)}, or another machine: --gpu H100 --gpus-per-node {gpus}",
        )
    nodes = wanted.nodes if is_sized else max(wanted.nodes, machine.nodes)
    return of_machine(machine, gpus, arguments.nodes or nodes)


def _layout(settings: Settings) -> Layout | None:
    chosen = settings.layout
    if chosen.mode == "auto":
        return None
    return Layout(tp=chosen.tp, pp=chosen.pp, cp=chosen.cp, ep=chosen.ep, vpp=chosen.vpp)


def _tokens(arguments: argparse.Namespace, settings: Settings) -> float:
    training = settings.training
    length = arguments.sequence_length or training.sequence_length
    return float(training.iterations * (arguments.global_batch or training.global_batch) * length)


def _refuse_unheard(typed: dict[str, Value], settings: Settings, arguments: argparse.Namespace) -> None:
    """Raise SettingsError for the first typed setting that the plan would not be made by."""
    for key in typed:
        flag = _FLAGS.get(key, "")
        if key not in _COUNTED:
            raise SettingsError(
                f"a plan does not depend on {key}",
                "leave it out here; with everything that a run does: gptoss run PRESET --dry-run",
            )
        if flag and getattr(arguments, flag):
            option = f"--{flag.replace('_', '-')}"
            raise SettingsError(f"{option} and --set {key} say the same thing", "give one of them")
        if key in _SIZES and settings.layout.mode == "auto":
            raise SettingsError(
                f"{key} counts only in a manual layout, and layout.mode is auto",
                f"add --set layout.mode=manual or write --layout {key.partition('.')[2]}={typed[key]}",
            )
    if settings.machine.device == "cpu" and (not arguments.gpu or "machine.device" in typed):
        raise SettingsError(
            "gptoss plan judges GPUs, and machine.device is cpu", "see a rehearsal with: gptoss run PRESET --dry-run"
        )
