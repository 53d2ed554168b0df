"""Which model settings each profile needs: Transformer Engine on GPUs, Megatron's local layers on the CPU.

The only place that knows the difference. The GPU profile is what Bridge's gpt-oss recipes set
(megatron/bridge/recipes/gpt_oss/h100/gpt_oss.py, 0.6.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.errors import PlanError
from engine.plan.layout import Layout
from engine.settings import TrainingSettings

_RECOMPUTE: dict[str, dict[str, object]] = {
    "none": {},
    "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe_act", "layernorm"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}

_COMMON: dict[str, object] = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    # Biased experts forbid another size (core/transformer/transformer_config.py:2279).
    "expert_tensor_parallel_size": 1,
    # Learnt sinks allow no other way to share a context (TE utils.py:1113).
    "cp_comm_type": "a2a",
    "calculate_per_token_loss": True,
    "moe_token_dispatcher_type": "alltoall",
    "moe_router_dtype": "fp32",
}

_LOCAL: dict[str, object] = {
    "transformer_impl": "local",
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "persist_layer_norm": False,
    "cross_entropy_loss_fusion": False,
    "attention_softmax_in_fp32": True,
}
"""Every fusion and grouped kernel is CUDA or Transformer Engine code."""

_TRANSFORMER_ENGINE: dict[str, object] = {
    "transformer_impl": "transformer_engine",
    "moe_grouped_gemm": True,
    "moe_permute_fusion": True,
    "cross_entropy_loss_fusion": True,
    "cross_entropy_fusion_impl": "native",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopProfile:
    """What the training loop around the model needs."""

    backend: str
    fused: bool
    """Compiled fusions, overlapped communication, garbage collection at fixed times."""
    distributed_optimizer: bool
    loader_processes: int


def loop(device: str) -> LoopProfile:
    """The training loop's profile on this device."""
    if device == "gpu":
        return LoopProfile(backend="nccl", fused=True, distributed_optimizer=True, loader_processes=2)
    # Without Apex and Transformer Engine a distributed optimizer cannot be resumed: its state has
    # no step before it is loaded (megatron/core/optimizer/distrib_optimizer.py:839).
    return LoopProfile(backend="gloo", fused=False, distributed_optimizer=False, loader_processes=0)


def local_layers(config: Any) -> Any:
    """Megatron's local layers, saved under the names that the Transformer Engine layers look for.

    The stock spec saves the norm before the experts as `mlp.linear_fc1.layer_norm_weight`
    (megatron/core/models/gpt/gpt_layer_specs.py, sharded_state_dict_keys_map); without that
    entry a checkpoint made on a CPU loads on GPUs and the other way round.
    """
    from megatron.bridge.models.gpt_provider import local_layer_spec

    spec = local_layer_spec(config)
    spec.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    return spec


def apply(provider: Any, training: TrainingSettings, layout: Layout, device: str, precision: str = "") -> Any:
    """Set on Bridge's model `provider` what this run needs, and return it."""
    import torch

    precision = precision or training.precision
    values: dict[str, object] = {**_COMMON, **(_LOCAL if device == "cpu" else _TRANSFORMER_ENGINE)}
    values |= _layout_values(layout)
    values["seq_length"] = training.sequence_length
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    values |= {
        "bf16": precision == "bf16",
        "fp16": False,
        "params_dtype": dtype,
        "autocast_dtype": dtype,
        "pipeline_dtype": dtype,
    }
    values |= _RECOMPUTE[training.recompute]
    if device == "cpu":
        values |= _local_only(training)
    for name, value in values.items():
        setattr(provider, name, value)
    return provider


def _layout_values(layout: Layout) -> dict[str, object]:
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "context_parallel_size": layout.cp,
        "expert_model_parallel_size": layout.ep,
        # The experts refuse tensor parallelism without it (core/transformer/moe/moe_layer.py:629).
        "sequence_parallel": layout.tp > 1,
        # With two stages the batched messages of interleaved chunks reach the wrong receiver: the losses
        # are silently wrong (megatron/training/arguments.py:972 refuses it, Bridge does not).
        "overlap_p2p_comm": layout.vpp > 1,
        "batch_p2p_comm": layout.vpp == 1,
    }


def _local_only(training: TrainingSettings) -> dict[str, object]:
    from megatron.core.transformer.enums import AttnBackend

    if training.recompute == "moe":
        raise PlanError(
            "training.recompute = moe needs the grouped experts of Transformer Engine",
            "choose none or full on a CPU",
        )
    return {"transformer_layer_spec": local_layers, "attention_backend": AttnBackend.unfused}


def layout_for(planned: Layout, world_size: int, experts: int) -> Layout:
    """The layout of a step that trains nothing: the planned one, or the experts spread over all ranks.

    Raises PlanError when neither fits.
    """
    if planned.world_size == world_size:
        # There is no long context to share.
        return replace(planned, cp=1, dp=planned.dp * planned.cp, vpp=1)
    if experts % world_size == 0:
        return Layout(ep=world_size, dp=world_size)
    raise PlanError(
        f"{world_size} ranks fit neither the layout {planned} nor {experts} experts",
        f"start the step with 1 or {planned.world_size} ranks",
    )
