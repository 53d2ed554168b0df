"""A model converted by streaming, trained on two ranks, exported, compared in Megatron and in transformers.

And Megatron-LM's own load_checkpoint takes what the training left: its model is the exported one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.checkpoints import danger
from engine.plan.layout import Layout
from engine.run.directory import read_records
from tests.convert.conftest import Judge
from tests.end_to_end.harness import Zygote, losses, make_run

CASES = {
    "EP2": Layout(ep=2, dp=2),
    "TP2": Layout(tp=2),
    "PP2": Layout(pp=2),
}

EXPERTS_AT_FIRST = (1.887, 0.199)
"""Tokens of the busiest and the idlest expert over the mean, with these weights and samples."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.mark.parametrize("layout", CASES.values(), ids=CASES)
def test_the_whole_way(zygote: Zygote, megatron_lm: Judge, tmp_path: Path, layout: Layout) -> None:
    from transformers import AutoModelForCausalLM

    run = make_run(tmp_path, "run", {"training.iterations": 4, "model.converter": "streaming"}, layout)
    zygote.run("prepare", run)
    assert zygote.run("convert", run)["logits_max_difference"] < 1e-5
    result = zygote.run("train", run, ranks=2)
    # ln 512 = 6.24: the first loss of these weights, and not of others.
    assert result["first_loss"] == pytest.approx(6.24, abs=0.3)
    assert losses(run)[4] < losses(run)[1]
    # What Megatron saves is no danger, or nobody could go on from a checkpoint.
    assert danger.find(run.converted) == danger.find(run.checkpoints) == []
    # The same weights and samples: however the ranks share them, every token is counted alike.
    first = next(record for record in read_records(run.metrics) if "load_balance" in record)
    assert (first["load_balance"], first["load_balance_least"]) == pytest.approx(EXPERTS_AT_FIRST, abs=0.02)
    assert zygote.run("export", run)["tensors"] == 71
    tokens = torch.arange(64)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager") for path in (run.model, run.export)
    )
    with torch.inference_mode():
        assert not torch.equal(before(tokens).logits, after(tokens).logits)
    verified = zygote.run("verify", run)
    assert verified["tensors_compared"] == 71 and verified["first_loss_difference"] < 1e-5
    # The checkpoint holds the optimizer, too, which is not asked for.
    answer = megatron_lm.ask(
        checkpoint=str(run.checkpoints), hf=str(run.export), dtype="fp32", strictness="raise_unexpected"
    )
    assert answer["iteration"] == 0  # --finetune begins to count anew
    assert answer["unloaded"] == [] and answer["within"], answer
    assert max(one["difference"] for one in answer["comparisons"]) < 1e-4
