"""What happens to numbers on the way, against torch's and transformers' own."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from torch.utils.serialization import config

from engine.errors import CheckpointError
from engine.workers.stream import bridge_files, values
from engine.workers.stream.frame import frame, saved
from engine.workers.stream.torch_tensors import to_numpy, to_torch
from engine.workers.stream.values import BF16, FP32, Array, DType

IDENTITY = re.compile(rb"(?<!\d)\d{40}(?!\d)")
"""What torch calls an archive: the one thing that ours does without."""
SHAPES = [(1, 2), (3, 2), (96, 192), (97, 194), (5, 400), (200, 6), (600, 10)]
TYPES = [(BF16, torch.bfloat16), (FP32, torch.float32)]


def same_bits(one: Array, other: torch.Tensor) -> bool:
    return np.array_equal(values.bits(one), values.bits(to_numpy(other)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_transposing_in_pairs_is_transposing(shape: tuple[int, int], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    matrix = to_numpy(tensor)
    even, odd = (half.copy() for half in values.split_transposed(matrix))
    assert same_bits(even, tensor[:, ::2].t())
    assert same_bits(odd, tensor[:, 1::2].t())
    assert same_bits(values.join_transposed(even, odd), tensor)
    assert same_bits(values.transposed(matrix), tensor.t())
    assert same_bits(values.transposed(matrix[:, :-1]), tensor[:, :-1].t())


def test_every_byte_and_scale_is_dequantised_as_transformers_does() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(253, 1, 1)
    scales = torch.arange(253, dtype=torch.uint8)[:, None].repeat(1, 16)
    expected = convert_moe_packed_tensors(blocks[None].clone(), scales[None].clone())[0].t()
    assert same_bits(values.dequantize(blocks.numpy(), scales.numpy()), expected)


def test_every_bf16_is_widened_and_every_float_rounded_as_torch_does() -> None:
    every: Array = np.arange(1 << 16, dtype=BF16)
    finite = every[(every & 0x7F80) != 0x7F80]
    assert same_bits(values.cast(finite, FP32), to_torch(finite).float())
    # Each with what follows it: below, at and above the middle, where even and odd round apart.
    rests = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    floats = ((finite.astype(np.uint32) << 16)[:, None] | rests).ravel().view(FP32)
    assert same_bits(values.cast(floats, BF16), to_torch(floats).bfloat16())


def test_a_scale_that_makes_infinities_is_refused() -> None:
    values.require_finite_scales(np.array([252], np.uint8), "x")
    with pytest.raises(CheckpointError, match="x holds a scale of 253"):
        values.require_finite_scales(np.array([3, 253], np.uint8), "x")


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_that_are_no_numbers_are_refused(bad: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(1000, dtype=dtype)
    tensor[5], tensor[6], tensor[7] = -0.0, torch.finfo(dtype).max, torch.finfo(dtype).min
    values.require_finite(to_numpy(tensor), "x")
    tensor[777] = bad
    with pytest.raises(CheckpointError, match="x holds NaN or infinite"):
        values.require_finite(to_numpy(tensor), "x")


@pytest.mark.parametrize("shape", [(1,), (7, 3), (1, 1, 64, 64), (300,), (70_000, 1), (1, 1, 0x101, 0x10001)])
@pytest.mark.parametrize(("dtype", "torchs"), TYPES)
def test_a_frame_around_values_is_torchs_own(shape: tuple[int, ...], dtype: DType, torchs: torch.dtype) -> None:
    tensor = torch.ones(shape, dtype=torchs)
    head, tail = frame(shape, dtype)
    data = head + tensor.view(torch.uint8).numpy().tobytes() + tail
    stream = io.BytesIO()
    with config.patch("save.compute_crc32", False):
        torch.save(tensor, stream)
    assert data == IDENTITY.sub(b"0" * 40, stream.getvalue())
    assert torch.equal(torch.load(io.BytesIO(data), weights_only=True), tensor)


@pytest.mark.parametrize("thing", [[None], [bridge_files.COMMON_STATE], {"a": 1}])
def test_what_is_no_tensor_is_saved_as_torch_does(thing: object) -> None:
    stream = io.BytesIO()
    torch.save(thing, stream)
    made = saved(thing)
    assert before_identity(made) == before_identity(stream.getvalue())
    assert torch.load(io.BytesIO(made), weights_only=True) == thing


def test_counters_are_saved_as_tensors() -> None:
    made = saved({"i": np.array(7), "f": np.array(0.5, np.float32), "b": np.array(True)})
    expected = {"i": torch.tensor(7), "f": torch.tensor(0.5), "b": torch.tensor(True)}
    assert torch.load(io.BytesIO(made), weights_only=True) == expected
    stream = io.BytesIO()
    torch.save(expected, stream)
    assert before_identity(made) == before_identity(stream.getvalue())


def before_identity(archive: bytes) -> bytes:
    return archive[: archive.index(b"serialization_id")]
