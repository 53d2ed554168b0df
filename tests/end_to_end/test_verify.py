"""The verify step sees every wrong export that conversions have made before."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.run.directory import RunDirectory
from tests.end_to_end.harness import Zygote, error_of

type Tensors = dict[str, Any]


def _swap_experts(tensors: Tensors) -> None:
    for name in ("gate_up_proj", "down_proj"):
        weight = tensors[f"model.layers.1.mlp.experts.{name}"]
        weight[[0, 1]] = weight[[1, 0]]


def _transpose_experts(tensors: Tensors) -> None:
    name = "model.layers.2.mlp.experts.down_proj"
    tensors[name] = tensors[name].swapaxes(1, 2).copy()


def _swap_gate_and_up(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = tensors[name].copy()
    tensors[name][..., ::2], tensors[name][..., 1::2] = weight[..., 1::2], weight[..., ::2]


def _zero_sinks(tensors: Tensors) -> None:
    tensors["model.layers.1.self_attn.sinks"][:] = 0


def _zero_router_bias(tensors: Tensors) -> None:
    tensors["model.layers.3.mlp.router.bias"][:] = 0


def _scale_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"] *= 1.01


@pytest.mark.parametrize(
    "damage",
    [
        _swap_experts,
        _transpose_experts,
        _swap_gate_and_up,
        _zero_sinks,
        _zero_router_bias,
        _scale_norm,
    ],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_wrong_weights_are_found(zygote: Zygote, trained_copy: RunDirectory, damage: Callable[[Tensors], None]) -> None:
    from safetensors.numpy import load_file, save_file

    file = trained_copy.export / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    damage(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    problems = _refused(zygote, trained_copy)
    # Seen twice: in the values, and in what they compute.
    assert problems[0].startswith("model.") and "values differ, by up to" in problems[0]
    assert problems[-1].startswith("logits of 64 tokens") and "allowed" in problems[-1]


def test_a_broken_number_is_named(zygote: Zygote, trained_copy: RunDirectory) -> None:
    from safetensors.numpy import load_file, save_file

    file = trained_copy.export / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    tensors["lm_head.weight"][3, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    assert "lm_head.weight of model.safetensors holds NaN" in _error(zygote, trained_copy)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("sliding_window", 15, "run_config.yaml has window_size"),
        ("layer_types", ["full_attention", "sliding_attention"] * 2, "layer_types does not alternate"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 150000.0}, "rope rope_type = 'default'"),
        ("num_experts_per_tok", 1, "run_config.yaml has moe_router_topk"),
    ],
)
def test_a_wrong_description_is_found(
    zygote: Zygote, trained_copy: RunDirectory, key: str, value: object, says: str
) -> None:
    file = trained_copy.export / "config.json"
    config = json.loads(file.read_text())
    assert config[key] != value
    file.write_text(json.dumps({**config, key: value}))
    assert says in _error(zygote, trained_copy)


def test_a_checkpoint_without_its_evaluation_is_refused(zygote: Zygote, trained_copy: RunDirectory) -> None:
    (trained_copy.path / "evaluation" / "last.json").unlink()
    started = zygote.start("verify", trained_copy)
    assert zygote.wait(started) == [1]
    assert "no iteration" in error_of(started.attempt)["message"]


def test_an_export_of_an_older_training_is_found(zygote: Zygote, trained_copy: RunDirectory) -> None:
    """The tensors are those of the untrained model: everything has its right name and shape."""
    (trained_copy.export / "model.safetensors").write_bytes((trained_copy.model / "model.safetensors").read_bytes())
    _refused(zygote, trained_copy)


def test_a_first_iteration_with_other_weights_is_found(zygote: Zygote, trained_copy: RunDirectory) -> None:
    """As if the conversion had made a wrong model and the export had made it right again."""
    from safetensors.numpy import load_file, save_file

    file = trained_copy.model / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    _swap_experts(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    problems = _refused(zygote, trained_copy)
    assert len(problems) == 1 and problems[0].startswith("the first iteration's loss was")


def _refused(zygote: Zygote, run: RunDirectory) -> list[str]:
    """What the step wrote down as wrong."""
    assert "the exported model is not the trained one" in _error(zygote, run)
    report = json.loads((run.path / "verification.json").read_text())
    assert not report["is_verified"]
    problems: list[str] = report["problems"]
    return problems


def _error(zygote: Zygote, run: RunDirectory) -> str:
    started = zygote.start("verify", run)
    assert zygote.wait(started) == [1]
    error = error_of(started.attempt)
    assert error["error"] == "StepFailed", error
    assert error["hint"]
    return str(error["message"])
