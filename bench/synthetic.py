"""Checkpoints of any size with random weights, in the forms in which gpt-oss is published."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.checkpoints import tensors
from engine.checkpoints.hugging_face import INDEX
from engine.checkpoints.safetensors_file import ITEM_BYTES
from engine.models import Model

_POOL_VALUES = 32 << 20


def config(model: Model, form: str) -> dict[str, object]:
    """The config.json of `model`."""
    made: dict[str, object] = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_local_experts": model.experts,
        "num_experts_per_tok": model.top_k,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "sliding_window": model.window,
        "max_position_embeddings": model.max_positions,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "swiglu_limit": 7.0,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(model.layers)],
        "rope_theta": model.rope_theta,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "dtype": "bfloat16",
    }
    if form == "mxfp4":
        made["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
            ],
        }  # fmt: skip
    return made


def make(directory: Path, model: Model, form: str, shard_bytes: int = 5_000_000_000, seed: int = 0) -> int:
    """Write a checkpoint of `form` bf16 or mxfp4 and return its bytes; the memory used is small at any size."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config(model, form), indent=1))
    torch.manual_seed(seed)
    pool = (torch.randn(_POOL_VALUES + 4099) * 0.02).bfloat16()
    packed = torch.randint(0, 256, (_POOL_VALUES + 4099,), dtype=torch.uint8)
    scales = torch.randint(118, 126, (_POOL_VALUES + 4099,), dtype=torch.uint8)
    pools = {"_blocks": packed, "_scales": scales}
    shards = _shards(dict(_entries(model, form)), shard_bytes)
    placed = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        placed |= dict.fromkeys(shard, file)
        with (directory / file).open("wb") as stream:
            stream.write(_header(shard))
            for name, (shape, _) in shard.items():
                source = next((one for suffix, one in pools.items() if name.endswith(suffix)), pool)
                for piece in _values(source, math.prod(shape), len(placed) + len(name)):
                    stream.write(piece)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _entries(model: Model, form: str) -> Iterator[tuple[str, tuple[tensors.Shape, str]]]:
    for name, shape in tensors.hugging_face(model).items():
        if form == "mxfp4" and tensors.is_expert_weight(name):
            yield from ((part, (one, "U8")) for part, one in tensors.mxfp4(name, model).items())
        else:
            yield name, (shape, "BF16")


def _shards(entries: dict[str, tuple[tensors.Shape, str]], limit: int) -> list[dict[str, tuple[tensors.Shape, str]]]:
    shards: list[dict[str, tuple[tensors.Shape, str]]] = [{}]
    filled = 0
    for name, (shape, dtype) in entries.items():
        size = math.prod(shape) * ITEM_BYTES[dtype]
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    return shards


def _header(shard: dict[str, tuple[tensors.Shape, str]]) -> bytes:
    header, end = {}, 0
    for name, (shape, dtype) in shard.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _values(pool: torch.Tensor, count: int, salt: int) -> Iterator[memoryview]:
    """`count` values from the pool; each tensor begins elsewhere in it, so that no two are equal."""
    start = salt * 1009 % 4099
    while count:
        take = min(count, _POOL_VALUES)
        yield memoryview(pool[start : start + take].view(torch.uint8).numpy())
        count -= take
        start = (start + 131) % 4099
