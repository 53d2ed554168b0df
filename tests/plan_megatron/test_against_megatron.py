"""The planner's arithmetic against Megatron's own models, groups and checks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.plan import memory, rules
from engine.plan.job import Job
from tests.plan_megatron.questions import ACTIVATIONS, PARAMETERS, VERDICTS, Question

pytestmark = pytest.mark.engine

Ask = Callable[[Question], dict[str, Any]]


@pytest.mark.parametrize("question", PARAMETERS, ids=str)
def test_parameters_of_a_rank_are_those_of_the_real_model(ask: Ask, question: Question) -> None:
    found = ask(question)["parameters"]
    predicted = {
        str(stage): memory.dense_parameters(question.model, question.layout, stage)
        + memory.expert_parameters(question.model, question.layout)
        for stage in question.stages
    }
    assert predicted == found


@pytest.mark.parametrize("question", VERDICTS, ids=str)
def test_rules_say_what_megatron_says(ask: Ask, question: Question) -> None:
    refused = ask(question)["refused"]
    job = Job(model=question.model, precision="fp32", **question.training)
    case = rules.Case(job=job, layout=question.layout, world_size=question.world, ranks_per_node=8)
    broken = rules.check(case)
    if {one.rule for one in broken} == {"context heads"}:
        # Transformer Engine's rule; it is not here to say so, and Megatron itself has nothing against it.
        assert not refused
    else:
        assert bool(broken) == bool(refused), (broken, refused)


def test_the_grid_of_verdicts_holds_both_kinds(ask: Ask) -> None:
    refused = sum(bool(ask(question)["refused"]) for question in VERDICTS)
    assert 0.2 < refused / len(VERDICTS) < 0.9


def test_every_source_line_holds_a_refusal() -> None:
    root = Path(importlib.util.find_spec("megatron.core").submodule_search_locations[0]).parent  # type: ignore[union-attr, index]
    for rule in rules.RULES:
        for source in rule.source.split("; "):
            file, _, line = source.partition(":")
            if file.startswith("TransformerEngine"):
                continue
            near = (root / file).read_text(encoding="utf-8").splitlines()[int(line) - 2 : int(line) + 5]
            text = "\n".join(near)
            assert "raise" in text or "assert" in text or "divide(" in text, (rule.name, source, text)


@pytest.mark.parametrize("question", ACTIVATIONS, ids=str)
def test_saved_activations_are_the_predicted_bytes(ask: Ask, question: Question) -> None:
    training, model = question.training, question.model
    recompute = {"full"} if training.get("recompute") == "full" else {"moe"} if question.values else set()
    length, batch = training["sequence_length"], training["micro_batch"]
    job = Job(model=model, precision=training["precision"], sequence_length=length, recompute=frozenset(recompute))
    each = memory.bytes_of(job, is_fused=False)
    tokens = length * batch
    predicted = tokens * (each.dense + each.expert + each.score * model.heads * (length + 1))
    measured = ask(question)["layer_bytes"]
    # Cosines, sines and masks do not grow with the model and are left out.
    small = 0 if "full" in recompute else 16 * model.head_dim * length + length * length + 8 * tokens
    assert predicted <= measured * 1.01
    assert measured - predicted <= small + 0.01 * measured
