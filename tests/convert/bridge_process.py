"""A process that imports Megatron-Bridge once and answers questions about checkpoints, one JSON line each.

{"import": HF_DIR, "out": DIR, "dtype": "bf16"}            -> {}
{"load": ITERATION, "hf": HF_DIR}                          -> {"parameters": n}      strictness raise_all
{"fields": ITERATION, "hf": HF_DIR}                        -> {"differences": [...]}  of Bridge's provider
{"export": ITERATION, "hf": HF_DIR}                        -> {"tensors": n, "differing": [...]}
{"logits": ITERATION, "hf": HF_DIR}                        -> {"comparisons": [...], "within": bool, "told": [...]}
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from engine.workers import cpu

    cpu.prepare_environment()
    torch.set_num_threads(1)
    cpu.install()
    import megatron.bridge  # noqa: F401
    import transformers.models.gpt_oss.modeling_gpt_oss  # noqa: F401

    asked = {"import": import_, "load": load, "fields": fields, "export": export, "logits": logits}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = asked[next(iter(question))](question)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


@contextmanager
def one_rank() -> Iterator[None]:
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def build(hf: str, dtype: str, *, with_weights: bool) -> tuple[Any, list[Any]]:
    from megatron.bridge import AutoBridge

    from engine.plan.layout import Layout
    from engine.settings import TrainingSettings
    from engine.workers import profile

    bridge = AutoBridge.from_hf_pretrained(hf)
    provider = bridge.to_megatron_provider(load_weights=with_weights)
    profile.apply(provider, TrainingSettings(sequence_length=128), Layout(), "cpu", dtype)
    provider.perform_initialization = False
    provider.finalize()
    provider.initialize_model_parallel(seed=1)
    return bridge, provider.provide_distributed_model(wrap_with_ddp=False)


def import_(question: dict[str, Any]) -> dict[str, Any]:
    with one_rank():
        bridge, model = build(question["import"], question["dtype"], with_weights=True)
        bridge.save_megatron_model(model, question["out"])
    return {}


def load(question: dict[str, Any]) -> dict[str, Any]:
    from megatron.bridge.training.checkpointing import _load_model_weights_from_checkpoint

    with one_rank():
        _, model = build(question["hf"], question["dtype"], with_weights=False)
        for parameter in model[0].parameters():
            parameter.data.fill_(float("nan"))
        _load_model_weights_from_checkpoint(question["load"], model, dist_ckpt_strictness="raise_all")
        left = [name for name, parameter in model[0].named_parameters() if parameter.isnan().any()]
        return {"parameters": sum(parameter.numel() for parameter in model[0].parameters()), "left": left}


def fields(question: dict[str, Any]) -> dict[str, Any]:
    """Field by field: what Bridge would build from the checkpoint, and from the Hugging Face config."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import load_model_config

    found, _ = load_model_config(question["fields"])
    wanted = AutoBridge.from_hf_pretrained(question["hf"]).to_megatron_provider(load_weights=False)
    wanted.window_size = list(wanted.window_size)  # what YAML makes of a tuple, of Bridge's own as well
    pairs = {
        field.name: (getattr(found, field.name), getattr(wanted, field.name)) for field in dataclasses.fields(wanted)
    }
    return {
        "kind": type(found) is type(wanted),
        "differences": {name: list(map(repr, pair)) for name, pair in pairs.items() if repr(pair[0]) != repr(pair[1])},
    }


def export(question: dict[str, Any]) -> dict[str, Any]:
    """Bridge's own export of the checkpoint against the Hugging Face checkpoint."""
    from megatron.bridge.training.checkpointing import _load_model_weights_from_checkpoint
    from safetensors.torch import load_file

    with one_rank():
        bridge, model = build(question["hf"], question["dtype"], with_weights=False)
        _load_model_weights_from_checkpoint(question["export"], model, dist_ckpt_strictness="raise_all")
        exported = dict(bridge.export_hf_weights(model, cpu=True, show_progress=False))
    wanted = {k: v for file in Path(question["hf"]).glob("*.safetensors") for k, v in load_file(file).items()}
    differing = [name for name, value in wanted.items() if not torch.equal(exported[name], value)]
    return {"tensors": len(exported), "differing": differing}


def logits(question: dict[str, Any]) -> dict[str, Any]:
    from engine.checkpoints import hugging_face, torch_dist
    from engine.workers.stream import same_logits

    reference = hugging_face.read(Path(question["hf"]))
    told: list[str] = []
    found = same_logits.compare(
        reference, torch_dist.read(Path(question["logits"])), "fp32", on_progress=lambda text, *_: told.append(text)
    )
    return {
        "told": list(dict.fromkeys(told)),
        "comparisons": [one.to_json() for one in found],
        "within": all(one.is_within("fp32") for one in found),
    }


if __name__ == "__main__":
    main()
