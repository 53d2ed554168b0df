"""What fine-tuning adds to an export: merged adapters, PEFT's adapter files, chat template, model card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import StepFailed
from engine.finetune_settings import GOALS
from engine.workers import finetune_adapter, finetune_card, finetune_lora, finetune_template
from engine.workers.finetune_adapter import Heads
from engine.workers.finetune_chats import style_of
from engine.workers.report import Report
from engine.workers.source import hugging_face_source, load_config

ADAPTER = "adapter"
"""The directory in the export that holds the adapter alone."""


def finished(
    report: Report, config: Any, checkpoint: Path, weights: Iterable[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """The weights as they are after the training: with the adapters added, where adapters were trained."""
    if not finetune_lora.is_wanted(report.settings):
        yield from weights
        return
    chosen = report.settings.finetune
    yield from finetune_adapter.merged(weights, _peft(config, checkpoint), chosen.lora_alpha / chosen.lora_rank)


def describe(report: Report, config: Any, checkpoint: Path, directory: Path) -> None:
    """Add the adapter, a chat template if there is none, and the model card to the export. Raises OSError."""
    settings = report.settings
    if settings.training.goal not in GOALS:
        return
    base = hugging_face_source(report)
    if finetune_lora.is_wanted(settings):
        finetune_adapter.write(
            directory / ADAPTER,
            _peft(config, checkpoint),
            rank=settings.finetune.lora_rank,
            alpha=settings.finetune.lora_alpha,
            base=base,
        )
    if not finetune_template.is_there(directory):
        report.event("warning", "the tokenizer has no chat template; the export gets a plain one")
        (directory / finetune_template.FILE).write_text(finetune_template.text(style_of(settings)), encoding="utf-8")
    (directory / "README.md").write_text(finetune_card.text(report, base), encoding="utf-8")


def check_adapter(report: Report, checkpoint: Path) -> None:
    """Compare the adapter's files with the checkpoint, number by number. Raises StepFailed."""
    if not finetune_lora.is_wanted(report.settings):
        return
    chosen = report.settings.finetune
    found, scale = finetune_adapter.read_peft(report.run.export / ADAPTER)
    wanted = _peft(load_config(report), checkpoint)
    differing = [name for name in wanted.keys() | found.keys() if not _is_same(wanted.get(name), found.get(name))]
    if differing or scale != chosen.lora_alpha / chosen.lora_rank:
        raise StepFailed(
            f"the exported adapter is not the trained one: {len(differing)} of {len(wanted)} tensors differ"
            f"{': ' + min(differing) if differing else f'; its scale is {scale}'}",
            "run the export step again",
        )


def _peft(config: Any, checkpoint: Path) -> dict[str, Any]:
    tensors = finetune_adapter.read_tensors(checkpoint)
    return finetune_adapter.to_peft(tensors, Heads.of(config), config.num_hidden_layers)


def _is_same(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one.shape == other.shape and bool((one == other).all())
