"""Megatron-LM as the judge: its load_checkpoint takes a converted checkpoint and its model's logits are right.

By the `megatron.training` of the package megatron-core, or of a checkout that MEGATRON_LM_DIR names. That it loads
a checkpoint after training is seen in test_training.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.workers.stream.convert import convert
from tests.convert import models
from tests.convert.conftest import Judge, MakeSource


def small(tmp_path: Path, seed: int = 0) -> Path:
    model = models.tiny(models.RECTANGULAR)
    return models.write(tmp_path, model, "bf16", models.entries(model, "bf16", seed=seed, spread=0.05))


def test_in_fp32(source: MakeSource, megatron_lm: Judge, tmp_path: Path) -> None:
    hf = source("fp32", models.RECTANGULAR)
    convert(hf, tmp_path / "m", "fp32")
    answer = megatron_lm.ask(checkpoint=str(tmp_path / "m"), hf=str(hf), dtype="fp32", strictness="raise_all")
    assert (answer["iteration"], answer["unloaded"]) == (0, [])
    assert answer["within"], answer
    assert [one["tokens"] for one in answer["comparisons"]] == [8, 24, 64]  # within the window of 16 and beyond
    assert all(one["difference"] < 5e-4 and one["agreement"] == 1 for one in answer["comparisons"])


def test_in_bf16(megatron_lm: Judge, tmp_path: Path) -> None:
    hf = small(tmp_path / "hf")
    convert(hf, tmp_path / "m", "bf16")
    answer = megatron_lm.ask(checkpoint=str(tmp_path / "m"), hf=str(hf), dtype="bf16", strictness="raise_all")
    assert answer["unloaded"] == [] and answer["within"], answer


def test_mxfp4_computed_in_fp32(source: MakeSource, megatron_lm: Judge, tmp_path: Path) -> None:
    """The weights of the released models, dequantised; computed in fp32 nothing but the weights can differ."""
    hf = source("mxfp4", models.SQUARE)
    convert(hf, tmp_path / "m", "fp32")
    answer = megatron_lm.ask(checkpoint=str(tmp_path / "m"), hf=str(hf), dtype="fp32", strictness="raise_all")
    assert answer["unloaded"] == [] and answer["within"], answer


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_other_weights_are_seen(megatron_lm: Judge, tmp_path: Path, dtype: str) -> None:
    convert(small(tmp_path / "other", seed=1), tmp_path / "m", dtype)
    hf = small(tmp_path / "hf")
    answer = megatron_lm.ask(checkpoint=str(tmp_path / "m"), hf=str(hf), dtype=dtype, strictness="raise_all")
    assert answer["unloaded"] == [] and not answer["within"]
