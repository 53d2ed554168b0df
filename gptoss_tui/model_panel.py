"""What the Model station tells: where the weights come from, what that costs, and what becomes of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.number_text import size_text
from engine.paths import expanded
from gptoss_tui import words
from gptoss_tui.widgets.canvas import Row
from gptoss_tui.widgets.fact_rows import Told, told_rows

if TYPE_CHECKING:
    from engine.checkpoints.inspect import Inspection
    from engine.hardware.host import Disk
    from engine.machine import Machine
    from engine.models import Model
    from engine.plan.plan import Plan
    from engine.preflight_facts import HubFacts
    from engine.settings import Settings

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What was found out about the chosen model on this host."""

    model: Model
    goal: str
    hub: HubFacts | None
    """None when nothing is taken from the Hugging Face hub."""
    download_gib: float
    source: Inspection | None
    """The directory of model.path."""
    checkpoint: Inspection | None
    """The directory of model.checkpoint."""
    output: Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a run takes of its host; nothing without a plan."""

    disk_gib: Mapping[str, float] = field(default_factory=dict)
    """What it will write, by what it is."""
    ram_gib: Mapping[str, float] = field(default_factory=dict)
    """Host memory, by the step."""
    machine_ram_gib: float = 0.0


def needs(settings: Settings, plan: Plan | None, machine: Machine | None, model: Model) -> Needs:
    """What the run of a plan takes."""
    from engine import preflight

    if plan is None:
        return Needs()
    return Needs(
        disk_gib=preflight.disk_need_gib(settings, plan, model),
        ram_gib=preflight.memory_need_gib(settings, plan, model),
        machine_ram_gib=machine.ram_gib if machine else 0.0,
    )


def read(settings: Settings, machine: Machine | None, runs_root: Path) -> ModelFacts:
    """Look at the cache, the named directories and the disks; reads headers, no weights. For a thread.

    Raises EngineError for a model or a directory that cannot be used.
    """
    from engine import models, preflight
    from engine.checkpoints.inspect import inspect
    from engine.hardware.host import read_disk
    from engine.preflight_facts import read_hub

    model, chosen = models.find(settings), settings.model
    output = expanded(settings.output.directory) if settings.output.directory else runs_root
    hub = read_hub(settings, model, os.environ)
    described = machine.disk("runs") if machine is not None and machine.is_described else None
    if hub is not None and described is not None:
        hub = replace(hub, cache=replace(hub.cache, free_gib=described.free_gib, is_writable=True))
    return ModelFacts(
        model=model,
        goal=settings.training.goal,
        hub=hub,
        download_gib=preflight.download_gib(model),
        source=inspect(Path(chosen.path)) if chosen.path and settings.training.goal != "pretrain" else None,
        checkpoint=inspect(Path(chosen.checkpoint)) if chosen.checkpoint else None,
        output=replace(described, path=str(output)) if described is not None else read_disk("runs", output),
    )


def rows(facts: ModelFacts, needed: Needs, width: int) -> list[Row]:
    """The facts as `name  sentence`, what stands in the way marked."""
    model = facts.model
    size = f"{words.count(model.parameters)} parameters, {words.count(model.active_parameters)} of them for each token"
    shape = f"{size}; {model.layers} layers, {model.experts} experts of which {model.top_k} are used"
    told: list[Told] = [*_weights(facts), *_room(needed, facts.output), ("model", "", shape)]
    if facts.goal != "pretrain" and not facts.checkpoint and _is_mxfp4(facts):
        told.append(("format", "", _FORMAT))
    return told_rows(told, width)


_FORMAT = (
    "The released experts are 4-bit numbers (MXFP4). Converting unpacks them to BF16 without rounding, because that is "
    "what training computes with. The export is BF16 as well: it is compared with the trained model, and the released "
    "files are not the reference any more."
)


def _weights(facts: ModelFacts) -> list[Told]:
    """Where the weights come from."""
    if facts.checkpoint is not None:
        found = facts.checkpoint
        if found.problems:
            return [("weights", "bad", found.problems[0])]
        at = f", iteration {found.iteration:,}" if found.iteration else ""
        return [("weights", "good", f"a Megatron checkpoint of {_size(found.size_bytes)}{at}; nothing is converted")]
    if facts.source is not None:
        found = facts.source
        if found.problems:
            return [("weights", "bad", found.problems[0])]
        kinds = " and ".join(found.dtypes)
        return [("weights", "good", f"{_size(found.size_bytes)} in {kinds}, in {found.path}; nothing is downloaded")]
    if facts.goal == "pretrain":
        told: list[Told] = [("weights", "", "random ones: pre-training starts from nothing")]
        return told + ([_config(facts.hub)] if facts.hub else [])
    if facts.hub is None:
        return [("weights", "good", "random ones, made by the first step; nothing is downloaded")]
    return _hub(facts, facts.hub)


def _hub(facts: ModelFacts, hub: HubFacts) -> list[Told]:
    if hub.is_complete:
        return [("weights", "good", f"{hub.repository}, complete in the Hugging Face cache {hub.cache.path}")]
    size = f"{facts.download_gib:.1f} GiB"
    if hub.is_offline:
        fix = f"run `hf download {hub.repository}` where there is a network, or give a directory as path"
        return [("weights", "bad", f"{hub.repository} is not in {hub.cache.path} and HF_HUB_OFFLINE is set: {fix}")]
    room = f"{hub.cache.free_gib:,.0f} GiB free"
    told: list[Told] = [
        ("download", "", f"{hub.repository}, {size}, by the first step"),
        ("into", "", str(hub.cache.path)),
    ]
    if facts.download_gib > hub.cache.free_gib:
        told[-1] = ("into", "bad", f"{hub.cache.path}: {room}, {size} needed; set HF_HOME to a disk with room")
    elif not hub.cache.is_writable:
        told[-1] = ("into", "bad", f"{hub.cache.path} cannot be written; set HF_HOME to a directory of yours")
    else:
        told[-1] = ("into", "good", f"{hub.cache.path}, {room}")
    token = (
        "found; it is never written anywhere" if hub.has_token else "none: not needed, faster with one (F4 takes one)"
    )
    return [*told, ("token", "", token)]


def _config(hub: HubFacts) -> Told:
    if hub.has_config:
        return ("download", "good", "nothing: config and tokenizer are in the cache")
    if hub.is_offline:
        return ("download", "bad", f"config and tokenizer of {hub.repository} are missing and HF_HUB_OFFLINE is set")
    return ("download", "", f"config and tokenizer of {hub.repository}, a few megabytes")


def _room(needed: Needs, output: Disk) -> list[Told]:
    """Whether disk and memory are enough for what the run does with the model."""
    told: list[Told] = []
    if need := sum(needed.disk_gib.values()):
        parts = ", ".join(f"{size_text(size)} for {what}" for what, size in needed.disk_gib.items())
        free = output.free_gib
        verdict = f"{size_text(need)} of {size_text(free)} free in {output.path}: {parts}"
        told.append(("disk", "bad" if need > free else "good", verdict))
    if needed.ram_gib:
        step, most = max(needed.ram_gib.items(), key=lambda item: item[1])
        verdict = f"{size_text(most)} of {size_text(needed.machine_ram_gib)} at most, while {step}"
        told.append(("memory", "bad" if most > needed.machine_ram_gib else "good", verdict))
    return told


def _is_mxfp4(facts: ModelFacts) -> bool:
    if facts.source is not None:
        return "mxfp4" in facts.source.dtypes
    return facts.hub is not None


def _size(amount: int) -> str:
    return size_text(amount / GIB)
