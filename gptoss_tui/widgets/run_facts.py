"""What the monitor tells of a run in numbers, the most wanted first."""

from __future__ import annotations

from engine.plan.plan import Plan
from engine.run.state import State
from engine.settings import Settings
from gptoss_tui import words
from gptoss_tui.beside_plan import peak_tflops, share_of_plan
from gptoss_tui.history import History, number
from gptoss_tui.widgets.facts import Fact


def run_facts(
    state: State,
    history: History,
    settings: Settings | None,
    plan: Plan | None = None,
    checkpoint: tuple[int, int] | None = None,
    now: float = 0.0,
) -> list[Fact]:
    """The facts about a run as it is now; `checkpoint`: iteration and bytes of the newest one."""
    return [
        *_training(history, plan),
        *_troubles(history),
        *_results(state),
        *_amounts(state, history, settings),
        *_checkpoint(state, history, checkpoint, now),
        *_experts(history),
    ]


def _training(history: History, plan: Plan | None) -> list[Fact]:
    facts = []
    for metric, name, unit in (
        ("loss", "loss", ""),
        ("validation_loss", "validation", ""),
        ("grad_norm", "gradient norm", ""),
        ("learning_rate", "learning rate", ""),
    ):
        value = history.last(metric)
        facts.append(Fact(name, "–" if value is None else words.number(value), unit))
    return [*facts, *_speed(history, plan)]


def _speed(history: History, plan: Plan | None) -> list[Fact]:
    speed, pace, memory = history.last("tokens_per_s"), history.iteration_s, history.last("memory_gib")
    compute, peak = history.last("tflops_per_gpu"), peak_tflops(plan)
    if speed is None and compute is not None:
        # Most foreign logs tell no tokens.
        facts = [Fact("compute", words.number(compute), "TFLOP/s")]
    else:
        facts = [Fact("throughput", "–" if speed is None else words.count(speed), "tok/s")]
    # Of late, not of the last iteration alone: one that saved or waited says nothing of the plan.
    last_s = history.last("iteration_s")
    usual = speed * last_s / pace if speed is not None and last_s and pace else speed
    if (share := share_of_plan("tokens_per_s", usual, plan)) is not None:
        facts.append(Fact("of the plan", f"{100 * share:.0f}", "%", style="warning" if share < 0.8 else "strong"))
    if compute is not None and peak:
        facts.append(Fact("MFU", f"{100 * compute / peak:.1f}", "%"))
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
    elif (samples := history.last("consumed_samples")) is not None:
        facts.append(Fact("samples", words.count(samples)))
    return facts


def _checkpoint(state: State, history: History, known: tuple[int, int] | None, now: float) -> list[Fact]:
    facts = [Fact("checkpoint", "–" if state.checkpoint is None else f"{state.checkpoint:,}")]
    written = [event.get("t") for event in history.events if event.get("kind") == "checkpoint"]
    age = words.age(max(0.0, now - t)) if written and (t := number(written[-1])) else ""
    is_measured = known is not None and known[0] == state.checkpoint and known[1] > 0
    if age or is_measured:
        facts.append(Fact(f"  {age or 'its size'}", *(_size(known[1]) if known and is_measured else ("", ""))))
    return facts


def _experts(history: History) -> list[Fact]:
    """How uneven the routers are, in their worst layers."""
    most, least = history.last("load_balance"), history.last("load_balance_least")
    if most is None or least is None:
        return []
    return [Fact("busiest expert", f"{most:.2f}", "x mean"), Fact("idlest expert", f"{least:.2f}", "x mean")]


def _results(state: State) -> list[Fact]:
    """What the last steps found out about the trained model."""
    facts: list[Fact] = []
    export, verify = state.results.get("export", {}), state.results.get("verify", {})
    if isinstance(size := export.get("bytes"), (int, float)):
        facts.append(Fact("export", *_size(size), "good"))
    if isinstance(difference := verify.get("logits_max_difference"), (int, float)):
        facts.append(Fact("logits differ", words.number(difference), style="good"))
    if isinstance(loss := verify.get("export_loss"), (int, float)):
        facts.append(Fact("export's loss", words.number(loss), style="good"))
    return facts


def _size(size: float) -> tuple[str, str]:
    return (f"{size / 1e6:.2f}", "MB") if size < 1e9 else (f"{size / 1e9:.2f}", "GB")
