"""Each way in which a conversion can be wrong is seen, twice: in the values and in what the model computes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoints import hugging_face, torch_dist
from engine.checkpoints.tensors import FC1, FC2
from engine.workers.stream import logits, run_config
from engine.workers.stream.convert import convert
from engine.workers.stream.torch_tensors import to_torch
from engine.workers.stream.values import OF_TORCH
from engine.workers.stream.verify import verify, weight_differences
from tests.convert.conftest import Judge, MakeSource

SINKS = "decoder.layers.self_attention.core_attention.softmax_offset"


@pytest.fixture(scope="module")
def good(source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good") / "m"
    convert(source("mxfp4", 64), root, "bf16")
    return root


def edit(root: Path, key: str, offsets: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Rewrite the values of one chunk where they lie."""
    stored = torch_dist.read(root / "iter_0000000")
    tensor = stored.tensors[key]
    chunk = next(chunk for chunk in tensor.chunks if chunk.offsets == offsets)
    descriptor = os.open(stored.path / chunk.file, os.O_RDWR)
    raw = torch_dist.raw_tensor(descriptor, chunk, key)
    values = to_torch(np.empty(raw.shape, OF_TORCH[raw.dtype]))
    os.preadv(descriptor, [memoryview(values.view(torch.uint8).numpy())], raw.start)
    changed = change(values).contiguous()
    assert not torch.equal(changed, values)
    os.pwrite(descriptor, changed.view(torch.uint8).numpy().tobytes(), raw.start)
    os.close(descriptor)


def swap(root: Path, key: str, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Exchange the values of two chunks."""
    first: list[torch.Tensor] = []
    second: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        first.append(x.clone())
        return x + 1

    def replace(x: torch.Tensor) -> torch.Tensor:
        second.append(x.clone())
        return first[0]

    edit(root, key, one, keep)
    edit(root, key, other, replace)
    edit(root, key, one, lambda _: second[0])


def swap_experts(root: Path) -> None:
    for key, rest in ((f"{FC2}.weight", (0, 0)), (f"{FC2}.bias", (0,))):
        swap(root, key, (1, 0, *rest), (1, 2, *rest))


def transpose_down(root: Path) -> None:
    for expert in range(4):
        edit(root, f"{FC2}.weight", (2, expert, 0, 0), lambda x: x.mT)


def zero_a_sink(root: Path) -> None:
    edit(root, SINKS, (1, 0), lambda x: torch.cat((torch.zeros_like(x[:, :1]), x[:, 1:]), 1))


def drop_a_bias(root: Path) -> None:
    edit(root, f"{FC1}.bias", (3, 1, 0), torch.zeros_like)


def gate_for_up(root: Path) -> None:
    swap(root, f"{FC1}.weight", (0, 0, 0, 0), (0, 0, 64, 0))


def _configure(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "iter_0000000" / "run_config.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


IN_WEIGHTS: dict[Callable[[Path], None], tuple[str, str]] = {
    swap_experts: ("model.layers.1.mlp.experts.down_proj", "expert 0 is the reference's expert 2"),
    transpose_down: ("model.layers.2.mlp.experts.down_proj", "expert 0 is transposed"),
    zero_a_sink: ("model.layers.1.self_attn.sinks", ""),
    drop_a_bias: ("model.layers.3.mlp.experts.gate_up_proj_bias", ""),
    gate_for_up: ("model.layers.0.mlp.experts.gate_up_proj", ""),
}
IN_CONFIG = {
    "window": (_configure("    - 15\n", "    - 14\n"), "window_size"),
    "rounding": (
        _configure("yarn_correction_range_round_to_int: false", "yarn_correction_range_round_to_int: true"),
        "yarn_correction_range_round_to_int",
    ),
    "clamp": (_configure("activation_func_clamp_value: 7.0", "activation_func_clamp_value: 1.0"), "clamp_value"),
    "offset": (_configure("glu_linear_offset: 1.0", "glu_linear_offset: 0.0"), "glu_linear_offset"),
}


def spoilt(good: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    root = tmp_path / "m"
    shutil.copytree(good, root)
    change(root)
    return root


def test_a_good_checkpoint_is_verified(good: Path, source: MakeSource, bridge: Judge) -> None:
    result = verify(good, source("mxfp4", 64), with_logits=False)
    assert result["is_verified"] and result["tensors_compared"] == 71 and result["files_compared"] > 8
    answer = bridge.ask(logits=str(good / "iter_0000000"), hf=str(source("mxfp4", 64)))
    assert answer["within"], answer
    assert [one["tokens"] for one in answer["comparisons"]] == [8, 24, 64]
    assert all(one["agreement"] == 1 for one in answer["comparisons"])
    assert answer["told"] == [
        f"logits by {who}: layer {layer} of 4" for who in ("transformers", "Megatron") for layer in (1, 2, 3, 4)
    ]


def test_what_memory_forbids_is_said(good: Path, source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.workers.stream.resources.available_memory_bytes", lambda: 1 << 30)
    result = verify(good, source("mxfp4", 64))
    assert result["is_verified"] and result["tensors_compared"] == 71
    assert "that needs 1.0 GiB of memory and 1.0 are free" in result["logits_skipped"] and "logits" not in result


@pytest.mark.parametrize("change", IN_WEIGHTS, ids=lambda change: change.__name__)
def test_changed_weights_are_seen(
    good: Path, source: MakeSource, bridge: Judge, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    root = spoilt(good, tmp_path, change)
    stored, reference = torch_dist.read(root / "iter_0000000"), hugging_face.read(source("mxfp4", 64))
    name, guess = IN_WEIGHTS[change]
    found = weight_differences(stored, reference)
    assert name in [one.name for one in found]
    assert next(one.guess for one in found if one.name == name) == guess
    assert not bridge.ask(logits=str(root / "iter_0000000"), hf=str(source("mxfp4", 64)))["within"]
    assert not verify(root, None)["is_verified"]  # its own sums know it too


@pytest.mark.parametrize("name", IN_CONFIG)
def test_a_changed_architecture_is_seen(
    good: Path, source: MakeSource, bridge: Judge, tmp_path: Path, name: str
) -> None:
    change, named = IN_CONFIG[name]
    root = spoilt(good, tmp_path, change)
    differences = run_config.differences(root / "iter_0000000", hugging_face.read(source("mxfp4", 64)).model)
    assert len(differences) == 1 and named in differences[0]
    answer = bridge.ask(logits=str(root / "iter_0000000"), hf=str(source("mxfp4", 64)))
    assert not answer["within"]
    if name == "window":  # within the window nothing can be seen
        assert answer["comparisons"][0]["difference"] < 1e-3


def test_a_tensor_that_nobody_filled_is_seen(good: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    root = spoilt(good, tmp_path / "x", lambda root: edit(root, f"{FC2}.weight", (1, 1, 0, 0), torch.zeros_like))
    (root / "gptoss-manifest.json").unlink()
    assert verify(root, None)["problems"] == [f"{FC2}.weight at [1, 1, 0, 0] holds one value only"]


def test_no_number_is_within_a_tolerance_when_it_is_nan() -> None:
    same: Any = [torch.randn(1, 4, 8)]
    assert logits.compare(same, same)[0].is_within("fp32")
    broken = [same[0].clone()]
    broken[0][0, 2, 3] = float("nan")
    assert not logits.compare(same, broken)[0].is_within("fp32")
    assert not logits.compare(same, broken)[0].is_within("bf16")
