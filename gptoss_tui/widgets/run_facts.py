"""What the monitor tells of a run in numbers, the most wanted first."""

from __future__ import annotations

from engine.run.state import State
from engine.settings import Settings
from gptoss_tui import words
from gptoss_tui.history import History
from gptoss_tui.widgets.facts import Fact


def run_facts(state: State, history: History, settings: Settings | None) -> list[Fact]:
    """The facts about a run as it is now."""
    return [*_training(history), *_troubles(history), *_amounts(state, history, settings), *_results(state)]


def _training(history: History) -> list[Fact]:
    facts = []
    for metric, name, unit in (
        ("loss", "loss", ""),
        ("validation_loss", "validation", ""),
        ("grad_norm", "gradient norm", ""),
        ("learning_rate", "learning rate", ""),
    ):
        value = history.last(metric)
        facts.append(Fact(name, "–" if value is None else words.number(value), unit))
    speed, pace, memory = history.last("tokens_per_s"), history.iteration_s, history.last("memory_gib")
    facts.append(Fact("throughput", "–" if speed is None else words.count(speed), "tok/s"))
    facts.append(Fact("iteration", *(("–", "") if pace is None else words.pace(pace))))
    if memory is not None:
        facts.append(Fact("memory", f"{memory:.2f}", "GiB"))
    return facts


def _troubles(history: History) -> list[Fact]:
    """A NaN loss disappears from Megatron's records; its counter is the sign."""
    facts = []
    for metric, name in (("nan_iterations", "NaN iterations"), ("skipped", "skipped")):
        if history.last(metric):
            facts.append(Fact(name, f"{history.last(metric):.0f}", style="bad"))
    return facts


def _amounts(state: State, history: History, settings: Settings | None) -> list[Fact]:
    facts = []
    if settings is not None:
        training = settings.training
        tokens = history.iteration * training.global_batch * training.sequence_length
        facts.append(Fact("tokens", words.count(tokens)))
    facts.append(Fact("checkpoint", "–" if state.checkpoint is None else f"{state.checkpoint:,}"))
    return facts


def _results(state: State) -> list[Fact]:
    """What the last steps found out about the trained model."""
    facts: list[Fact] = []
    export, verify = state.results.get("export", {}), state.results.get("verify", {})
    if isinstance(size := export.get("bytes"), (int, float)):
        facts.append(Fact("export", f"{size / 1e6:.2f}" if size < 1e9 else f"{size / 1e9:.2f}",
                          "MB" if size < 1e9 else "GB", "good"))  # fmt: skip
    if isinstance(difference := verify.get("logits_max_difference"), (int, float)):
        facts.append(Fact("logits differ", words.number(difference), style="good"))
    if isinstance(loss := verify.get("export_loss"), (int, float)):
        facts.append(Fact("export's loss", words.number(loss), style="good"))
    return facts
