"""The convert step: the Hugging Face checkpoint as a Megatron checkpoint, by streaming or by Bridge."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from engine.workers import profile
from engine.workers.files import partial, publish
from engine.workers.report import Report, run_worker


def work(report: Report) -> Mapping[str, Any]:
    """Fill `converted/`; a second run replaces it."""
    if report.settings.model.converter == "bridge":
        return _with_bridge(report)
    # One process is enough: it is the disk that sets the pace.
    return _by_streaming(report) if report.rank == 0 else {}


def _by_streaming(report: Report) -> Mapping[str, Any]:
    from engine.workers.source import hugging_face_directory, load_config
    from engine.workers.stream.convert import convert

    load_config(report)
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
        megatron = model.build(report, bridge, layout, with_weights=True)
        report.phase("writing the Megatron checkpoint")
        made = report.run.converted.with_name(".converted.partial")
        if report.rank == 0:
            partial(report.run.converted)
        torch.distributed.barrier()
        bridge.save_megatron_model(megatron, made.name, hf_tokenizer_path=_tokenizer(report))
        torch.distributed.barrier()
        if report.rank == 0:
            publish(made, report.run.converted)
    if report.rank:
        return {}
    return {"checkpoint": report.run.converted.name, "parameters": model.count_parameters(config)}


def _tokenizer(report: Report) -> str | None:
    """Where Bridge finds the run's tokenizer, from the run directory; None for the model's own."""
    return "data/tokenizer" if (report.run.data / "tokenizer").is_dir() else None


if __name__ == "__main__":
    sys.exit(run_worker("convert", work, sys.argv[1:]))
