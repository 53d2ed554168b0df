"""The convert step: the Hugging Face checkpoint as a Megatron checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from engine.workers import profile
from engine.workers.files import partial, publish
from engine.workers.report import Report, run_worker


def work(report: Report) -> Mapping[str, Any]:
    """Fill `converted/`; a second run replaces it."""
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
        tokenizer = report.run.data / "tokenizer"
        bridge.save_megatron_model(
            megatron, made.name, hf_tokenizer_path="data/tokenizer" if tokenizer.is_dir() else None
        )
        torch.distributed.barrier()
        if report.rank == 0:
            publish(made, report.run.converted)
    if report.rank:
        return {}
    return {"checkpoint": report.run.converted.name, "parameters": model.count_parameters(config)}


if __name__ == "__main__":
    sys.exit(run_worker("convert", work, sys.argv[1:]))
