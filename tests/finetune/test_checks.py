"""What is said about a fine-tuning before anything starts, and the verb `try`. Needs no training package."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import presets
from engine.errors import SettingsError
from engine.models import GPT_OSS_20B, TINY
from engine.plan import finetune
from engine.plan.job import from_training
from engine.plan.layout import Layout
from engine.plan.memory import estimate
from engine.plan.plan import Plan
from engine.plan.planner import plan_steps
from engine.plan.report import judge
from engine.preflight import disk_need_gib
from engine.preflight_facts import read_facts
from engine.settings import Settings
from gptoss_tui.__main__ import main

LORA = {"training.goal": "lora", "data.source": "chat"}


def found(changes: dict[str, object], device: str = "gpu", tp: int = 1) -> dict[str, str]:
    settings = Settings().with_values(changes)
    return {one.key: str(one.severity) for one in finetune.check(settings, GPT_OSS_20B, device, Layout(tp=tp))}


@pytest.mark.parametrize("goal", ["sft", "lora"])
def test_chats_are_fine(goal: str) -> None:
    assert found({"training.goal": goal, "data.source": "chat"}) == {}
    assert found({"training.goal": goal, "data.source": "sample"}) == {"finetune.toy": "info"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.goal": "continue", "data.source": "chat"}, "finetune.goal"),
        ({"training.goal": "pretrain", "data.source": "chat"}, "finetune.goal"),
        ({"training.goal": "sft", "data.source": "text"}, "finetune.source"),
        ({"training.goal": "lora", "data.source": "mock"}, "finetune.source"),
        ({**LORA, "launch.route": "tutorial"}, "finetune.route"),
        ({**LORA, "finetune.lora_rank": 1024, "finetune.lora_targets": "attention+experts"}, "finetune.experts"),
        ({**LORA, "finetune.lora_targets": "experts"}, "finetune.experts"),
        ({"training.patience": 3, "launch.route": "tutorial"}, "validation.route"),
        ({"output.export_checkpoint": "best", "launch.route": "tutorial"}, "validation.route"),
        (
            {"output.export_checkpoint": "best", "training.iterations": 500, "training.evaluation_interval": 30},
            "validation.interval",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, object], key: str) -> None:
    assert found(changes) == {key: "error"}


def test_adapters_on_experts_are_allowed_where_they_can_be_exported() -> None:
    assert found({**LORA, "finetune.lora_targets": "attention+experts"}, "cpu") == {}


@pytest.mark.parametrize(
    ("targets", "rank", "is_refused"),
    [("attention", 64, False), ("attention", 65, True), ("attention+router", 4, False), ("attention+router", 5, True)],
)
def test_a_rank_above_the_matrix(targets: str, rank: int, is_refused: bool) -> None:
    settings = Settings().with_values({**LORA, "finetune.lora_rank": rank, "finetune.lora_targets": targets})
    keys = [one.key for one in finetune.check(settings, TINY, "cpu", Layout())]
    assert keys == ["finetune.rank"] * is_refused


def test_the_router_and_tensor_parallelism() -> None:
    router = {**LORA, "finetune.lora_targets": "attention+router"}
    assert found(router) == {}
    assert found(router, tp=2) == {"finetune.router": "error"}


def test_targets_that_match_nothing() -> None:
    with pytest.raises(SettingsError, match="'embedding' is not allowed; it takes one of attention, experts, router"):
        Settings().with_values({"finetune.lora_targets": "embedding"})


def test_the_best_checkpoint_needs_an_evaluation_at_each() -> None:
    best = {"output.export_checkpoint": "best", "training.iterations": 500}
    assert found({**best, "training.checkpoint_interval": 100, "training.evaluation_interval": 25}) == {}
    # The one at the end is evaluated in any case.
    assert found({**best, "training.checkpoint_interval": 500, "training.evaluation_interval": 30}) == {}


@pytest.mark.parametrize(
    ("device", "epochs", "iterations"), [("cpu", 3.0, 48), ("gpu", 3.0, 48), ("cpu", 0.3, 5), ("gpu", 0.3, 5)]
)
def test_epochs_as_iterations(device: str, epochs: float, iterations: int) -> None:
    values = {**LORA, "finetune.epochs": epochs, "training.global_batch": 16, "training.warmup_iterations": 2}
    assert finetune.iterations_of(Settings().with_values(values), 255, device) == iterations
    assert found(values) == {"finetune.epochs": "info"}


def test_epochs_on_a_gpu_end_with_an_incomplete_batch() -> None:
    settings = Settings().with_values({"finetune.epochs": 10, "training.global_batch": 16})
    # 250 rows are 15.6 batches: Bridge fills the 16th of each epoch with rows that do not count.
    assert [finetune.iterations_of(settings, 250, device) for device in ("cpu", "gpu")] == [157, 160]


def test_too_few_epochs_for_the_warm_up() -> None:
    settings = Settings().with_values({"finetune.epochs": 1, "training.warmup_iterations": 50})
    with pytest.raises(SettingsError, match="1 epochs of 255 rows in batches of 128 are 2 iterations") as caught:
        finetune.iterations_of(settings, 255, "gpu")
    assert "warmup_iterations=0" in caught.value.hint


def test_only_adapters_are_counted_as_trained() -> None:
    settings = Settings().with_values({**LORA, "finetune.lora_rank": 32})
    # Rank x (inputs + outputs) of the joined query-key-value matrix and of the output projection, 24 layers.
    assert finetune.trained_parameters(settings, GPT_OSS_20B) == 24 * 32 * ((2880 + 5120) + (4096 + 2880))
    with_experts = settings.with_values({"finetune.lora_targets": "attention+experts"})
    experts = 24 * 32 * 32 * ((2880 + 5760) + (2880 + 2880))
    trained = finetune.trained_parameters(settings, GPT_OSS_20B)
    assert finetune.trained_parameters(with_experts, GPT_OSS_20B) == trained + experts
    with_router = settings.with_values({"finetune.lora_targets": "attention+router"})
    assert finetune.trained_parameters(with_router, GPT_OSS_20B) == trained + 24 * 32 * (2880 + 32)
    full = settings.with_values({"training.goal": "sft"})
    assert finetune.trained_parameters(full, GPT_OSS_20B) == GPT_OSS_20B.parameters


@pytest.mark.parametrize(("gpus", "goal", "is_told"), [(1, "lora", True), (8, "lora", False), (8, "pretrain", True)])
def test_the_plan_says_where_another_tool_is_cheaper(gpus: int, goal: str, is_told: bool) -> None:
    plan = judge(GPT_OSS_20B, gpu="H100", gpus_per_node=gpus, goal=goal, sequence_length=2048)
    told = [one["what"] for one in plan["findings"] if one["key"] == "plan.other-tool"]
    assert bool(told) is is_told
    assert goal != "lora" or not told or "Unsloth" in told[0]


@pytest.mark.parametrize(("chosen", "kept"), [("last", "3 checkpoints"), ("best", "4 checkpoints")])
def test_the_best_checkpoint_takes_room(chosen: str, kept: str) -> None:
    settings = Settings().with_values({"training.iterations": 1000, "output.export_checkpoint": chosen})
    assert kept in disk_need_gib(
        settings, Plan(device="gpu", layout=Layout(), ranks_per_node=8, nodes=1, steps=()), GPT_OSS_20B
    )


def test_the_rank_reaches_the_memory_estimate() -> None:
    training = Settings().with_values(LORA).training
    small, large = (estimate(from_training(training, GPT_OSS_20B, rank), Layout())[0] for rank in (8, 256))
    assert large.optimizer_gib == pytest.approx(32 * small.optimizer_gib)


def test_chats_that_are_not_there_are_missed_before_the_start(tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"

    def missing(path: str) -> tuple[str, ...]:
        settings = Settings().with_values({"data.source": "chat", "data.path": path, "model.name": "tiny"})
        return read_facts(settings, TINY, tmp_path, {}).missing

    assert missing("") == ("data.path = ''",)
    assert missing(str(chats)) == (f"data.path = {str(chats)!r}",)
    chats.write_text("{}")
    assert missing(str(chats)) == missing(str(tmp_path / "*.jsonl")) == ()


@pytest.mark.parametrize("name", ["rehearsal-sft", "rehearsal-lora", "20b-sft-8xh100", "20b-lora-1xh100"])
def test_presets_of_fine_tuning_convert_and_verify(name: str) -> None:
    settings = presets.find(name).settings
    steps = [step.name for step in plan_steps(settings, "cpu", 2)]
    assert steps == ["prepare", "convert", "train", "export", "verify"]
    assert settings.training.goal in name


FAKE = """#!{python}
import json, sys
wanted = json.loads(sys.stdin.read())
if wanted["prompts"] == ["fail"]:
    sys.exit("no room left")
if wanted["prompts"] == ["refuse"]:
    print(json.dumps({{"error": "there is no export", "hint": "wait"}}))
    sys.exit(2)
print(json.dumps({{"question": 0, "text": "What does the owl say?", "expected": "hoot"}}))
for name in wanted["models"]:
    print(json.dumps({{"loading": name, "path": "/somewhere/" + name}}))
    print(json.dumps({{"question": 0, "model": name, "piece": "hoo"}}))
    print(json.dumps({{"question": 0, "model": name, "answer": "hoo\\x1b[31m" if name == "base" else "hoot"}}))
"""


@pytest.fixture
def asked_run(tmp_path: Path) -> Path:
    """A finished run whose Python is a fake that answers like the process with the models."""
    from engine.settings_file import save

    fake = tmp_path / "FakeModels"
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    run = tmp_path / "run"
    run.mkdir()
    (run / "state.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": "train", "iteration": 0, "validation_loss": 6.25}\n')
    save(Settings().with_values({"training.goal": "sft", "launch.python": str(fake)}), run / "settings.toml")
    return run


def test_try_puts_answers_side_by_side(asked_run: Path, capsys: Any) -> None:
    assert main(["try", str(asked_run)]) == 0
    shown = capsys.readouterr()
    assert "> What does the owl say?" in shown.out
    heads, _, answers = shown.out.splitlines()[1:4]
    assert heads.split() == ["base", "model", "tuned", "model", "expected"]
    assert answers.split()[-2:] == ["hoot", "hoot"]
    assert "\x1b" not in shown.out + shown.err
    assert "loading the tuned model" in shown.err
    assert shown.out.splitlines()[-1] == "held-out loss: 6.2500 before the training"


def test_try_as_json(asked_run: Path, capsys: Any) -> None:
    assert main(["try", str(asked_run), "--json", "--only-tuned"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "held_out_loss": {"before": 6.25},
        "answers": [{"question": "What does the owl say?", "expected": "hoot", "tuned": "hoot"}],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", "fail"], 1, "no room left"),
        (["--prompt", "refuse"], 2, "there is no export"),
        (["--count", "0"], 2, "--count '0'"),
        (["--max-tokens", "5000"], 2, "--max-tokens '5000'"),
    ],
)
def test_try_says_what_went_wrong(asked_run: Path, capsys: Any, arguments: list[str], code: int, message: str) -> None:
    assert main(["try", str(asked_run), *arguments]) == code
    assert message in capsys.readouterr().err


def test_try_wants_a_run_that_learnt_answers(asked_run: Path, capsys: Any) -> None:
    text = (asked_run / "settings.toml").read_text()
    (asked_run / "settings.toml").write_text(text.replace('goal = "sft"', 'goal = "continue"'))
    assert main(["try", str(asked_run)]) == 2
    assert "teaches no answers" in capsys.readouterr().err
