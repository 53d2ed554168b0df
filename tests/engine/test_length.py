"""The length of a training: five units, one truth."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import length
from engine.data.amount import trained_tokens
from engine.errors import SettingsError
from engine.length import Amount, Pace
from engine.machine import Machine
from engine.plan import finetune
from engine.plan.planner import make_plan
from engine.settings import Settings
from gptoss_tui.__main__ import main

PACE = Pace(global_batch=128, sequence_length=4096, data_tokens=100e6, iteration_s=7.2)


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("500", 500, "iterations"),
        ("2B-tokens", 2e9, "tokens"),
        ("2btokens", 2e9, "tokens"),
        ("1.5e9 tokens", 1.5e9, "tokens"),
        ("500k samples", 500e3, "samples"),
        ("1,000,000 tokens", 1e6, "tokens"),
        ("3-epochs", 3, "epochs"),
        ("10h", 10, "hours"),
        ("90min", 1.5, "hours"),
        ("2 days", 48, "hours"),
    ],
)
def test_people_say_it_in_many_ways(text, number, unit):
    assert length.parse(text) == Amount(number=pytest.approx(number), unit=unit)


WRONG = ["", "x", "-3", "0", "nan", "5m", "10 b", "3T", "1e999 tokens", "1,5 h", "3 parsecs", "2B"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_length_is_refused_with_examples(text):
    with pytest.raises(SettingsError, match="is no length of a training") as caught:
        length.parse(text)
    assert "2B-tokens" in caught.value.hint


@given(st.text(max_size=30))
def test_whatever_is_typed_is_a_length_or_refused_in_words(text):
    try:
        assert length.iterations_of(length.parse(text), PACE) >= 1
    except SettingsError as error:
        assert error.message and error.hint


@given(st.integers(1, 100_000_000), st.sampled_from(length.UNITS))
def test_every_unit_leads_back_to_the_same_iterations(iterations, unit):
    said = length.length_of(iterations, PACE)
    amount = Amount(number=getattr(said, unit), unit=unit)
    assert length.iterations_of(amount, PACE) == iterations


def test_data_is_reached_and_time_is_kept():
    assert length.iterations_of(Amount(number=PACE.tokens * 2 + 1, unit="tokens"), PACE) == 3
    assert length.iterations_of(Amount(number=0.0055, unit="hours"), PACE) == 2  # 19.8 s of 7.2 s each


def test_what_cannot_be_known_is_not_guessed():
    bare = Pace(global_batch=128, sequence_length=4096)
    said = length.length_of(100, bare)
    assert (said.epochs, said.hours) == (None, None)
    for unit, reason in (("epochs", "is not known"), ("hours", "predicts no speed")):
        with pytest.raises(SettingsError, match=reason):
            length.iterations_of(Amount(number=1, unit=unit), bare)


def test_a_length_no_training_can_have_names_the_limits():
    with pytest.raises(SettingsError, match="1 to 100,000,000") as caught:
        length.iterations_of(Amount(number=1e18, unit="tokens"), PACE)
    assert "524,288 tokens and takes 7.20 s" in caught.value.hint


def test_one_line_says_all():
    assert length.describe(length.length_of(500, PACE)) == (
        "500 iterations = 262M tokens = 64,000 samples = 2.62 epochs = 1.0 h"
    )


def test_hours_come_from_the_plan():
    from tests.engine.test_plan_planner import machine

    settings = Settings().with_values({"training.recompute": "moe"})
    estimate = make_plan(settings, machine()).estimate
    pace = length.pace_of(settings, estimate)
    assert pace.iteration_s == estimate["throughput"]["iteration_s"]
    iterations = length.iterations_of(length.parse("10h"), pace)
    assert iterations * pace.iteration_s <= 36_000 < (iterations + 1) * pace.iteration_s
    assert length.pace_of(settings, make_plan(
        Settings().with_values({"model.name": "tiny"}), Machine(cpu_cores=4, ram_gib=16.0)).estimate
    ).iteration_s is None  # fmt: skip


def _pair(prefix, lengths):
    """A .bin/.idx pair in Megatron's format: int32 tokens, one sequence a document."""
    with prefix.with_suffix(".bin").open("wb") as file:
        file.write(b"\0" * 4 * sum(lengths))
    starts = [4 * sum(lengths[:n]) for n in range(len(lengths))]
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, len(lengths), len(lengths) + 1)
    body = struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(lengths)}q", *starts)
    body += struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1))
    prefix.with_suffix(".idx").write_bytes(header + body)


def test_epochs_of_a_prefix_are_counted_from_its_files(tmp_path, capsys):
    _pair(tmp_path / "web", [700] * 100)
    settings = Settings().with_values({"data.source": "prefix", "data.path": str(tmp_path / "web")})
    assert trained_tokens(settings) == pytest.approx(70_000 * 0.95)
    words = ["new", "rehearsal", "--no-input", "--json", "--set", "data.source=prefix"]
    assert main([*words, "--set", f"data.path={tmp_path / 'web'}", "--length", "4-epochs"]) == 0
    # 4 x 66,500 tokens in iterations of 16 x 128.
    said = capsys.readouterr().err
    assert "4-epochs = training.iterations 130\n        130 iterations = 266k tokens" in said


def test_epochs_of_chats_are_left_to_the_step_that_counts_them(capsys):
    words = ["new", "20b-sft-8xh100", "--no-input", "--json"]
    assert main([*words, "--length", "3-epochs"]) == 0
    training = json.loads(capsys.readouterr().out)["changed"]
    assert training["finetune"]["epochs"] == 3 and training["training"]["iterations"] == 1000
    # Another unit must not be overruled by epochs that were set before.
    assert main([*words, "--set", "finetune.epochs=3", "--length", "50"]) == 0
    changed = json.loads(capsys.readouterr().out)["changed"]
    assert changed["training"]["iterations"] == 50 and "epochs" not in changed.get("finetune", {})


def test_epochs_of_invented_data_are_refused(capsys):
    assert main(["new", "20b-pretrain-8xh100", "--no-input", "--length", "4-epochs"]) == 2
    assert "4 epochs: how many tokens the data has is not known" in capsys.readouterr().err


def _chats(path: Path, count: int) -> Settings:
    chat = {"messages": [{"role": "user", "content": "a" * 300}, {"role": "assistant", "content": "b" * 100}]}
    path.write_text(f"{json.dumps(chat)}\n" * count)
    return Settings().with_values(
        {"model.name": "tiny", "training.goal": "sft", "data.source": "chat", "data.path": str(path),
         "data.validation_percent": 50, "training.sequence_length": 256, "training.global_batch": 10}
    )  # fmt: skip


def test_epochs_of_chats_follow_from_their_number(tmp_path):
    settings = _chats(tmp_path / "chats.jsonl", 400)
    alone, packed = trained_tokens(settings, is_packed=False), trained_tokens(settings)
    assert alone == 200 * 256
    # 400 letters are about 100 tokens, and two such chats share a sample.
    assert packed is not None and packed == pytest.approx(200 * 100, rel=0.2)
    pace = length.pace_of(settings, data_tokens=alone)
    amount = length.parse("3 epochs")
    assert length.as_settings(amount, settings, pace) == {"training.iterations": 60, "finetune.epochs": 3}
    # Without the data the prepare step alone knows.
    assert length.as_settings(amount, settings, length.pace_of(settings)) == {"finetune.epochs": 3}


def test_every_epoch_of_packed_chats_fills_its_last_batch(tmp_path):
    settings = _chats(tmp_path / "chats.jsonl", 400)
    # 25 samples in batches of 10: three a epoch on GPUs, as the prepare step counts (engine/plan/finetune.py).
    pace = length.pace_of(settings, data_tokens=25 * 256, is_packed=True)
    chosen = settings.with_values({"finetune.epochs": 4.0})
    assert length.followed(chosen, pace) == finetune.iterations_of(
        chosen.with_values({"training.warmup_iterations": 0}), 25, "gpu"
    )
    assert length.length_of(12, pace).epochs == pytest.approx(4)
    assert length.followed(chosen, length.pace_of(settings, data_tokens=25 * 256)) == 10


def test_iterations_follow_the_epochs_only_where_those_decide(tmp_path):
    settings = _chats(tmp_path / "chats.jsonl", 400)
    pace = length.pace_of(settings, data_tokens=200 * 256)
    assert length.followed(settings, pace) is None
    chosen = settings.with_values({"finetune.epochs": 0.5})
    assert length.followed(chosen, pace) == 10
    assert length.followed(chosen.with_values({"training.goal": "continue"}), pace) is None
    assert length.followed(chosen, length.pace_of(chosen)) is None


def test_epochs_of_the_toy_chats_are_known():
    toys = Settings().with_values({"model.name": "tiny", "training.goal": "sft", "data.source": "sample"})
    alone, packed = trained_tokens(toys, is_packed=False), trained_tokens(toys)
    assert alone and packed and alone > packed > 0
