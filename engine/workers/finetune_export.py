"""What fine-tuning adds to an export: a chat template where there is none, and its own model card."""

from __future__ import annotations

from pathlib import Path

from engine.finetune_settings import GOALS
from engine.workers import finetune_card, finetune_template
from engine.workers.finetune_chats import style_of
from engine.workers.report import Report
from engine.workers.source import hugging_face_source


def describe(report: Report, directory: Path) -> list[Path]:
    """Write them to the export in the making and return them. Raises OSError."""
    settings = report.settings
    if settings.training.goal not in GOALS:
        return []
    card, template = directory / "README.md", directory / finetune_template.FILE
    card.write_text(finetune_card.text(report, hugging_face_source(report)), encoding="utf-8")
    if finetune_template.is_there(directory):
        return [card]
    report.event("warning", "the tokenizer has no chat template; the export gets a plain one")
    template.write_text(finetune_template.text(style_of(settings)), encoding="utf-8")
    return [card, template]
