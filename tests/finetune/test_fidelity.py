"""Megatron's fine-tuning is the plain one: the same losses, and an adapter that PEFT reads as it was trained."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.run import validation
from engine.run.directory import RunDirectory
from tests.end_to_end.harness import Zygote, configure, copy_run, losses
from tests.finetune.conftest import CHATS, LORA

TOLERANCE = 1e-4
"""In nats; 2e-6 was measured."""

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="PEFT is not installed")


class Plain:
    """plain_loop.py at work beside Megatron's training: a machine for these tests has two cores."""

    def __init__(self, directory: Path, question: dict[str, Any]) -> None:
        file = directory / "question.json"
        file.write_text(json.dumps({"asked": question}))
        self._output = (directory / "answer.json").open("w+")
        self._errors = (directory / "errors.txt").open("w+")
        script = Path(__file__).with_name("plain_loop.py")
        command = [sys.executable, str(script), str(file)]
        self._process = subprocess.Popen(command, stdout=self._output, stderr=self._errors)

    def answer(self) -> Any:
        code = self._process.wait(timeout=300)
        self._output.seek(0)
        self._errors.seek(0)
        assert code == 0, self._errors.read()[-3000:]
        return json.load(self._output)["asked"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._errors.close()


type Ask = Callable[[dict[str, Any]], Plain]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Starts a plain loop."""
    asked: list[Plain] = []

    def begin(question: dict[str, Any]) -> Plain:
        asked.append(Plain(tmp_path_factory.mktemp("plain"), question))
        return asked[-1]

    yield begin
    for plain in asked:
        plain.close()


@pytest.fixture(scope="module")
def common(prepared: RunDirectory) -> dict[str, Any]:
    return {
        "model": str(prepared.model),
        "rows": str(prepared.data / "train.idx.parquet"),
        "batch": CHATS["training.global_batch"],
        "rate": CHATS["training.minimum_learning_rate"],
        "beta2": CHATS["training.adam_beta2"],
        "seed": 1234,
        "iterations": CHATS["training.iterations"],
    }


@pytest.fixture(scope="module")
def plain_sft(ask: Ask, common: dict[str, Any]) -> Plain:
    return ask(common)


@pytest.fixture(scope="module")
def plain_lora(
    ask: Ask, common: dict[str, Any], zygote: Zygote, prepared: RunDirectory, tmp_path_factory: Any
) -> Plain:
    """PEFT, beginning with Megatron's adapters: after one iteration the down matrices are still as they began."""
    run = copy_run(prepared, tmp_path_factory.mktemp("start"), "start")
    configure(run, {**LORA, "training.iterations": 1, "training.checkpoint_interval": 1})
    zygote.run("train", run)
    zygote.run("export", run)
    return ask({**common, "adapter": str(run.export / "adapter")})


def test_sft_has_the_losses_of_a_plain_loop(plain_sft: Plain, tuned: RunDirectory) -> None:
    found = losses(tuned)
    assert sorted(found) == list(range(1, 51))
    assert [found[i] for i in sorted(found)] == pytest.approx(plain_sft.answer(), abs=TOLERANCE)
    assert found[50] < found[1] - 4


@needs_peft
def test_lora_has_the_losses_of_peft(plain_lora: Plain, adapted: RunDirectory) -> None:
    found = losses(adapted)
    assert [found[i] for i in sorted(found)] == pytest.approx(plain_lora.answer(), abs=TOLERANCE)
    assert found[50] < found[1] - 1


@needs_peft
def test_peft_reads_the_exported_adapter(
    zygote: Zygote, ask: Ask, common: dict[str, Any], adapted: RunDirectory
) -> None:
    """Base and adapter in PEFT = the merged export = the checkpoint in Megatron."""
    question = {"model": common["model"], "rows": common["rows"], "merged": str(adapted.export)}
    asked = ask({**question, "adapter": str(adapted.export / "adapter")})
    verified = zygote.run("verify", adapted)
    # What was measured before the first iteration is the loss of the base, by transformers alone.
    assert verified["initial_loss"] == pytest.approx(validation.losses(adapted)[0], abs=1e-5)
    compared = asked.answer()
    assert compared["adapter"] < 1e-5 * compared["largest"]
    assert compared["base"] > 0.5 * compared["largest"]
    assert verified["logits_max_difference"] < 1e-5 * compared["largest"]
    assert verified["loss_difference"] < 1e-5
