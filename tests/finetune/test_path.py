"""From chats to an answer: what is learnt, resumed, exported and refused by the workers."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import settings_file
from engine.checkpoints import training
from engine.data.harmony import Style, render
from engine.data.manifest import Manifest
from engine.plan.layout import Layout
from engine.run import validation
from engine.run.directory import RunDirectory, read_records
from tests.end_to_end.harness import Zygote, configure, copy_run, error_of, losses
from tests.finetune.conftest import CHATS, LORA, SHORT, MakeCase


def toy_chats(run: RunDirectory) -> list[list[dict[str, str]]]:
    lines = (run.path / "toy-chats.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines]


def count_tokens(run: RunDirectory, text: str) -> int:
    """By another way than the preparation's: the whole text with its control tokens, through the saved tokenizer."""
    from tokenizers import Tokenizer

    return len(Tokenizer.from_file(str(run.data / "tokenizer" / "tokenizer.json")).encode(text).ids)


def test_only_answers_count(prepared: RunDirectory) -> None:
    made = Manifest.load(prepared.data)
    chats = toy_chats(prepared)
    assert made.documents == len(chats) == 288
    answers = [f"<|channel|>final<|message|>{chat[1]['content']}<|return|>" for chat in chats]
    import pyarrow.parquet

    sides = {
        side: pyarrow.parquet.read_table(prepared.data / f"{side}.idx.parquet") for side in ("train", "validation")
    }
    masks = [sum(mask) for table in sides.values() for mask in table.column("loss_mask").to_pylist()]
    assert sorted(masks) == sorted(count_tokens(prepared, answer) for answer in answers)
    assert made.trained_tokens == sum(sum(mask) for mask in sides["train"].column("loss_mask").to_pylist())


def test_the_evaluation_counts_answers_only(tuned: RunDirectory) -> None:
    import numpy

    file = next((tuned.path / "evaluation").glob("*.npz"))
    with numpy.load(file) as arrays:
        counted, rows = arrays["mask"].sum(), arrays["mask"].reshape(-1, arrays["mask"].shape[-1])
        labels = arrays["labels"].reshape(rows.shape)
    assert 5 * len(rows) <= counted <= 20 * len(rows)
    ends = labels[numpy.arange(len(rows)), [int(numpy.flatnonzero(row)[-1]) for row in rows]]
    assert len(set(ends.tolist())) == 1  # each answer is learnt up to its <|return|>


def test_everything_counts_when_asked(zygote: Zygote, tuned: RunDirectory, case: MakeCase) -> None:
    run = case({**SHORT, "finetune.learn": "everything"})
    zygote.run("train", run)
    assert losses(run)[1] != pytest.approx(losses(tuned)[1], abs=1e-3)


def test_the_template_says_what_was_trained(tuned: RunDirectory) -> None:
    import jinja2

    template = jinja2.Template((tuned.export / "chat_template.jinja").read_text())
    chat = toy_chats(tuned)[0]
    rendered = "".join(piece.text for piece in render(chat, Style(effort="medium")))
    assert template.render(messages=chat, add_generation_prompt=False) == rendered
    asked = template.render(messages=chat[:1], add_generation_prompt=True)
    assert rendered.startswith(asked) and asked.endswith("<|start|>assistant")


@pytest.mark.parametrize("layout", [Layout(ep=2, dp=2), Layout(tp=2), Layout(pp=2)], ids=str)
def test_adapters_of_any_layout_are_exported(zygote: Zygote, case: MakeCase, layout: Layout) -> None:
    from safetensors.numpy import load_file

    # Tensor parallelism and the router's adapter do not go together: test_checks.py.
    targets = {"finetune.lora_targets": "attention+experts"} if layout.tp > 1 else {}
    run = case({**LORA, **SHORT, **targets}, layout)
    zygote.run("train", run, ranks=2)
    zygote.run("export", run)
    zygote.run("verify", run)
    adapter = load_file(run.export / "adapter" / "adapter_model.safetensors")
    # layers x (q, k, v, o, two parameters of the experts, the router where there is one) x (A, B)
    assert len(adapter) == 4 * (4 + 2 + (layout.tp == 1)) * 2
    up = adapter["base_model.model.model.layers.1.mlp.experts.base_layer.lora_B.weight"].reshape(128, 4, 4)
    assert all(abs(up[..., i] - up[..., j]).max() > 0 for i in range(4) for j in range(i))


def test_lora_leaves_the_rest_as_it_was(adapted: RunDirectory) -> None:
    from safetensors.numpy import load_file

    before = load_file(adapted.model / "model.safetensors")
    after = load_file(adapted.export / "model.safetensors")
    changed = {name.rpartition("layers.0.")[2] for name in before if (before[name] != after[name]).any()}
    changed = {name for name in changed if not name.startswith("model.")}
    assert changed == {
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight",
    }  # fmt: skip


def test_adapters_need_their_fix(zygote: Zygote, case: MakeCase) -> None:
    """Of cpu.py; the other fixes have their cases in tests/end_to_end."""
    started = zygote.start("train", case({**LORA, **SHORT}), without=("adapters_of_local_layers",))
    assert zygote.wait(started) == [1]
    assert "isinstance() arg 2 must be a type" in error_of(started.attempt)["message"]


@pytest.mark.parametrize("goal", ["sft", "lora"])
def test_a_resumed_training_is_the_uninterrupted_one(zygote: Zygote, case: MakeCase, goal: str) -> None:
    changes = {**(LORA if goal == "lora" else CHATS), **SHORT, "training.decay_iterations": 4}
    whole = case(changes, name="whole")
    zygote.run("train", whole)
    halves = case({**changes, "training.iterations": 2}, name="halves")
    zygote.run("train", halves)
    configure(halves, {**CHATS, **changes})
    zygote.run("train", halves)
    assert losses(halves) == losses(whole)
    assert sorted(losses(whole)) == [1, 2, 3, 4]


STOPPING = {
    "training.iterations": 40,
    "training.checkpoint_interval": 2,
    "training.evaluation_interval": 2,
    "training.patience": 2,
    "output.export_checkpoint": "best",
    "output.keep_checkpoints": 1,
    # It learns for a moment and then falls apart.
    "training.learning_rate": 0.3,
    "training.minimum_learning_rate": 0.3,
}


def test_an_early_stop_leaves_the_best_checkpoint(zygote: Zygote, case: MakeCase) -> None:
    whole, halves = (case(STOPPING, Layout(pp=2), name=name) for name in ("whole", "halves"))
    result = zygote.run("train", whole, ranks=2)
    known = validation.losses(whole)
    best, last = result["best_iteration"], result["iteration"]
    assert known[best] == min(known.values()) < known[0]
    assert last == best + 4 < 40
    assert f"at iteration {best} is the best" in result["early_stop"]
    assert training.iterations(whole.checkpoints) == [last, best]
    # What is exported and verified is the best one.
    zygote.run("export", whole)
    assert zygote.run("verify", whole)["megatron_loss"] == known[best]
    assert f"| {known[best]:.4f} |" in (whole.export / "README.md").read_text()
    # A training that was stopped in between knows what it knew.
    configure(
        halves, {**CHATS, **STOPPING, "training.iterations": best + 2, "training.decay_iterations": 40}, Layout(pp=2)
    )
    zygote.run("train", halves, ranks=2)
    configure(halves, {**CHATS, **STOPPING, "training.decay_iterations": 40}, Layout(pp=2))
    resumed = zygote.run("train", halves, ranks=2)
    assert (resumed["iteration"], resumed["early_stop"]) == (last, result["early_stop"])
    assert training.iterations(halves.checkpoints) == [last, best]
    # And again it has nothing to do.
    assert zygote.run("train", halves, ranks=2)["iteration"] == last
    assert max(losses(halves)) == last


def test_adapters_stay_with_their_base(zygote: Zygote, tuned: RunDirectory, case: MakeCase) -> None:
    run = case({**LORA, **SHORT, "training.iterations": 2, "training.decay_iterations": 4})
    zygote.run("train", run)
    # Another base of the same shape: the full fine-tuning's.
    configure(run, {**LORA, **SHORT, "training.decay_iterations": 4, "model.checkpoint": str(tuned.checkpoints)})
    _assert_refused(zygote, "train", run, "trained on other weights")


def test_a_damaged_adapter_is_found(zygote: Zygote, adapted: RunDirectory, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    run = copy_run(adapted, tmp_path, "run")
    file = run.export / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    tensors[name][3, 3] += 1
    save_file(tensors, file)
    _assert_refused(zygote, "verify", run, "v_proj.lora_B.weight has other values")


def test_the_card_says_where_it_came_from(tuned: RunDirectory, adapted: RunDirectory) -> None:
    made = Manifest.load(tuned.data)
    for run in (tuned, adapted):
        card = (run.export / "README.md").read_text()
        assert made.sources[0].content_hash in card and made.tokenizer_hash in card
        assert f"{losses(run)[50]:.4f}" in card
        known = validation.losses(run)
        assert sorted(known) == [0, 50] and known[50] < known[0] - 1
        assert f"| held-out chats, before the training | {known[0]:.4f} |" in card
        assert f"| held-out chats, this model | {known[50]:.4f} |" in card
        assert str(run.path.parent) not in card
    base = json.loads((adapted.path / "adapter_base.json").read_text())["fingerprint"]
    assert f"`{base}`" in (adapted.export / "README.md").read_text()
    assert "PeftModel" not in (tuned.export / "README.md").read_text()


BAD = {
    "text": ('{"text": "no chat"}', "holds text in 'text' and no chats"),
    "alone": (
        '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}',
        "none can be kept for validation",
    ),
    "no answer": ('{"messages": [{"role": "user", "content": "?"}]}', "no answer of the assistant"),
    "role": ('{"messages": [{"role": "wizard", "content": "?"}]}', "the role 'wizard' is unknown"),
    "picture": (
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "!"}]}',
        "gpt-oss reads text only",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_chats_stop_the_run(zygote: Zygote, case: MakeCase, tmp_path: Path, name: str) -> None:
    line, message = BAD[name]
    run = _with_chats(case, tmp_path, [line] if name in ("text", "alone") else [_good(1), line, _good(2)])
    _assert_refused(zygote, "prepare", run, message)


def test_bad_chats_are_counted_when_they_are_skipped(zygote: Zygote, case: MakeCase, tmp_path: Path) -> None:
    bad = [line for name, (line, _) in BAD.items() if name not in ("text", "alone")]
    run = _with_chats(case, tmp_path, [*map(_good, range(20)), *bad], {"data.bad_records": "skip"})
    assert zygote.run("prepare", run)["chats"] == 20
    assert f"{len(bad)} records could not be used" in _warnings(run)


def test_long_chats_lose_their_oldest_exchanges(zygote: Zygote, case: MakeCase, tmp_path: Path) -> None:
    long = [part for i in range(40) for part in json.loads(_good(i))["messages"]]
    lines = [*map(_good, range(20)), json.dumps({"messages": long})]
    run = _with_chats(case, tmp_path, lines, {"finetune.epochs": 3.0})
    result = zygote.run("prepare", run)
    made = Manifest.load(run.data)
    # All that comes after it, and every monitor, goes by the run's settings.
    iterations = math.ceil(3 * made.packing["train"]["rows"] / 4)
    assert settings_file.load(run.settings).training.iterations == result["iterations"] == iterations
    assert f"are {iterations} iterations" in "".join(event["message"] for event in read_records(run.events))
    assert (made.shortened, made.too_long, made.documents) == (1, 0, 21)
    assert made.packing["train"]["longest"] <= 96
    assert "1 chats were longer than 96 tokens" in _warnings(run)


def test_a_tokenizer_without_a_template_gets_one(zygote: Zygote, tuned: RunDirectory, tmp_path: Path) -> None:
    run = copy_run(tuned, tmp_path, "run")
    template = run.export / "chat_template.jinja"
    expected = template.read_text()
    shutil.rmtree(run.export)
    for directory in (run.data / "tokenizer", run.model):
        (directory / "chat_template.jinja").unlink(missing_ok=True)
    zygote.run("export", run)
    assert template.read_text() == expected
    assert "the tokenizer has no chat template" in _warnings(run)


def test_a_rank_above_the_matrix_is_refused_before_training(zygote: Zygote, case: MakeCase) -> None:
    _assert_refused(zygote, "train", case({**LORA, "finetune.lora_rank": 5}), "a matrix of the router is 4")


def test_the_tuned_model_answers(zygote: Zygote, tuned: RunDirectory) -> None:
    wanted = {"prompts": ["What does the owl say?"], "count": 0, "longest": 32, "models": ["base", "tuned"]}
    done = subprocess.run(
        [sys.executable, "-m", "engine.workers.try_answers", str(tuned.path)],
        input=json.dumps(wanted), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    answers = {record["model"]: record["answer"] for record in records if "answer" in record}
    assert answers["tuned"].startswith("The ") and " says: " in answers["tuned"]
    assert "says" not in answers["base"]
    pieces = "".join(record["piece"] for record in records if record.get("model") == "tuned" and "piece" in record)
    assert pieces.strip() == answers["tuned"]


def _good(number: int) -> str:
    question = {"role": "user", "content": f"What is {number} and one?"}
    return json.dumps({"messages": [question, {"role": "assistant", "content": f"It is {number + 1}."}]})


def _with_chats(
    case: MakeCase, tmp_path: Path, lines: list[str], changes: dict[str, Any] | None = None
) -> RunDirectory:
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(lines) + "\n")
    run = case({"data.source": "chat", "data.path": str(file), **(changes or {})})
    shutil.rmtree(run.data)
    return run


def _warnings(run: RunDirectory) -> str:
    return "\n".join(event["message"] for event in read_records(run.events) if event["kind"] == "warning")


def _assert_refused(zygote: Zygote, worker: str, run: RunDirectory, message: str) -> None:
    started = zygote.start(worker, run)
    assert zygote.wait(started) == [1]
    error = error_of(started.attempt)
    assert message in error["message"], error
    assert error["hint"]
