"""The small files by which Megatron-Bridge and Megatron-LM know a checkpoint, written without importing them.

Bridge makes the model again from `run_config.yaml`: a field that is not there has the default of
its class, so the file names exactly what gpt-oss sets (gpt_oss_bridge.py:58, megatron-bridge 0.6.2).
tests/convert compares the result with Bridge's own, field by field.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoints.hugging_face import TOKENIZER_FILES
from engine.checkpoints.torch_dist import BACKEND, BACKEND_VERSION, TRACKER
from engine.models import Model
from engine.paths import write_atomic
from engine.workers.stream.frame import saved
from engine.workers.stream.values import Array

ITERATION = "iter_0000000"
COMMON_KEY = "common_state/shard_0_1"
COMMON_STATE = {
    "checkpoint_version": 3.0,
    "iteration": 0,
    "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
}
"""What Bridge saves beside the tensors; the last entry says how layers are named when loading."""

ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "vocab_size", "share_embeddings_and_output_weights", "normalization", "layernorm_epsilon", "add_bias_linear",
    "add_qkv_bias", "softmax_type", "window_size", "window_attn_skip_freq", "position_embedding_type", "rotary_base",
    "yarn_rotary_scaling_factor", "yarn_original_max_position_embeddings", "yarn_beta_fast", "yarn_beta_slow",
    "yarn_correction_range_round_to_int", "yarn_mscale", "yarn_mscale_all_dim", "gated_linear_unit", "activation_func",
    "activation_func_clamp_value", "glu_linear_offset", "num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size",
    "moe_router_pre_softmax",
)  # fmt: skip
"""Fields that decide what the model computes; the others say how."""

_DTYPES = {"bf16": "torch.bfloat16", "fp32": "torch.float32"}


def write(root: Path, model: Model, dtype: str, source: Path, tokenizer: str) -> list[Path]:
    """Write them below `root`, the tracker last, and return them. `tokenizer` is where Bridge finds it again."""
    iteration = root / ITERATION
    has_tokenizer = (source / "tokenizer.json").is_file()
    written = []
    if has_tokenizer:
        written += copy_tokenizer(source, iteration / "tokenizer")
    config = run_config(model, dtype, tokenizer if has_tokenizer else "")
    texts = {
        iteration / BACKEND: json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": BACKEND_VERSION}),
        iteration / "run_config.yaml": to_yaml(config),
        root / TRACKER: "0",
    }
    for path in (iteration / "train_state.pt", root / "latest_train_state.pt"):
        path.write_bytes(saved(_train_state()))
        written.append(path)
    for path, text in texts.items():
        write_atomic(path, text)
        written.append(path)
    return written


def copy_tokenizer(source: Path, target: Path) -> list[Path]:
    """Copy the tokenizer's files and return the copies."""
    target.mkdir(exist_ok=True)
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    return [Path(shutil.copyfile(source / name, target / name)) for name in names]


def run_config(model: Model, dtype: str, tokenizer: str) -> dict[str, Any]:
    """The content of `run_config.yaml`."""
    return {
        "_target_": "megatron.bridge.training.config.ConfigContainer",
        "checkpoint": {
            "_target_": "megatron.bridge.training.config.CheckpointConfig",
            "ckpt_format": "torch_dist",
            "fully_parallel_save": True,
            "save_optim": False,
            "save_rng": False,
        },
        "dataset": None,
        "ddp": None,
        "logger": {"_target_": "megatron.bridge.training.config.LoggerConfig"},
        "model": _provider(model, dtype),
        "optimizer": {
            "_target_": "megatron.core.optimizer.optimizer_config.OptimizerConfig",
            "use_distributed_optimizer": False,
        },
        "scheduler": None,
        "tokenizer": _tokenizer(tokenizer),
        "train": None,
    }


def to_yaml(value: Any, indent: int = 0) -> str:
    """`value` as YAML 1.1 that every parser reads alike."""
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            nested = isinstance(item, (dict, list)) and item
            lines.append(
                " " * indent + f"{key}:" + ("\n" + to_yaml(item, indent + 2) if nested else f" {_scalar(item)}\n")
            )
        return "".join(lines)
    if isinstance(value, list):
        return "".join(" " * indent + f"- {_scalar(item)}\n" for item in value)
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 takes 1e-05 for text.
        return text.replace("e", ".0e", 1) if "e" in text and "." not in text else text
    return json.dumps(value)


def _provider(model: Model, dtype: str) -> dict[str, Any]:
    torch_dtype = {"_call_": False, "_target_": _DTYPES[dtype]}
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "ffn_hidden_size": model.ffn,
        "num_attention_heads": model.heads,
        "num_query_groups": model.kv_heads,
        "kv_channels": model.head_dim,
        "vocab_size": model.vocab,
        "should_pad_vocab": False,
        "seq_length": model.max_positions,
        "share_embeddings_and_output_weights": False,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-5,
        "add_bias_linear": True,
        "add_qkv_bias": False,
        "softmax_type": "learnable",
        "window_size": [model.window - 1, 0],
        "window_attn_skip_freq": 2,
        "position_embedding_type": "yarn",
        "rotary_base": model.rope_theta,
        "yarn_rotary_scaling_factor": 32.0,
        "yarn_original_max_position_embeddings": 4096,
        "yarn_beta_fast": 32.0,
        "yarn_beta_slow": 1.0,
        "yarn_correction_range_round_to_int": False,
        "yarn_mscale": None,
        "yarn_mscale_all_dim": None,
        "gated_linear_unit": True,
        "activation_func": {"_call_": False, "_target_": "megatron.core.fusions.fused_bias_geglu.quick_gelu"},
        "activation_func_clamp_value": 7.0,
        "glu_linear_offset": 1.0,
        "bias_activation_fusion": True,
        "bias_dropout_fusion": False,
        "num_moe_experts": model.experts,
        "moe_router_topk": model.top_k,
        "moe_ffn_hidden_size": model.ffn,
        "moe_router_pre_softmax": False,
        "moe_router_load_balancing_type": "none",
        "moe_grouped_gemm": True,
        "moe_permute_fusion": True,
        "moe_token_dispatcher_type": "alltoall",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "fp16": False,
        "bf16": dtype == "bf16",
        "params_dtype": torch_dtype,
        "autocast_dtype": torch_dtype,
        "pipeline_dtype": torch_dtype,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": 1,
        "sequence_parallel": False,
        "hf_model_id": model.published or None,
    }


def _tokenizer(place: str) -> dict[str, Any] | None:
    if not place:
        return None
    return {
        "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": place,
    }


def _train_state() -> dict[str, Array]:
    """Bridge's TrainState before the first iteration (megatron/bridge/training/state.py, 0.6.2)."""
    counters = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    state: dict[str, Array] = {name: np.array(0, np.int64) for name in counters}
    state["floating_point_operations_so_far"] = np.array(0, np.float32)
    return state | {name: np.array(False) for name in ("do_train", "do_valid", "do_test")}
