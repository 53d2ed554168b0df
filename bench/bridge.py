"""Megatron-Bridge's own conversion in one process on the CPU.

python -m bench.bridge import HF_DIR OUT
python -m bench.bridge export HF_DIR CKPT OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch


def main(arguments: list[str]) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from engine.workers import cpu

    cpu.prepare_environment()
    cpu.install()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    from megatron.bridge import AutoBridge
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    register_allowed_target_prefix("engine.workers")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    bridge = AutoBridge.from_hf_pretrained(arguments[1])
    model = _build(bridge, with_weights=arguments[0] == "import")
    if arguments[0] == "import":
        bridge.save_megatron_model(model, arguments[2])
        return
    from megatron.bridge.training.checkpointing import _load_model_weights_from_checkpoint

    from engine.checkpoints.torch_dist import find_iteration

    _load_model_weights_from_checkpoint(str(find_iteration(Path(arguments[2]))), model)
    bridge.save_hf_weights(model, arguments[3], show_progress=False)


def _build(bridge: Any, *, with_weights: bool) -> list[Any]:
    from engine.plan.layout import Layout
    from engine.settings import TrainingSettings
    from engine.workers import profile

    provider = bridge.to_megatron_provider(load_weights=with_weights)
    profile.apply(provider, TrainingSettings(sequence_length=128), Layout(), "cpu", "bf16")
    provider.perform_initialization = False
    provider.finalize()
    provider.initialize_model_parallel(seed=1)
    model: list[Any] = provider.provide_distributed_model(wrap_with_ddp=False)
    return model


if __name__ == "__main__":
    main(sys.argv[1:])
