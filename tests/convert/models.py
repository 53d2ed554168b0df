"""Tiny gpt-oss checkpoints of every published form, written byte by byte: no torch, no writer of ours."""

from __future__ import annotations

import json
import math
import random
from array import array
from pathlib import Path

from engine.checkpoints import tensors
from engine.checkpoints.safetensors_file import ITEM_BYTES
from engine.models import TINY, Model

SQUARE, RECTANGULAR = 64, 96

type Entries = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name, type, shape and bytes of each tensor."""


def tiny(ffn: int = SQUARE) -> Model:
    """The rehearsal's architecture with experts of another inner size."""
    from dataclasses import replace

    return replace(TINY, ffn=ffn)


def config(model: Model, form: str) -> dict[str, object]:
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
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "layer_types": ["sliding_attention", "full_attention"] * (model.layers // 2),
        "dtype": "float32" if form == "fp32" else "bfloat16",
    }
    if form == "mxfp4":
        skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        made["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    return made


def entries(model: Model, form: str, transposed: tuple[str, ...] = (), seed: int = 0, spread: float = 0.3) -> Entries:
    """Random tensors; those named in `transposed` have their last two axes the other way round.

    With the usual spread a rounding to BF16 changes what the model says; with 0.1 it does not.
    """
    source = random.Random(seed)
    made: Entries = {}
    for name, shape in tensors.hugging_face(model).items():
        if form == "mxfp4" and tensors.is_expert_weight(name):
            for part, one in tensors.mxfp4(name, model).items():
                made[part] = ("U8", one, _packed(source, math.prod(one), is_scale=part.endswith("_scales")))
            continue
        if name.endswith(transposed):
            shape = (*shape[:-2], shape[-1], shape[-2])
        made[name] = _floats(source, name, shape, form, spread)
    return made


def write(directory: Path, model: Model, form: str, made: Entries, shards: int = 1) -> Path:
    """Save a checkpoint with its index (for several shards) and config."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config(model, form)))
    names = list(made)
    if shards == 1:
        _save(directory / "model.safetensors", made)
        return directory
    placed: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: made[name] for name in names[number::shards]}
        _save(directory / file, part)
        placed |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return directory


def make(
    directory: Path, form: str = "bf16", ffn: int = SQUARE, transposed: tuple[str, ...] = (), shards: int = 1
) -> Path:
    """A whole checkpoint in one call."""
    model = tiny(ffn)
    return write(directory, model, form, entries(model, form, transposed), shards)


def _save(path: Path, made: Entries) -> None:
    header, end, data = {}, 0, []
    for name, (dtype, shape, values) in made.items():
        assert len(values) == math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(values)]}
        end += len(values)
        data.append(values)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def _floats(
    source: random.Random, name: str, shape: tuple[int, ...], form: str, usual: float
) -> tuple[str, tuple[int, ...], bytes]:
    spread, centre = (0.2, 1.0) if "norm" in name else (1.0, 0.0) if name.endswith("sinks") else (usual, 0.0)
    values = array("f", (source.gauss(centre, spread) for _ in range(math.prod(shape))))
    if form == "fp32":
        return "F32", shape, values.tobytes()
    # The upper half of a float is a bfloat, rounded towards zero.
    return "BF16", shape, array("H", array("H", values.tobytes())[1::2]).tobytes()


def _packed(source: random.Random, count: int, *, is_scale: bool) -> bytes:
    # 2^-9 to 2^-2: the values end up where weights are.
    return bytes(source.choices(range(118, 126), k=count)) if is_scale else source.randbytes(count)
