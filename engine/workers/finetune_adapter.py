"""LoRA adapters from a Megatron checkpoint to Hugging Face's PEFT, and merged into the weights. Imports no Megatron.

The checkpoint holds whole tensors whatever the layout was, so one process reads them all. Bridge's own export
keeps one adapter of a layer's experts (peft_bridge.py, `build_adapter_conversion_tasks`, has one name for all).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import StepFailed

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."

_QKV, _OUTPUT = "self_attention.linear_qkv", "self_attention.linear_proj"
_NAME = re.compile(
    r"(?:model\.)?decoder\.layers\.(?:(?P<layer>\d+)\.)?(?P<module>.+?)\.adapter\.(?P<side>linear_in|linear_out)\.weight"
)
_EXPERT = re.compile(r"mlp\.experts\.(?:local_experts\.(?P<local>\d+)|experts)\.(?P<matrix>linear_fc[12])")
_EXPERT_PARAMETERS = {"linear_fc1": "gate_up_proj", "linear_fc2": "down_proj"}
_REPORT = "report it with the versions that gptoss doctor prints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One low-rank change: what is added to a weight is scale x (up @ down)."""

    down: Any
    """[rank, inputs]; PEFT's lora_A, Megatron's linear_in."""
    up: Any
    """[outputs, rank]; PEFT's lora_B, Megatron's linear_out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How the rows of Megatron's joined query, key and value matrix are arranged."""

    queries: int
    groups: int
    width: int
    """Rows of one head."""

    @classmethod
    def of(cls, config: Any) -> Heads:
        """From a Hugging Face configuration."""
        return cls(queries=config.num_attention_heads, groups=config.num_key_value_heads, width=config.head_dim)


def read_tensors(checkpoint: Path) -> dict[str, Any]:
    """The adapters' tensors in `checkpoint` by Megatron's names, without the optimizer's. Raises StepFailed."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(checkpoint)
    stored = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {
        name: torch.empty(tuple(meta.size), dtype=meta.properties.dtype)
        for name, meta in stored.items()
        if isinstance(meta, TensorStorageMetadata) and ".adapter." in name and not name.startswith("optimizer")
    }
    if not wanted:
        raise StepFailed(f"there is no adapter in {checkpoint}", "run the train step with training.goal = lora")
    load(wanted, storage_reader=reader, no_dist=True)
    return wanted


def to_peft(tensors: Mapping[str, Any], heads: Heads, layers: int) -> dict[str, Any]:
    """The tensors under PEFT's names. Raises StepFailed for one that has no place there."""
    found: dict[tuple[int, str, int], dict[str, Any]] = {}
    for name, tensor in tensors.items():
        for layer, module, expert, side, part in _parts(name, tensor, layers):
            found.setdefault((layer, module, expert), {})[side] = part
    adapters: dict[str, Any] = {}
    experts: dict[tuple[int, str], list[tuple[int, Adapter]]] = {}
    for (layer, module, expert), sides in sorted(found.items()):
        if sides.keys() != {"linear_in", "linear_out"}:
            raise StepFailed(f"layer {layer} has half an adapter on {module}", _REPORT)
        adapter = Adapter(down=sides["linear_in"], up=sides["linear_out"])
        if expert >= 0:
            experts.setdefault((layer, module), []).append((expert, adapter))
        else:
            adapters |= _attention(layer, module, adapter, heads)
    for (layer, module), held in experts.items():
        adapters |= _of_experts(layer, module, [adapter for _, adapter in sorted(held, key=lambda one: one[0])])
    return adapters


def merged(weights: Iterable[tuple[str, Any]], peft: Mapping[str, Any], scale: float) -> Iterator[tuple[str, Any]]:
    """The Hugging Face `weights` with the adapters added. Raises StepFailed for an adapter without its weight."""
    changes = {name: (down, peft[other]) for name, down, other in _pairs(peft)}
    for name, weight in weights:
        if name in changes:
            down, up = changes.pop(name)
            yield name, (weight.float() + change(weight, down, up, scale)).to(weight.dtype)
        else:
            yield name, weight
    if changes:
        raise StepFailed(f"{len(changes)} adapters have no weight to be added to: {min(changes)}", _REPORT)


def change(weight: Any, down: Any, up: Any, scale: float) -> Any:
    """What PEFT adds to `weight` (peft 0.21, tuners/lora/layer.py, `get_delta_weight`), in fp32."""
    import torch

    if weight.dim() == 2:
        return scale * (up.float() @ down.float())
    experts = weight.shape[0]
    each_down = down.float().reshape(experts, -1, down.shape[1])
    each_up = up.float().reshape(up.shape[0], -1, experts)
    return scale * torch.einsum("ore,eri->eio", each_up, each_down)


def write(directory: Path, peft: Mapping[str, Any], *, rank: int, alpha: int, base: str) -> None:
    """Write what `PeftModel.from_pretrained` reads. Raises OSError."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in peft.items()}, directory / WEIGHTS, {"format": "pt"})
    modules = {name.rsplit(".", 3)[1] for name in peft if ".self_attn." in name}
    parameters = {_parameter(name).partition(".mlp.")[2] for name in peft if ".experts." in name}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        # Without dropout: the files are for answering, and PEFT knows none for the experts.
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(modules),
        "target_parameters": sorted(f"mlp.{name}" for name in parameters) or None,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_peft(directory: Path) -> tuple[dict[str, Any], float]:
    """The adapters that `write` wrote, and their scale. Raises OSError."""
    from safetensors.torch import load_file

    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    return load_file(directory / WEIGHTS), config["lora_alpha"] / config["r"]


def _pairs(peft: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """The weight that each adapter changes, its lora_A, and the name of its lora_B."""
    for name, tensor in peft.items():
        if name.endswith(".lora_A.weight"):
            yield _parameter(name), tensor, name.replace(".lora_A.", ".lora_B.")


def _parameter(name: str) -> str:
    """The model's own name of the weight that the adapter `name` changes."""
    module = name.removeprefix(PREFIX).partition(".lora_")[0]
    if not module.rpartition(".")[0].endswith((".experts", ".mlp")):
        return f"{module}.weight"
    # PEFT wraps a module once for each of its parameters; the inner one was wrapped first.
    return f"{module.removesuffix('.base_layer')}.{'gate_up_proj' if module.endswith('.base_layer') else 'down_proj'}"


def _parts(name: str, tensor: Any, layers: int) -> Iterator[tuple[int, str, int, str, Any]]:
    """Layer, module, expert (-1: none), side and tensor of everything that is stored under `name`."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise StepFailed(f"the adapter {name} is of an unknown kind", _REPORT)
    module, side = match["module"], match["side"]
    # Layers that are alike are stored as one tensor with a dimension more.
    stacked = [(int(match["layer"]), tensor)] if match["layer"] else list(enumerate(tensor))
    if not match["layer"] and len(stacked) != layers:
        raise StepFailed(f"{name} holds {len(stacked)} layers of {layers}", _REPORT)
    expert = _EXPERT.fullmatch(module)
    for layer, held in stacked:
        if expert is None:
            yield layer, module, -1, side, held
        elif expert["local"]:
            yield layer, expert["matrix"], int(expert["local"]), side, held
        else:
            yield from ((layer, expert["matrix"], number, side, one) for number, one in enumerate(held))


def _attention(layer: int, module: str, adapter: Adapter, heads: Heads) -> dict[str, Any]:
    prefix = f"{PREFIX}model.layers.{layer}.self_attn"
    if module == _OUTPUT:
        return _named(f"{prefix}.o_proj", adapter)
    if module != _QKV:
        raise StepFailed(f"an adapter on {module} cannot be exported", _REPORT)
    # Each group holds its query heads, its key head and its value head, one after the other.
    each = heads.queries // heads.groups
    rows = adapter.up.reshape(heads.groups, each + 2, heads.width, -1)
    parts = {"q_proj": rows[:, :each], "k_proj": rows[:, each : each + 1], "v_proj": rows[:, each + 1 :]}
    named: dict[str, Any] = {}
    for name, part in parts.items():
        up = part.reshape(-1, adapter.up.shape[1]).contiguous()
        named |= _named(f"{prefix}.{name}", Adapter(down=adapter.down.clone(), up=up))
    return named


def _of_experts(layer: int, matrix: str, adapters: list[Adapter]) -> dict[str, Any]:
    import torch

    ups = [adapter.up for adapter in adapters]
    if matrix == "linear_fc1":
        ups = [_interleaved(up) for up in ups]
    # PEFT holds lora_A as [experts x rank, inputs], lora_B as [outputs, rank x experts].
    down = torch.cat([adapter.down for adapter in adapters])
    up = torch.stack(ups, dim=-1).reshape(ups[0].shape[0], -1)
    nesting = ".base_layer" if _EXPERT_PARAMETERS[matrix] == "gate_up_proj" else ""
    return _named(f"{PREFIX}model.layers.{layer}.mlp.experts{nesting}", Adapter(down=down, up=up))


def _interleaved(up: Any) -> Any:
    """Megatron's gate rows and then up rows, as Hugging Face's alternating ones."""
    import torch

    gate, linear = up.chunk(2)
    return torch.stack([gate, linear], dim=1).reshape(up.shape)


def _named(module: str, adapter: Adapter) -> dict[str, Any]:
    return {f"{module}.lora_A.weight": adapter.down.contiguous(), f"{module}.lora_B.weight": adapter.up}
