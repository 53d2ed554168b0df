"""What happens to numbers on the way, against torch's and transformers' own."""

from __future__ import annotations

import pytest
import torch

from engine.errors import CheckpointError
from engine.workers.stream import values
from engine.workers.stream.frame import frame

SHAPES = [(1, 2), (3, 2), (96, 192), (97, 194), (5, 400), (200, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_transposing_in_pairs_is_transposing(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape).to(dtype)
    even, odd = (half.clone() for half in values.split_transposed(matrix))
    assert torch.equal(even, matrix[:, ::2].t())
    assert torch.equal(odd, matrix[:, 1::2].t())
    assert torch.equal(values.join_transposed(even, odd), matrix)
    assert torch.equal(values.transposed(matrix), matrix.t())
    assert torch.equal(values.transposed(matrix[:, :-1]), matrix[:, :-1].t())


def test_every_byte_and_scale_is_dequantised_as_transformers_does() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(253, 1, 1)
    scales = torch.arange(253, dtype=torch.uint8)[:, None].repeat(1, 16)
    expected = convert_moe_packed_tensors(blocks[None].clone(), scales[None].clone())[0].t()
    found = values.dequantize(blocks, scales)
    assert torch.equal(found.view(torch.int16), expected.contiguous().view(torch.int16))


def test_a_scale_that_makes_infinities_is_refused() -> None:
    values.require_finite_scales(torch.tensor([252], dtype=torch.uint8), "x")
    with pytest.raises(CheckpointError, match="x holds a scale of 253"):
        values.require_finite_scales(torch.tensor([3, 253], dtype=torch.uint8), "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    tensor = torch.zeros(1000).bfloat16()
    values.require_finite(tensor, "x")
    tensor[777] = bad
    with pytest.raises(CheckpointError, match="x holds NaN or infinite"):
        values.require_finite(tensor, "x")


@pytest.mark.parametrize("shape", [(1,), (7, 3), (1, 1, 64, 64)])
def test_a_frame_around_values_is_what_torch_reads(shape: tuple[int, ...]) -> None:
    import io

    tensor = torch.randn(shape).bfloat16()
    head, tail = frame(shape, torch.bfloat16)
    data = head + tensor.view(torch.int16).numpy().tobytes() + tail
    assert torch.equal(torch.load(io.BytesIO(data), weights_only=True), tensor)
