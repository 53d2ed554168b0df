"""Logits of a checkpoint by transformers and by Megatron, with a few weights in memory at a time.

Both models are the real ones; only their weights come late: a layer gets them when it is called and gives
them back when it has answered, and its experts one by one. So a model is checked that no machine at hand can
hold, in the memory that its vocabulary takes.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoints import hugging_face, tensors, torch_dist
from engine.checkpoints.tensors import ADAPTER, FC1, FC2, QKV
from engine.plan.layout import Layout
from engine.settings import TrainingSettings
from engine.workers.stream import run_config
from engine.workers.stream.reading import HuggingFaceReader, MegatronReader
from engine.workers.stream.to_hugging_face import PIECE_BYTES, FromHuggingFace, Part, parts
from engine.workers.stream.torch_tensors import TORCH_DTYPES, to_torch

type LoadOne = Callable[[str, tuple[int, ...]], Tensor | _Experts]
"""Gives the values of a parameter by its name and shape."""
type OnLayer = Callable[[int], None]
"""Gets the number of the layer that begins, perhaps several times."""

_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.linear_fc([12])\.(.+)")
_LAYER = re.compile(r"\blayers\.(\d+)")
_SAVED_AS = {"input_layernorm.weight": f"{QKV}.layer_norm_weight"}
"""Names that the local layers change when they save (gpt_layer_specs.py, sharded_state_dict_keys_map)."""


class _Experts:
    """The weights of a layer's experts, one of which is read when it is asked for."""

    def __init__(self, read: Callable[[int], Tensor]) -> None:
        self._read = read

    def __getitem__(self, expert: Tensor) -> Tensor:
        return self._read(int(expert))


def transformers_logits(
    directory: Path, prompts: Sequence[Tensor], precision: str, on_layer: OnLayer | None = None
) -> list[Tensor]:
    """What transformers computes from the Hugging Face checkpoint in `directory`."""
    lengths = [prompt.shape[1] for prompt in prompts]

    def rows(hidden: Tensor) -> Tensor:
        return torch.cat([one[:length] for one, length in zip(hidden, lengths, strict=True)])[None]

    with transformers_model(directory, precision, on_layer=on_layer, to_head=rows) as model, torch.inference_mode():
        return _apart(model(_together(prompts), use_cache=False).logits, lengths)


@contextlib.contextmanager
def transformers_model(
    directory: Path,
    precision: str,
    device: str = "cpu",
    on_layer: OnLayer | None = None,
    to_head: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Callable[..., Any]]:
    """The model of the Hugging Face checkpoint in `directory`, each part of which gets its weights when it is called.

    It takes tokens that lie anywhere and computes on `device`. `to_head` chooses the rows that get logits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = hugging_face.read(directory)
    config = AutoConfig.from_pretrained(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the blocks are dequantised here
    with torch.device("meta"):
        # These experts look their weights up one expert after the other.
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager", dtype=TORCH_DTYPES[precision]
        )
    model.eval()
    # Its frequencies are computed, not loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    shapes = tensors.hugging_face(checkpoint.model)
    with HuggingFaceReader(checkpoint) as reader:
        source = FromHuggingFace(reader)

        def load(name: str, shape: tuple[int, ...]) -> Tensor | _Experts:
            if tensors.is_expert_weight(name):
                return _Experts(lambda expert: one_expert(name, expert))
            values = torch.empty(shape, dtype=TORCH_DTYPES[precision])
            for part in parts(name, shapes[name], values.element_size()):
                values[part.start : part.stop] = to_torch(source.values(part))
            return values.to(device)

        def one_expert(name: str, expert: int) -> Tensor:
            part = Part(name=name, shape=shapes[name], start=expert, stop=expert + 1)
            return to_torch(source.values(part))[0].to(device, TORCH_DTYPES[precision], copy=True)

        owners = [("model.embed_tokens", model.model.embed_tokens), ("model.norm", model.model.norm)]
        owners += [(f"model.layers.{i}", layer) for i, layer in enumerate(model.model.layers)]
        owners += [("lm_head", model.lm_head)]
        if to_head:
            _choose_rows(model.lm_head, to_head)
        with _weights_on_call(owners, load, on_layer):
            yield lambda tokens, **options: model(tokens.to(device), **options)


def megatron_logits(
    iteration: Path,
    prompts: Sequence[Tensor],
    precision: str,
    base: Path | None = None,
    on_layer: OnLayer | None = None,
) -> list[Tensor]:
    """What Megatron computes from one iteration of a checkpoint, built as its run_config.yaml says.

    Where it holds adapters, the weights are those of the Megatron checkpoint `base`. In this process,
    on the CPU, with Megatron's local layers. Raises CheckpointError.
    """
    with _one_rank(), ExitStack() as stack:
        trained = stack.enter_context(MegatronReader(torch_dist.read(iteration)))
        model, weights = _build_megatron(iteration, precision), trained
        if base is not None:
            weights = stack.enter_context(MegatronReader(torch_dist.read(torch_dist.find_iteration(base))))
            _add_adapters(model, iteration)
        lengths = [prompt.shape[1] for prompt in prompts]

        # Megatron has the positions first and the prompts second.
        def rows(hidden: Tensor) -> Tensor:
            return torch.cat([hidden[:length, number] for number, length in enumerate(lengths)])[:, None]

        _choose_rows(model.get_submodule("output_layer"), rows)

        def load(name: str, shape: tuple[int, ...]) -> Tensor:
            reader = trained if ADAPTER in name else weights
            return _megatron_parameter(reader, name.replace(".to_wrap.", "."), shape, TORCH_DTYPES[precision])

        with _weights_on_call(list(_called(model)), load, on_layer), torch.inference_mode():
            return _apart(_answer(model, _together(prompts)), lengths)


def _together(prompts: Sequence[Tensor]) -> Tensor:
    """One batch, so that each weight is read once; what is added behind a prompt does not change its logits."""
    return nn.utils.rnn.pad_sequence([prompt[0] for prompt in prompts], batch_first=True)


def _choose_rows(head: nn.Module, choose: Callable[[Tensor], Tensor]) -> None:
    """Have logits computed of the prompts alone: what is behind the shorter ones would take as much memory again."""
    head.register_forward_pre_hook(lambda _, arguments: (choose(arguments[0]), *arguments[1:]))


def _apart(rows: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [logits.float() for logits in rows.split(lengths, 1)]


@contextlib.contextmanager
def _weights_on_call(
    owners: Sequence[tuple[str, nn.Module]], load: LoadOne, on_layer: OnLayer | None = None
) -> Iterator[None]:
    """Give each module its weights while it computes."""
    handles: list[Any] = []

    def attach(prefix: str, module: nn.Module) -> None:
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}

        layer = _LAYER.search(prefix)

        def fill(*_: Any) -> None:
            if on_layer and layer:
                on_layer(int(layer[1]))
            for name, shape in shapes.items():
                _set(module, name, load(f"{prefix}.{name}", shape))

        def free(*_: Any) -> None:
            for name, shape in shapes.items():
                _set(module, name, torch.empty(shape, device="meta"))

        free()
        handles.extend((module.register_forward_pre_hook(fill), module.register_forward_hook(free)))

    for prefix, module in owners:
        attach(prefix, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set(module: nn.Module, name: str, values: Any) -> None:
    *path, last = name.split(".")
    owner = module.get_submodule(".".join(path))
    is_tensor = isinstance(values, Tensor)
    owner._parameters[last] = nn.Parameter(values, requires_grad=False) if is_tensor else values


@contextlib.contextmanager
def _one_rank() -> Iterator[None]:
    """A process group of this process alone, and Megatron ready for the CPU."""
    from engine.workers import cpu

    cpu.prepare_environment()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("MASTER_ADDR", "localhost")
    cpu.install()
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix
    from megatron.core import parallel_state

    register_allowed_target_prefix("engine.workers")
    parallel_state.destroy_model_parallel()  # what an earlier step in this process left
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _build_megatron(iteration: Path, precision: str) -> nn.Module:
    from megatron.bridge.training.model_load_save import load_model_config

    from engine.workers import profile

    provider, _ = load_model_config(str(iteration))
    profile.apply(provider, TrainingSettings(sequence_length=8), Layout(), "cpu", precision)
    provider.perform_initialization = False
    provider.parallel_output = False
    provider.finalize()
    provider.initialize_model_parallel(seed=1)
    model: nn.Module = provider.provide_distributed_model(wrap_with_ddp=False)[0]
    return getattr(model, "module", model).eval()


def _add_adapters(model: nn.Module, iteration: Path) -> None:
    """Put Bridge's adapters around the layers that had them in the training."""
    from megatron.bridge.peft.lora import LoRA

    peft = (run_config.read(iteration) or {})["peft"]  # it was read before the weights were compared
    wrap = LoRA(target_modules=list(peft["target_modules"]), dim=peft["dim"], alpha=peft["alpha"], dropout=0.0)
    wrap(model, training=False)
    model.eval()


def _called(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that have parameters of their own: what is loaded at once, one matrix of one expert."""
    from megatron.bridge.peft.lora_layers import LoRATopKRouter

    whole: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, LoRATopKRouter):
            # It uses the router's weights without calling the router.
            whole += (f"{name}.",)
            yield name, module
        elif not name.startswith(whole) and next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _answer(model: nn.Module, prompt: Tensor) -> Tensor:
    positions = torch.arange(prompt.shape[1]).expand_as(prompt)
    logits: Tensor = model(input_ids=prompt, position_ids=positions, attention_mask=None)
    return logits


def _megatron_parameter(reader: MegatronReader, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The values of a parameter of Megatron's local layers, read a few rows at a time."""
    key, place = name, tuple[int, ...]()
    if name.startswith("decoder.layers."):
        _, _, layer, rest = name.split(".", 3)
        key, place = _SAVED_AS.get(rest, f"decoder.layers.{rest}"), (int(layer),)
        if expert := _EXPERT.fullmatch(rest):
            key, place = f"{FC1 if expert[2] == '1' else FC2}.{expert[3]}", (int(layer), int(expert[1]))
    values = torch.empty(shape, dtype=dtype)
    step = max(1, PIECE_BYTES // (math.prod(shape[1:]) * values.element_size()))
    for start in range(0, shape[0], step):
        rows = values[start : start + step]
        offsets = (*place, start, *(0 for _ in shape[1:]))
        rows[...] = to_torch(reader.box(key, offsets, (*(1 for _ in place), *rows.shape))).view(rows.shape)
    return values
