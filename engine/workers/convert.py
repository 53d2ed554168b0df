"""The convert step: the Hugging Face checkpoint as a Megatron checkpoint, by streaming or by Bridge."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints import hugging_face, tokenizer
from engine.paths import write_atomic
from engine.workers import profile, verify
from engine.workers.files import partial, publish
from engine.workers.report import Report, run_worker
from engine.workers.source import hugging_face_directory


def work(report: Report) -> Mapping[str, Any]:
    """Fill `converted/` and compare it with its origin; a second run replaces it."""
    parameters = _check_source(report) if report.rank == 0 else 0
    if report.settings.model.converter == "bridge":
        made = _with_bridge(report)
    else:
        # One process is enough: it is the disk that sets the pace.
        made = _by_streaming(report) if report.rank == 0 else {}
    return {"parameters": parameters, **made, **_verified(report)} if report.rank == 0 else {}


def _check_source(report: Report) -> int:
    """Name what is wrong with the files and the tokenizers before anything is converted; return the parameters.

    Raises CheckpointError.
    """
    source = hugging_face.read(hugging_face_directory(report))
    tokenizer.require_fitting(source.path, source.model, source.config)
    tokenizer.require_rows(report.run.data / "tokenizer", source.model)
    return source.model.parameters


def _verified(report: Report) -> dict[str, Any]:
    """Days of training must not begin with weights that are not the model's."""
    if not report.settings.output.verify:
        return {}
    found = verify.compare(report, Path(report.run.converted.name), hugging_face_directory(report))
    write_atomic(report.run.path / "verification-converted.json", json.dumps(found, indent=1) + "\n")
    verify.refuse(found["problems"], "the converted model is not the original one")
    return verify.summary(found)


def _by_streaming(report: Report) -> Mapping[str, Any]:
    from engine.workers.stream.convert import convert

    source = hugging_face_directory(report)
    report.phase("converting tensor by tensor")
    made = convert(
        source,
        report.run.converted,
        report.settings.training.precision,
        on_progress=lambda message, done, total: report.progress(message, done, total, "bytes"),
        tokenizer=_tokenizer(report) or "",
    )
    return {**made, "checkpoint": report.run.converted.name}


def _with_bridge(report: Report) -> Mapping[str, Any]:
    from engine.workers import model

    model.load_engine(report)
    import torch

    report.phase("reading the Hugging Face checkpoint")
    bridge = model.make_bridge(report, with_weights=True)
    config = model.config_of(bridge)
    layout = profile.layout_for(report.plan.layout, report.world_size, config.num_local_experts)
    with model.joined_ranks(report):
        megatron = model.build(report, bridge, layout)
        report.phase("writing the Megatron checkpoint")
        made = report.run.converted.with_name(".converted.partial")
        if report.rank == 0:
            partial(report.run.converted)
        torch.distributed.barrier()
        bridge.save_megatron_model(megatron, made.name, hf_tokenizer_path=_tokenizer(report))
        torch.distributed.barrier()
        if report.rank == 0:
            publish(made, report.run.converted)
    return {"checkpoint": report.run.converted.name}


def _tokenizer(report: Report) -> str | None:
    """Where Bridge finds the run's tokenizer, from the run directory; None for the model's own."""
    return "data/tokenizer" if (report.run.data / "tokenizer").is_dir() else None


if __name__ == "__main__":
    sys.exit(run_worker("convert", work, sys.argv[1:]))
