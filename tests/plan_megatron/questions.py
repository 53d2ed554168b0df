"""What the tests of this folder ask Megatron, as plain data: one process answers everything."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engine.models import GPT_OSS_20B, GPT_OSS_120B, TINY, Model
from engine.plan.layout import Layout

SIX = replace(TINY, name="six", layers=6, experts=6, heads=12, kv_heads=6, vocab=510)
"""Divisible by other numbers than the tiny model."""
WIDE = replace(TINY, name="wide", hidden=192, ffn=64, experts=8, top_k=4)
LONG_HEADS = replace(TINY, name="long-heads", ffn=96, heads=16, kv_heads=4, head_dim=32)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question to facts.py."""

    ask: str
    model: Model
    layout: Layout = field(default_factory=Layout)
    world: int = 1
    stages: tuple[int, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        extra = "-".join(str(value) for value in self.training.values())
        return f"{self.model.name} {self.layout} on {self.world} {extra}{list(self.values.values()) or ''}"

    def to_json(self) -> dict[str, Any]:
        model = self.model
        sizes = {
            "num_hidden_layers": model.layers,
            "hidden_size": model.hidden,
            "intermediate_size": model.ffn,
            "num_local_experts": model.experts,
            "num_experts_per_tok": model.top_k,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "vocab_size": model.vocab,
            "sliding_window": model.window,
        }
        return {**asdict(self), "sizes": sizes}


def _parameters() -> Iterator[Question]:
    grid = [(tp, pp, ep) for tp in (1, 2, 4) for pp in (1, 2, 4) for ep in (1, 2, 4)]
    for tp, pp, ep in grid:
        yield _parameter(TINY, Layout(tp=tp, pp=pp, ep=ep, dp=4))
    yield _parameter(TINY, Layout(tp=2, pp=2, ep=2, dp=2, vpp=2))
    yield _parameter(GPT_OSS_20B, Layout(tp=2, pp=4, ep=4, dp=2))
    yield _parameter(GPT_OSS_20B, Layout(pp=8, ep=8, dp=8))
    yield _parameter(GPT_OSS_120B, Layout(pp=4, ep=8, dp=8))
    yield _parameter(GPT_OSS_120B, Layout(tp=2, pp=4, ep=16, dp=8))
    yield _parameter(GPT_OSS_120B, Layout(tp=8, pp=12, ep=8))


def _parameter(model: Model, layout: Layout) -> Question:
    stages = tuple(sorted({0, layout.pp - 1}))
    return Question(ask="parameters", model=model, layout=layout, world=layout.world_size, stages=stages)


def _verdicts(count: int = 300) -> Iterator[Question]:
    choice = random.Random(20).choice
    for number in range(count):
        model = (TINY, SIX)[number % 2]
        tp, pp, cp = choice((1, 1, 2, 2, 3, 4)), choice((1, 1, 2, 2, 3)), choice((1, 1, 1, 2))
        ep, vpp = choice((1, 1, 2, 2, 3, 4)), choice((1, 1, 2, 3)) if pp > 1 else choice((1, 1, 1, 1, 2))
        share = tp * pp * cp
        world = choice((share, 2 * share, 2 * share, 4 * share, 6, 8, 12))
        layout = Layout(tp=tp, pp=pp, cp=cp, ep=ep, vpp=vpp, dp=max(1, world // share))
        training = {
            "global_batch": choice((8, 12, 24, 24)),
            "micro_batch": choice((1, 1, 2, 3)),
            "sequence_length": choice((48, 48, 96, 96, 50, 66)),
        }
        yield Question(ask="verdict", model=model, layout=layout, world=world, training=training)


def _activations() -> Iterator[Question]:
    for model in (TINY, WIDE, LONG_HEADS):
        for length, batch in ((64, 2), (128, 1)):
            for precision in ("fp32", "bf16"):
                for recompute in ("none", "full", "moe layer"):
                    yield _activation(model, length, batch, precision, recompute)


def _activation(model: Model, length: int, batch: int, precision: str, recompute: str) -> Question:
    training = {"sequence_length": length, "micro_batch": batch, "precision": precision}
    values: dict[str, Any] = {}
    if recompute == "moe layer":
        values = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
    else:
        training["recompute"] = recompute
    return Question(ask="activations", model=model, training=training, values=values)


PARAMETERS = tuple(_parameters())
VERDICTS = tuple(_verdicts())
ACTIVATIONS = tuple(_activations())
