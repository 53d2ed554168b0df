"""The export step: the newest whole checkpoint as Hugging Face safetensors, tensor by tensor."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints import tokenizer
from engine.errors import StepFailed
from engine.run import validation
from engine.workers import finetune_export, finetune_lora
from engine.workers.report import Report, run_worker
from engine.workers.source import hugging_face_directory, hugging_face_source


def work(report: Report) -> Mapping[str, Any]:
    """Fill `export/`; a second run replaces it."""
    if report.rank:
        return {}  # one process writes: the disk sets the pace
    from engine.workers.stream.export import Extras, export

    checkpoint = newest_checkpoint(report)
    reference = hugging_face_directory(report, with_weights=False)
    own_tokenizer = Path(report.run.data.name) / "tokenizer"
    report.phase(f"exporting {checkpoint.name}")
    # Paths from the run directory on: they stay in the export's manifest when the run is moved.
    made = export(
        checkpoint,
        Path(report.run.export.name),
        reference,
        report.settings.training.precision,
        extras=Extras(
            base=finetune_lora.base_checkpoint(report) if finetune_lora.is_wanted(report.settings) else None,
            origin=hugging_face_source(report),
            tokenizer=own_tokenizer if own_tokenizer.is_dir() else None,
            describe=lambda directory: finetune_export.describe(report, directory),
        ),
        on_progress=lambda message, done, total: report.progress(message, done, total, "bytes"),
    )
    if not (report.run.export / tokenizer.FILE).is_file():
        report.event("warning", f"the export has no tokenizer: there is no {tokenizer.FILE} in {reference}")
    for warning in made["warnings"]:
        report.event("warning", warning)
    return made


def newest_checkpoint(report: Report) -> Path:
    """The whole iteration that is to be exported, relative to the run directory. Raises StepFailed."""
    iteration = validation.to_export(report.run, report.settings)
    if iteration is None:
        raise StepFailed(f"there is no whole checkpoint in {report.run.checkpoints}", "run the train step again")
    return Path(report.run.checkpoints.name) / f"iter_{iteration:07d}"


if __name__ == "__main__":
    sys.exit(run_worker("export", work, sys.argv[1:]))
