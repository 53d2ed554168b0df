"""The Megatron model of a run: join the ranks, and build it through Bridge with the Hugging Face weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from engine.plan.layout import Layout
from engine.workers import profile
from engine.workers.report import Report
from engine.workers.source import hugging_face_source, is_offline

_PATIENCE = timedelta(hours=2)
"""How long ranks wait for one that reads or writes a large checkpoint alone."""


def load_engine(report: Report) -> None:
    """Import torch and Megatron, ready for this machine."""
    from engine.workers import cpu

    report.phase("importing Megatron")
    if report.plan.device == "cpu":
        cpu.prepare_environment()
    if is_offline(report.settings):
        os.environ["HF_HUB_OFFLINE"] = "1"
    cpu.install()
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    # run_config.yaml names the function that makes the local layers.
    register_allowed_target_prefix("engine.workers")


def make_bridge(report: Report, with_weights: bool) -> Any:
    """Bridge's converter for this run's model; without weights only its config.json is read."""
    from megatron.bridge import AutoBridge

    from engine.workers.source import load_config

    config = load_config(report)
    if with_weights:
        return AutoBridge.from_hf_pretrained(hugging_face_source(report))
    return AutoBridge.from_hf_config(config)


def config_of(bridge: Any) -> Any:
    """The Hugging Face configuration behind `bridge`, which holds it bare or within a model."""
    held = bridge.hf_pretrained
    return getattr(held, "config", held)


@contextmanager
def joined_ranks(report: Report) -> Iterator[None]:
    """The process group of this step's ranks, for the steps in which Bridge does not make it."""
    import torch

    os.environ.setdefault("MASTER_ADDR", "localhost")
    if report.world_size == 1:
        # No torchrun: nobody else listens, so any port does.
        store: Any = torch.distributed.HashStore()
    else:
        store = None
    if report.plan.device == "gpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group(
        profile.loop(report.plan.device).backend,
        store=store,
        rank=report.rank,
        world_size=report.world_size,
        timeout=_PATIENCE,
    )
    yield
    # After a failure the group is left as it is: to end it in order would wait for peers that are stuck in it.
    torch.distributed.destroy_process_group()


def build(report: Report, bridge: Any, layout: Layout) -> list[Any]:
    """The Megatron model, on this step's ranks, with the Hugging Face weights."""
    provider = bridge.to_megatron_provider(load_weights=True)
    profile.apply(provider, report.settings.training, layout, report.plan.device)
    provider.perform_initialization = False
    provider.finalize()
    provider.initialize_model_parallel(seed=report.settings.training.seed)
    model: list[Any] = provider.provide_distributed_model(wrap_with_ddp=False)
    return model
