"""Recorded-looking runs, healthy and sick: each generator is named after what it shows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from engine.monitor.metrics import Record

START = 1_700_000_000.0


def healthy(
    iterations: int = 2000,
    *,
    seed: int = 0,
    scatter: float = 0.02,
    seconds: float = 1.0,
    time_scatter: float = 0.02,
    first: float = 11.0,
    last: float = 2.0,
    warmup: int = 50,
    log_every: int = 1,
    save_every: int = 0,
    evaluate_every: int = 0,
    pause_s: float = 45.0,
) -> Iterator[Record]:
    """A power-law loss under log-normal scatter, cosine learning rate, pauses for evaluation and saving."""
    chance = random.Random(seed)
    t = START
    for iteration in range(1, iterations + 1):
        took = seconds * math.exp(chance.gauss(0, time_scatter)) * (30 if iteration == 1 else 1)
        t += took
        rate = min(1.0, iteration / max(1, warmup)) * 0.5 * (1.02 + math.cos(math.pi * iteration / iterations))
        mean = last + (first - last) * (1 + iteration / 30) ** -0.6
        loss = mean * math.exp(chance.gauss(0, scatter) - scatter**2 / 2)
        if iteration % log_every == 0:
            yield {
                "t": t,
                "step": "train",
                "iteration": iteration,
                "loss": loss,
                "grad_norm": 0.4 * math.exp(chance.gauss(0, 0.3)),
                "learning_rate": 3e-4 * rate,
                "iteration_s": took,
                "tokens_per_s": 500_000 / took,
                "skipped": 0,
                "nan_iterations": 0,
                "memory_gib": 60 + 2 * (1 - math.exp(-iteration / 20)),
                "load_balance": 2.1,
                "load_balance_least": 0.3 * math.exp(abs(math.sin(seed + iteration / 700)) - 1),
            }
        if evaluate_every and iteration % evaluate_every == 0:
            yield {"t": t, "step": "train", "kind": "phase", "message": "evaluating"}
            t += pause_s * 2
            yield {"t": t, "step": "train", "iteration": iteration, "validation_loss": mean * 1.01}
        if save_every and iteration % save_every == 0:
            t += pause_s * chance.uniform(0.8, 3)
            yield {"t": t, "step": "train", "kind": "checkpoint", "iteration": iteration, "message": "saved"}


def changed(records: Iterator[Record], start: int, change: Callable[[Record, int], None]) -> Iterator[Record]:
    """`records`, each metric record from iteration `start` on changed in place."""
    for record in records:
        if "loss" in record and record["iteration"] >= start:
            change(record, record["iteration"] - start)
        yield record


def with_nan_loss(at: int) -> Iterator[Record]:
    """Bridge's way: the loss is missing, the counter rises."""

    def spoil(record: Record, since: int) -> None:
        del record["loss"]
        record["nan_iterations"] = since + 1

    return changed(healthy(), at, spoil)


def with_vanished_loss(at: int) -> Iterator[Record]:
    """The loss is missing and no counter tells (epfLLM/Megatron-LLM issue 33)."""
    return changed(healthy(), at, lambda record, since: record.pop("loss"))


def with_skipped_updates(at: int) -> Iterator[Record]:
    """BF16 with infinite gradients."""
    return changed(healthy(), at, lambda record, since: record.update(skipped=since + 1))


def with_spike(at: int, factor: float = 2.5, length: int = 3, **options: float) -> Iterator[Record]:
    """The loss jumps by `factor` and is back after `length` iterations."""

    def raise_it(record: Record, since: int) -> None:
        if since < length:
            record["loss"] *= factor
            record["grad_norm"] *= 20

    return changed(healthy(**options), at, raise_it)  # type: ignore[arg-type]


def with_divergence(at: int, **options: float) -> Iterator[Record]:
    """The loss climbs by 0.5 % an iteration up to three times its value."""
    return changed(
        healthy(**options),  # type: ignore[arg-type]
        at,
        lambda record, since: record.update(loss=record["loss"] * min(3.0, 1.005**since)),
    )


def without_learning(iterations: int = 2000) -> Iterator[Record]:
    """The loss stays at the logarithm of the vocabulary's size while the rate is high."""
    chance = random.Random(7)

    def flatten(record: Record, since: int) -> None:
        record.update(loss=math.log(201088) * math.exp(chance.gauss(0, 0.01)), learning_rate=3e-4)

    return changed(healthy(iterations), 1, flatten)


def with_slower_iterations(at: int, factor: float = 1.6, **options: float) -> Iterator[Record]:
    """Every iteration takes `factor` times as long."""
    return changed(
        healthy(**options),  # type: ignore[arg-type]
        at,
        lambda record, since: record.update(iteration_s=record["iteration_s"] * factor),
    )


def with_memory_leak(at: int, gib_per_iteration: float = 0.01) -> Iterator[Record]:
    """Memory grows with every iteration."""
    return changed(
        healthy(), at, lambda record, since: record.update(memory_gib=record["memory_gib"] + gib_per_iteration * since)
    )


def with_missing_checkpoints(after: int) -> Iterator[Record]:
    """Checkpoints every 100 iterations, none after `after`."""
    for record in healthy(save_every=100):
        if record.get("kind") != "checkpoint" or record["iteration"] <= after:
            yield record


def with_clock_set_back(at: int) -> Iterator[Record]:
    """An hour is lived twice."""
    for record in healthy(600):
        yield {**record, "t": record["t"] - (3600 if record["iteration"] >= at else 0)}


def with_gap(at: int, seconds: float = 7200) -> Iterator[Record]:
    """Nothing for `seconds`, then the run goes on."""
    for record in healthy(600):
        yield {**record, "t": record["t"] + (seconds if record["iteration"] >= at else 0)}


def with_fp16_scale_search() -> Iterator[Record]:
    """FP16: the first updates are skipped until the loss scale fits, later one in a thousand."""
    skipped = 0
    for record in healthy(3000):
        iteration = record["iteration"]
        if iteration <= 16 or iteration % 1000 == 0:
            skipped += 1
            record.pop("loss")
        yield {**record, "skipped": skipped, "loss_scale": 65536.0}


def with_resume(at: int, back_to: int) -> Iterator[Record]:
    """Stopped at `at`, gone on from the checkpoint `back_to` an hour later; counters start anew."""
    records = list(healthy(1000))
    yield from records[:at]
    yield {"t": records[at]["t"] + 3500, "step": "train", "kind": "step-started", "message": "train started"}
    for record in records[back_to:]:
        yield {**record, "t": record["t"] + 3600 + (records[at]["t"] - records[back_to]["t"])}


def with_batch_ramp_up() -> Iterator[Record]:
    """The global batch grows from 64 to 512, iterations take longer in proportion."""
    for record in healthy(2000):
        batch = min(512, 64 * (1 + record["iteration"] // 200))
        yield {**record, "global_batch": batch, "iteration_s": record["iteration_s"] * batch / 64}


def with_starving_expert(at: int) -> Iterator[Record]:
    """The router forgets one expert within some iterations."""

    def starve(record: Record, since: int) -> None:
        record["load_balance_least"] *= math.exp(-since / 40)

    return changed(healthy(), at, starve)


def with_idle_expert() -> Iterator[Record]:
    """The weights that were given use one expert as good as never."""

    def idle(record: Record, since: int) -> None:
        record["load_balance_least"] = 0.07 if since < 4 else 0.0

    return changed(healthy(), 1, idle)


HEALTHY: dict[str, Callable[[int], Iterator[Record]]] = {
    "smooth": lambda seed: healthy(seed=seed),
    "long": lambda seed: healthy(20_000, seed=seed, scatter=0.03),
    "one sample a batch": lambda seed: healthy(6000, seed=seed, scatter=0.35),
    "very noisy": lambda seed: healthy(6000, seed=seed, scatter=0.6),
    "short": lambda seed: healthy(60, seed=seed, warmup=5, scatter=0.05),
    "fine-tuning": lambda seed: healthy(1500, seed=seed, first=1.4, last=0.9, scatter=0.15, warmup=100),
    "busy CPU": lambda seed: healthy(1500, seed=seed, seconds=0.4, time_scatter=0.25, scatter=0.05),
    "evaluation and saving": lambda seed: healthy(1500, seed=seed, evaluate_every=50, save_every=100),
    "long pauses": lambda seed: healthy(600, seed=seed, evaluate_every=100, save_every=200, pause_s=280),
    "logged every ten": lambda seed: healthy(5000, seed=seed, log_every=10),
    "slow iterations": lambda seed: healthy(800, seed=seed, seconds=50, save_every=100, pause_s=600),
    "FP16": lambda seed: with_fp16_scale_search(),
    "resumed": lambda seed: with_resume(500, 400),
    "idle expert from the start": lambda seed: with_idle_expert(),
    "batch ramp-up": lambda seed: with_batch_ramp_up(),
}

SICK: dict[str, tuple[str, Callable[[], Iterator[Record]]]] = {
    "NaN loss": ("loss.nan", lambda: with_nan_loss(700)),
    "vanished loss": ("loss.nan", lambda: with_vanished_loss(700)),
    "skipped updates": ("iterations.skipped", lambda: with_skipped_updates(700)),
    "spike": ("loss.spike", lambda: with_spike(700)),
    "small spike": ("loss.spike", lambda: with_spike(700, factor=1.3)),
    "spike early": ("loss.spike", lambda: with_spike(60)),
    "spike in noise": ("loss.spike", lambda: with_spike(900, factor=4.0, scatter=0.15)),
    "divergence": ("loss.divergence", lambda: with_divergence(800)),
    "divergence in noise": ("loss.divergence", lambda: with_divergence(800, scatter=0.1)),
    "no learning": ("loss.plateau", without_learning),
    "slower": ("throughput.drop", lambda: with_slower_iterations(700)),
    "a little slower": ("throughput.drop", lambda: with_slower_iterations(700, factor=1.35)),
    "memory leak": ("memory.creep", lambda: with_memory_leak(300)),
    "checkpoint missing": ("checkpoint.missing", lambda: with_missing_checkpoints(500)),
    "clock set back": ("clock.skew", lambda: with_clock_set_back(300)),
    "starving expert": ("expert.starving", lambda: with_starving_expert(700)),
    "gap": ("stall", lambda: with_gap(300)),
}
