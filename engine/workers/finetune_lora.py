"""LoRA: which of Megatron's modules get adapters, on which base, and how the model with them is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints.torch_dist import TRACKER
from engine.errors import SettingsError
from engine.paths import write_atomic
from engine.settings import Settings
from engine.workers.report import Report

_MODULES: Mapping[str, tuple[str, ...]] = {
    "attention": ("linear_qkv", "linear_proj"),
    # Every layer of gpt-oss is one of experts: no other module is called so.
    "experts": ("linear_fc1", "linear_fc2"),
    "router": ("router",),
}
_BASE = "adapter_base.json"
"""In the run directory: which weights the adapters belong to."""
_HASHED_BYTES = 1 << 20
"""Of the beginning and of the end of each file: a base of hundreds of GB is told apart at once."""


def is_wanted(settings: Settings) -> bool:
    """True when adapters are trained and the weights stay as they are."""
    return settings.training.goal == "lora"


def make(settings: Settings) -> Any:
    """Bridge's LoRA for these settings; None when the goal is another."""
    if not is_wanted(settings):
        return None
    from megatron.bridge.peft.lora import LoRA

    chosen = settings.finetune
    modules = [name for part in chosen.adapted_parts for name in _MODULES[part]]
    return LoRA(target_modules=modules, dim=chosen.lora_rank, alpha=chosen.lora_alpha, dropout=chosen.lora_dropout)


def base_checkpoint(report: Report) -> Path:
    """The iteration of the Megatron checkpoint that the adapters are trained on. Raises SettingsError."""
    chosen = report.settings.model.checkpoint
    start = report.user_path(chosen) if chosen else Path(report.run.converted.name)
    if (start / ".metadata").is_file():
        return start
    try:
        return start / f"iter_{int((start / TRACKER).read_text(encoding='ascii')):07d}"
    except (OSError, ValueError) as error:
        raise SettingsError(f"there is no Megatron checkpoint in {start}: {error}", "run the convert step") from error


def fingerprint(directory: Path) -> str:
    """What tells the checkpoint in `directory` from another. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(directory.glob("*.distcp")) + [directory / ".metadata"]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(0, size - _HASHED_BYTES))
            digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


def check_base(report: Report, *, is_resumed: bool) -> None:
    """Note the base of new adapters; refuse to train others on than the noted one. Raises SettingsError."""
    if not is_wanted(report.settings):
        return
    note = report.run.path / _BASE
    base = base_checkpoint(report)
    found = fingerprint(base)
    if is_resumed:
        known = read_base(report)
        if known and known != found:
            raise SettingsError(
                f"the adapters were trained on other weights ({known}) than those in {base} ({found})",
                "set model.checkpoint back, or start a new run",
            )
    elif report.rank == 0:
        write_atomic(note, json.dumps({"fingerprint": found, "checkpoint": str(base)}) + "\n")


def read_base(report: Report) -> str:
    """The fingerprint of the weights that the run's adapters belong to; empty when there is none."""
    try:
        return str(json.loads((report.run.path / _BASE).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
