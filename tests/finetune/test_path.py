"""From chats to an answer: what is learnt, resumed, exported and refused by the workers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.data.harmony import Style, render
from engine.data.manifest import Manifest
from engine.plan.layout import Layout
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

    run = case({**LORA, **SHORT}, layout)
    zygote.run("train", run, ranks=2)
    zygote.run("export", run)
    zygote.run("verify", run)
    adapter = load_file(run.export / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 4 * (4 + 2) * 2  # layers x (q, k, v, o, two parameters of the experts) x (A, B)
    up = adapter["base_model.model.model.layers.1.mlp.experts.base_layer.lora_B.weight"].reshape(128, 8, 4)
    assert all(abs(up[..., i] - up[..., j]).max() > 0 for i in range(4) for j in range(i))


def test_lora_leaves_the_rest_as_it_was(adapted: RunDirectory) -> None:
    from safetensors.numpy import load_file

    before = load_file(adapted.model / "model.safetensors")
    after = load_file(adapted.export / "model.safetensors")
    changed = {name.rpartition("layers.0.")[2] for name in before if (before[name] != after[name]).any()}
    changed = {name for name in changed if not name.startswith("model.")}
    assert changed == {
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
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
    _assert_refused(zygote, "verify", run, "adapter is not the trained one: 1 of 48")


def test_the_card_says_where_it_came_from(tuned: RunDirectory, adapted: RunDirectory) -> None:
    made = Manifest.load(tuned.data)
    for run in (tuned, adapted):
        card = (run.export / "README.md").read_text()
        assert made.sources[0].content_hash in card and made.tokenizer_hash in card
        assert f"{losses(run)[50]:.4f}" in card
        assert str(run.path.parent) not in card
    base = json.loads((adapted.path / "adapter_base.json").read_text())["fingerprint"]
    assert f"`{base}`" in (adapted.export / "README.md").read_text()
    assert "PeftModel" not in (tuned.export / "README.md").read_text()


BAD = {
    "text": ('{"text": "no chat"}', "holds text in 'text' and no chats"),
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
    run = _with_chats(case, tmp_path, [_good(1), line, _good(2)] if name != "text" else [line])
    _assert_refused(zygote, "prepare", run, message)


def test_bad_chats_are_counted_when_they_are_skipped(zygote: Zygote, case: MakeCase, tmp_path: Path) -> None:
    bad = [line for line, message in BAD.values() if "no chats" not in message]
    run = _with_chats(case, tmp_path, [*map(_good, range(20)), *bad], {"finetune.skip_bad_chats": True})
    assert zygote.run("prepare", run)["chats"] == 20
    assert f"{len(bad)} chats could not be used" in _warnings(run)


def test_long_chats_lose_their_oldest_exchanges(zygote: Zygote, case: MakeCase, tmp_path: Path) -> None:
    long = [part for i in range(40) for part in json.loads(_good(i))["messages"]]
    run = _with_chats(case, tmp_path, [*map(_good, range(20)), json.dumps({"messages": long})])
    zygote.run("prepare", run)
    made = Manifest.load(run.data)
    assert (made.shortened, made.too_long, made.documents) == (1, 0, 21)
    assert made.packing["train"]["longest"] <= 96
    assert "1 chats were longer than 96 tokens" in _warnings(run)


def test_a_rank_above_the_matrix_is_refused_before_training(zygote: Zygote, case: MakeCase) -> None:
    _assert_refused(zygote, "train", case({**LORA, "finetune.lora_rank": 65}), "smallest side of a matrix is 64")


def test_the_tuned_model_answers(zygote: Zygote, tuned: RunDirectory) -> None:
    wanted = {"prompts": ["What does the owl say?"], "count": 0, "longest": 32, "models": ["base", "tuned"]}
    done = subprocess.run(
        [sys.executable, "-m", "engine.workers.try_answers", str(tuned.path)],
        input=json.dumps(wanted), capture_output=True, text=True, timeout=120,
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
