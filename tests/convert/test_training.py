"""A model converted by streaming, trained on two ranks, exported by streaming, loaded in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.plan.layout import Layout
from engine.workers.stream.convert import convert
from engine.workers.stream.export import export
from tests.end_to_end.harness import Zygote, losses, make_run

CASES = {
    "EP2": Layout(ep=2, dp=2),
    "TP2": Layout(tp=2),
    "PP2": Layout(pp=2),
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.mark.parametrize("layout", CASES.values(), ids=CASES)
def test_the_whole_way(zygote: Zygote, tmp_path: Path, layout: Layout) -> None:
    from transformers import AutoModelForCausalLM

    run = make_run(tmp_path, "run", {"training.iterations": 4}, layout)
    zygote.run("prepare", run)
    convert(run.model, run.converted, "fp32", tokenizer="data/tokenizer")
    result = zygote.run("train", run, ranks=2)
    # ln 512 = 6.24: the first loss of these weights, and not of others.
    assert result["first_loss"] == pytest.approx(6.24, abs=0.3)
    assert losses(run)[4] < losses(run)[1]
    made = export(run.checkpoints, tmp_path / "hf", run.model, "fp32")
    assert made["tensors"] == 71
    tokens = torch.arange(64)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager") for path in (run.model, tmp_path / "hf")
    )
    with torch.inference_mode():
        assert not torch.equal(before(tokens).logits, after(tokens).logits)
    # Megatron's own reading of the checkpoint, exported by Bridge, is the same model.
    zygote.run("export", run)
    bridges = AutoModelForCausalLM.from_pretrained(run.export, attn_implementation="eager").state_dict()
    assert all(torch.equal(value, bridges[name]) for name, value in after.state_dict().items())
