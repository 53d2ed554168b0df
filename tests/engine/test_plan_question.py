"""What `gptoss plan` makes of its command line: every `--set` counts or is refused."""

from __future__ import annotations

import json

import pytest

from engine import machine_file
from engine.cli import parser
from engine.cli.plan_question import question_of
from engine.errors import EngineError, SettingsError
from engine.models import TINY
from engine.options import Option, text_of
from engine.plan.report import Question
from engine.settings import OPTIONS
from gptoss_tui.__main__ import main


def question(*words: str) -> Question:
    return question_of(parser.build().parse_args(["plan", "--gpu", "H100", *words]), None)


def other(option: Option) -> str:
    """A legal value that is not the default."""
    if option.choices:
        return next(choice for choice in reversed(option.choices) if choice != option.default)
    if option.kind is bool:
        return text_of(not option.default)
    if option.kind is str:
        return "elsewhere"
    return text_of(min(option.default * 2 or 2, option.maximum or 1e9))  # type: ignore[operator]


@pytest.mark.parametrize("key", list(OPTIONS))
def test_every_setting_counts_or_is_refused_with_a_reason(key):
    beside = ["--set", "training.goal=lora"] if key != "training.goal" else []
    beside += ["--set", "layout.mode=manual"] if key.startswith("layout.") and key != "layout.mode" else []
    # The other routes train what Bridge does.
    value = "tutorial" if key == "launch.route" else other(OPTIONS[key])
    try:
        asked = question("--set", f"{key}={value}", *beside)
    except EngineError as refused:
        assert key in refused.message or "config.json" in refused.message or "model.path" in refused.message
        assert refused.hint
    else:
        assert asked != question(*beside), f"{key} is passed over in silence"


def test_settings_reach_the_question():
    asked = question(*"--set training.micro_batch=4 --set training.recompute=full --set machine.nodes=2 "
                     "--set machine.gpus_per_node=4 --set layout.mode=manual --set layout.tp=2 "
                     "--set finetune.lora_rank=8 --set training.iterations=10".split())  # fmt: skip
    assert (asked.micro_batch, asked.recompute, asked.lora_rank) == (4, ("full",), 8)
    assert (asked.cluster.nodes, asked.cluster.gpus_per_node) == (2, 4)
    assert asked.layout is not None and asked.layout.tp == 2
    assert asked.tokens == 10 * 128 * 4096
    assert asked.job.lora_rank == 8


def test_what_a_preset_decided_is_judged_as_it_stands():
    asked = question("120b-pretrain-64xh100")
    assert asked.cluster.world_size == 64
    assert asked.recompute is not None and asked.micro_batch is not None
    assert question("120b-pretrain-64xh100", "--nodes", "4").cluster.nodes == 4
    assert question("rehearsal").model == TINY


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--micro-batch 2 --set training.micro_batch=1", "--micro-batch and --set training.micro_batch say the same"),
        ("--set layout.tp=2", "layout.tp counts only in a manual layout"),
        ("--set machine.device=cpu", "gptoss plan judges GPUs"),
        ("--set data.path=x", "a plan does not depend on data.path"),
        ("--set launch.route=tutorial --model gpt-oss-20b", "a toy of its own"),
    ],
)
def test_what_cannot_count_is_refused(words, message):
    with pytest.raises(SettingsError, match=message) as refused:
        question(*words.split())
    assert refused.value.hint


def test_two_machines_are_one_too_many(capsys):
    assert main(["plan", "--gpu", "H100", "--machine", "m.toml"]) == 2
    assert "name two machines" in capsys.readouterr().err


def test_a_setting_changes_the_answer(capsys):
    assert main("plan --gpu H100 --set training.recompute=full --set training.micro_batch=2 --json".split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recompute"], found["micro_batch"]) == (["full"], 2)


def test_a_described_machine_gives_no_more_than_it_has():
    machine = machine_file.loads('[cluster]\nnodes = 8\n[gpu]\nname = "NVIDIA H100 80GB HBM3"\ncount = 4\n')

    def sizes(*words: str) -> tuple[int, int]:
        cluster = question_of(parser.build().parse_args(["plan", *words]), machine).cluster
        return cluster.nodes, cluster.gpus_per_node

    assert sizes() == (8, 4)
    assert sizes("--set", "machine.nodes=2", "--gpus-per-node", "2") == (2, 2)
    assert sizes("--nodes", "1") == (1, 4)
    for words in (["--gpus-per-node", "8"], ["--set", "machine.gpus_per_node=8"]):
        with pytest.raises(SettingsError, match="8 GPUs per node were asked for, and the machine has 4"):
            sizes(*words)
