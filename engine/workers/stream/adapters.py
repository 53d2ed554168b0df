"""LoRA adapters in a Megatron checkpoint: added to the model's weights, or written as PEFT reads them.

One matrix of one layer at a time, as everything here. Megatron-Bridge's own export keeps one adapter of
a layer's experts (peft_bridge.py, `build_adapter_conversion_tasks`, has one name for all of them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints import safetensors_file, tensors, torch_dist
from engine.checkpoints.hugging_face import ADAPTER_FOLDER
from engine.checkpoints.safetensors_file import make_header
from engine.checkpoints.tensors import DOWN, FC1, FC2, GATE_UP, OUTPUT, QKV, ROUTER, Shape
from engine.checkpoints.torch_dist import DistributedCheckpoint
from engine.errors import CheckpointError
from engine.models import Model
from engine.paths import file_text, open_file, write_atomic
from engine.workers.stream import run_config
from engine.workers.stream.files import OutputFile
from engine.workers.stream.reading import MegatronReader
from engine.workers.stream.to_hugging_face import Part, Source, qkv_rows
from engine.workers.stream.torch_tensors import OF_SAFETENSORS, to_numpy, to_torch
from engine.workers.stream.values import Array, DType, cast

FOLDER, WEIGHTS, CONFIG = ADAPTER_FOLDER, "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."

_MODULE = {
    "self_attn.q_proj.weight": QKV,
    "self_attn.k_proj.weight": QKV,
    "self_attn.v_proj.weight": QKV,
    "self_attn.o_proj.weight": OUTPUT,
    "mlp.router.weight": ROUTER,
    GATE_UP: FC1,
    DOWN: FC2,
}
"""Which of Megatron's matrices has the adapter of each of Hugging Face's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What was trained, as run_config.yaml says it."""

    rank: int
    alpha: int
    modules: tuple[str, ...]
    """Megatron's matrices that have adapters, by their keys."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def read(checkpoint: DistributedCheckpoint, model: Model) -> Lora:
    """The adapters of `checkpoint`, each there and of its shape. Raises CheckpointError."""
    if problems := checkpoint.problems():
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(problems[:3])}", "use an older checkpoint")
    rank, alpha = _settings(checkpoint.path)
    found = checkpoint.weights()
    expected = {
        module: {tensors.adapter_key(module, side): shape for side, shape in sides.items()}
        for module, sides in tensors.megatron_adapters(model, rank).items()
    }
    modules = tuple(module for module, sides in expected.items() if sides.keys() & found.keys())
    wanted = {key: shape for module in modules for key, shape in expected[module].items()}
    wrong = [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} has no place in PEFT" for key in found if key not in wanted]
    wrong += [
        f"{key} is {list(found[key].shape)} and not {list(shape)}"
        for key, shape in wanted.items()
        if key in found and found[key].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path}: {'; '.join(wrong[:3])}" + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            "adapters that several experts share, or of another kind than LoRA, cannot be exported without loss",
        )
    return Lora(rank=rank, alpha=alpha, modules=modules)


def _settings(iteration: Path) -> tuple[int, int]:
    """Rank and alpha."""
    path = iteration / run_config.NAME
    try:
        peft = (run_config.read(iteration) or {})["peft"]
        kind, rank, alpha = str(peft["_target_"]), int(peft["dim"]), int(peft["alpha"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not say with which rank and alpha the adapters were trained",
            "give the directory that the training wrote",
        ) from error
    if kind.rpartition(".")[2] != "LoRA" or peft.get("normalize_moe_lora") or rank < 1:
        raise CheckpointError(f"{path}: adapters of {kind} with dim = {rank}", "plain LoRA is what can be exported")
    return rank, alpha


class Adapters:
    """The two factors of each change: what is added to a weight [out, in] is scale x (up @ down)."""

    def __init__(self, reader: MegatronReader, model: Model, lora: Lora) -> None:
        torch.set_num_threads(1)  # each thread of a conversion computes for itself
        self.lora = lora
        self._reader = reader
        self._model = model

    def factors(self, layer: int, suffix: str, expert: int = 0) -> tuple[Tensor, Tensor] | None:
        """Down [rank, in] and up [out, rank] of a weight's adapter in fp32, None where it has none."""
        module = _MODULE.get(suffix)
        if module not in self.lora.modules or module is None:
            return None
        is_expert = module in (FC1, FC2)
        down = self._side(module, "linear_in", layer, expert if is_expert else None)
        if module == QKV:
            projection, key = suffix.split(".")[1], tensors.adapter_key(QKV, "linear_out")
            rows = qkv_rows(self._reader, self._model, key, layer, projection, (self.lora.rank,))
            return down, to_torch(rows).float()
        up = self._side(module, "linear_out", layer, expert if is_expert else None)
        # Megatron's gate rows and then up rows, as Hugging Face's alternating ones.
        return down, up.view(2, -1, self.lora.rank).transpose(0, 1).reshape(up.shape) if module == FC1 else up

    def _side(self, module: str, side: str, layer: int, expert: int | None) -> Tensor:
        shape = tensors.megatron_adapters(self._model, self.lora.rank)[module][side]
        place = (layer,) if expert is None else (layer, expert)
        rest = shape[len(place) :]
        key = tensors.adapter_key(module, side)
        found = self._reader.box(key, (*place, *(0 for _ in rest)), (*(1 for _ in place), *rest))
        return to_torch(found).reshape(rest).float().clone()


class WithAdapters:
    """A model's weights with its adapters added, each sum in fp32 as PEFT computes it."""

    def __init__(self, base: Source, adapters: Adapters, dtype: DType) -> None:
        self._base = base
        self._adapters = adapters
        self._dtype = dtype
        """In which the training held the weights."""

    def values(self, part: Part) -> Array:
        # The factors first: they have memory of their own, the weight lies where the next read goes.
        found = self._adapters.factors(part.layer, part.suffix, part.start) if part.is_in_layer else None
        weight = cast(self._base.values(part), self._dtype)
        if found is None:
            return weight
        (down, up), scale = found, self._adapters.lora.scale
        if tensors.is_expert_weight(part.name):
            return to_numpy(to_torch(weight).float() + scale * (up @ down).t()[None])
        return to_numpy(to_torch(weight).float() + scale * (up[part.start : part.stop] @ down))


def peft_tensors(adapters: Adapters, model: Model) -> Iterator[tuple[str, Shape, Callable[[], Tensor]]]:
    """Every tensor of PEFT's file: name, shape, and what makes its values."""
    rank, found = adapters.lora.rank, tensors.hugging_face_layer(model)
    for layer in range(model.layers):
        for suffix, module in _MODULE.items():
            if module not in adapters.lora.modules:
                continue
            experts = range(model.experts) if tensors.is_expert_weight(suffix) else range(1)
            shape = found[suffix]
            rows, columns = (shape[2], shape[1]) if len(shape) == 3 else shape
            name = f"{PREFIX}model.layers.{layer}.{_wrapped(suffix, adapters.lora)}"

            # PEFT holds the experts' lora_A as [experts x rank, inputs], their lora_B as [outputs, rank x experts].
            def down(layer: int = layer, suffix: str = suffix, experts: range = experts) -> Tensor:
                return torch.cat([_factor(adapters, layer, suffix, expert, 0) for expert in experts])

            def up(layer: int = layer, suffix: str = suffix, experts: range = experts) -> Tensor:
                return torch.stack([_factor(adapters, layer, suffix, expert, 1) for expert in experts], -1).flatten(1)

            yield f"{name}.lora_A.weight", (len(experts) * rank, columns), down
            yield f"{name}.lora_B.weight", (rows, rank * len(experts)), up


def write_weights(file: OutputFile, adapters: Adapters, model: Model, kind: str) -> None:
    """Write PEFT's `adapter_model.safetensors`; `kind` as safetensors spells it."""
    made = list(peft_tensors(adapters, model))
    head, _ = make_header({name: shape for name, shape, _ in made}, kind)
    file.put(head)
    for name, shape, values in made:
        tensor = values().to(OF_SAFETENSORS[kind])
        if tuple(tensor.shape) != shape:
            raise AssertionError(f"{name} has the shape {tuple(tensor.shape)} and not {shape}")
        file.put(to_numpy(tensor), name)


def size_bytes(model: Model, lora: Lora, item_bytes: int) -> int:
    """About what PEFT's file takes."""
    sides = tensors.megatron_adapters(model, lora.rank)
    return sum(torch.Size(shape).numel() for module in lora.modules for shape in sides[module].values()) * item_bytes


def write_config(folder: Path, lora: Lora, base: str) -> Path:
    """Write PEFT's `adapter_config.json`; `base` is the model that PEFT loads below the adapters."""
    trained = [suffix for suffix, module in _MODULE.items() if module in lora.modules]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        # Without dropout: the files are for answering, and PEFT knows none for the experts.
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(suffix.split(".")[1] for suffix in trained if suffix.startswith("self_attn.")),
        # Experts and router are no torch.nn.Linear: PEFT adapts them by the names of their parameters.
        "target_parameters": sorted(suffix for suffix in trained if suffix.startswith("mlp.")) or None,
    }
    write_atomic(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    return folder / CONFIG


def differences(folder: Path, iteration: Path, model: Model) -> list[str]:
    """What of the adapter in `folder` is not what the checkpoint holds, in words. Raises CheckpointError."""
    checkpoint = torch_dist.read(iteration)
    lora = read(checkpoint, model)
    stored = safetensors_file.read_header(folder / WEIGHTS)
    config = _config(folder)
    found = []
    if (config.get("r"), config.get("lora_alpha")) != (lora.rank, lora.alpha):
        found.append(f"{CONFIG} has r = {config.get('r')} and lora_alpha = {config.get('lora_alpha')}, "
                     f"trained were {lora.rank} and {lora.alpha}")  # fmt: skip
    with MegatronReader(checkpoint) as reader, open_file(folder / WEIGHTS) as file:
        made = {name: (shape, values) for name, shape, values in peft_tensors(Adapters(reader, model, lora), model)}
        found += [f"{name} does not belong there" for name in stored.keys() - made.keys()]
        for name, (shape, values) in made.items():
            if (place := stored.get(name)) is None or place.shape != shape or place.dtype not in OF_SAFETENSORS:
                found.append(f"{name} is missing or of another shape")
                continue
            file.seek(place.start)
            kind = OF_SAFETENSORS[place.dtype]
            there = torch.frombuffer(bytearray(file.read(place.size_bytes)), dtype=kind).view(shape)
            if not torch.equal(there, values().to(kind)):
                found.append(f"{name} has other values")
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads(file_text(folder / CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}", "export again") from error
    return value if isinstance(value, dict) else {}


def _factor(adapters: Adapters, layer: int, suffix: str, expert: int, side: int) -> Tensor:
    found = adapters.factors(layer, suffix, expert)
    assert found is not None  # its module is among the trained ones
    return found[side]


def _wrapped(suffix: str, lora: Lora) -> str:
    """PEFT's name of a module: it wraps the experts once for each of their weights, gate and up first."""
    if not tensors.is_expert_weight(suffix):
        return suffix.removesuffix(".weight")
    is_inner = suffix == GATE_UP and FC2 in lora.modules
    return "mlp.experts" + (".base_layer" if is_inner else "")
