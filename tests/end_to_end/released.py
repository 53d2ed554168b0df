"""A checkpoint in the form in which OpenAI released gpt-oss: experts in MXFP4, the rest in bf16."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the 16 codes of FP4 E2M1 stand for (OCP Microscaling Formats 1.0, table 5)."""
_BLOCK = 32

type Raw = dict[str, tuple[str, list[int], bytes]]
"""Data type, shape and bytes of each tensor."""


def make(source: Path, target: Path) -> None:
    """Write `source`, a bf16 checkpoint, to `target` with random MXFP4 experts."""
    chance = random.Random(7)
    shutil.copytree(source, target)
    tensors: Raw = {}
    for name, (kind, shape, data) in read(source / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = (kind, shape, data)
            continue
        experts, columns, rows = shape  # as the linear layer multiplies: transposed
        blocks = [experts, rows, columns // _BLOCK]
        count = experts * rows * columns // _BLOCK
        tensors[f"{name}_blocks"] = ("U8", [*blocks, _BLOCK // 2], chance.randbytes(count * _BLOCK // 2))
        tensors[f"{name}_scales"] = ("U8", blocks, bytes(chance.randrange(118, 126) for _ in range(count)))
    write(target / "model.safetensors", tensors)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    }
    (target / "config.json").write_text(json.dumps(config))


def dequantised(tensors: Raw, name: str) -> Any:
    """The experts called `name` as an array [experts, in, out], by the definition of the format."""
    import numpy

    _, shape, data = tensors[f"{name}_blocks"]
    packed = numpy.frombuffer(data, numpy.uint8).reshape(shape)
    codes = numpy.stack([packed & 15, packed >> 4], axis=-1).reshape(*shape[:-1], _BLOCK)
    _, scales_shape, scales_data = tensors[f"{name}_scales"]
    exponents = numpy.frombuffer(scales_data, numpy.uint8).reshape(scales_shape).astype(int) - 127
    values = numpy.array(_VALUES, numpy.float32)[codes] * numpy.exp2(exponents)[..., None]
    return values.reshape(*shape[:2], -1).swapaxes(1, 2).astype(numpy.float32)


def as_floats(tensors: Raw, name: str) -> Any:
    """A bf16 tensor as an array of float32."""
    import numpy

    kind, shape, data = tensors[name]
    assert kind == "BF16", kind
    return (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32).reshape(shape)


def read(file: Path) -> Raw:
    """The tensors of a safetensors file, without any library: bf16 is none of numpy's types."""
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors: Raw = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], content[start + begin : start + end])
    return tensors


def write(file: Path, tensors: Raw) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
