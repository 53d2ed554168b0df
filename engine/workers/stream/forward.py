"""Logits of a checkpoint by transformers and by Megatron, with one layer's weights in memory at a time.

Both models are the real ones; only their weights come late: a layer gets them when it is called
and gives them back when it has answered. So a model is checked that no machine at hand can hold.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoints import hugging_face, tensors, torch_dist
from engine.checkpoints.tensors import FC1, FC2, QKV
from engine.errors import CheckpointError
from engine.models import Model
from engine.plan.layout import Layout
from engine.settings import TrainingSettings
from engine.workers.stream.reading import HuggingFaceReader, MegatronReader
from engine.workers.stream.to_hugging_face import FromHuggingFace, parts
from engine.workers.stream.values import TORCH_DTYPES

type LoadOne = Callable[[str, tuple[int, ...]], Tensor]
"""Gives the values of a parameter by its name and shape."""

_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.linear_fc([12])\.(weight|bias)")
_SAVED_AS = {"input_layernorm.weight": f"{QKV}.layer_norm_weight"}
"""Names that the local layers change when they save (gpt_layer_specs.py, sharded_state_dict_keys_map)."""


def transformers_logits(directory: Path, prompts: Sequence[Tensor], precision: str) -> list[Tensor]:
    """What transformers computes from the Hugging Face checkpoint in `directory`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = hugging_face.read(directory)
    config = AutoConfig.from_pretrained(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the blocks are dequantised here
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=TORCH_DTYPES[precision])
    model.eval()
    # Its frequencies are computed, not loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    shapes = tensors.hugging_face(checkpoint.model)
    with HuggingFaceReader(checkpoint) as reader:
        source = FromHuggingFace(reader)

        def load(name: str, shape: tuple[int, ...]) -> Tensor:
            values = torch.empty(shape, dtype=TORCH_DTYPES[precision])
            for part in parts(name, shapes[name], values.element_size()):
                values[part.start : part.stop] = source.values(part)
            return values

        owners = [("model.embed_tokens", model.model.embed_tokens), ("model.norm", model.model.norm)]
        owners += [(f"model.layers.{i}", layer) for i, layer in enumerate(model.model.layers)]
        owners += [("lm_head", model.lm_head)]
        with _weights_on_call(owners, load), torch.inference_mode():
            return [model(prompt, use_cache=False).logits.float() for prompt in prompts]


def megatron_logits(iteration: Path, prompts: Sequence[Tensor], precision: str) -> list[Tensor]:
    """What Megatron computes from one iteration of a checkpoint, built as its run_config.yaml says.

    In this process, on the CPU, with Megatron's local layers. Raises CheckpointError.
    """
    checkpoint = torch_dist.read(iteration)
    with _one_rank():
        model = _build_megatron(iteration, precision)
        with MegatronReader(checkpoint) as reader:

            def load(name: str, shape: tuple[int, ...]) -> Tensor:
                return _megatron_parameter(reader, name, shape).to(TORCH_DTYPES[precision])

            owners = [(name, module) for name, module in model.named_modules() if _owns(module)]
            with _weights_on_call(owners, load), torch.inference_mode():
                return [_answer(model, prompt) for prompt in prompts]


def run_config_differences(iteration: Path, model: Model) -> list[str]:
    """What Bridge would build otherwise than `model` is, in words. Needs PyYAML, which Bridge needs too."""
    import yaml

    from engine.workers.stream import bridge_files

    path = iteration / "run_config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    except FileNotFoundError:
        return ["run_config.yaml is missing: Bridge can neither train nor export from this checkpoint"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "convert again") from error
    expected = bridge_files.run_config(model, "bf16", "")["model"]
    return [
        f"run_config.yaml has {name} = {found[name]!r} and not {expected[name]!r}"
        for name in bridge_files.ARCHITECTURE
        if name in found and found[name] != expected[name]
    ]


@contextlib.contextmanager
def _weights_on_call(owners: Sequence[tuple[str, nn.Module]], load: LoadOne) -> Iterator[None]:
    """Give each module its weights while it computes."""
    handles: list[Any] = []

    def attach(prefix: str, module: nn.Module) -> None:
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}

        def fill(*_: Any) -> None:
            for name, shape in shapes.items():
                _set(module, name, nn.Parameter(load(f"{prefix}.{name}", shape), requires_grad=False))

        def free(*_: Any) -> None:
            for name, shape in shapes.items():
                _set(module, name, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))

        free()
        handles.extend((module.register_forward_pre_hook(fill), module.register_forward_hook(free)))

    for prefix, module in owners:
        attach(prefix, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    owner = module.get_submodule(".".join(path))
    owner._parameters[last] = parameter


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


def _owns(module: nn.Module) -> bool:
    """True for a module that has parameters of its own: what is loaded at once, one matrix of one expert."""
    return next(module.parameters(recurse=False), None) is not None


def _answer(model: nn.Module, prompt: Tensor) -> Tensor:
    positions = torch.arange(prompt.shape[1])[None]
    logits: Tensor = model(input_ids=prompt, position_ids=positions, attention_mask=None)
    return logits.float()


def _megatron_parameter(reader: MegatronReader, name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of a parameter of Megatron's local layers."""
    if not name.startswith("decoder.layers."):
        return reader.box(name, (0,) * len(shape), shape).clone()
    _, _, number, rest = name.split(".", 3)
    layer = int(number)
    if expert := _EXPERT.fullmatch(rest):
        key = f"{FC1 if expert[2] == '1' else FC2}.{expert[3]}"
        offsets = (layer, int(expert[1]), *(0 for _ in shape))
        return reader.box(key, offsets, (1, 1, *shape))[0, 0].clone()
    key = _SAVED_AS.get(rest, f"decoder.layers.{rest}")
    return reader.box(key, (layer, *(0 for _ in shape)), (1, *shape))[0].clone()
