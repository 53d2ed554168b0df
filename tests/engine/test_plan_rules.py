"""Every rule refuses what it is for, with a sentence that holds the values and a fix that works."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.models import GPT_OSS_20B, GPT_OSS_120B
from engine.plan import rules
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.rules import Case


def case(*, world: int = 8, device: str = "gpu", capability: tuple[int, int] | None = (9, 0), **changes: Any) -> Case:
    sizes = {name: changes.pop(name) for name in ("tp", "pp", "cp", "ep", "vpp") if name in changes}
    layout = Layout(**sizes)
    layout = replace(layout, dp=max(1, world // (layout.tp * layout.pp * layout.cp)))
    job = Job(**{"model": GPT_OSS_20B, "global_batch": 128, **changes})
    return Case(job=job, layout=layout, world_size=world, ranks_per_node=8, device=device, capability=capability)


BROKEN = [
    ("world size", {"tp": 2, "pp": 3}, "6 does not divide 8 ranks", "1, 2, 4, 8"),
    (
        "expert world size",
        {"tp": 2, "pp": 4, "ep": 8},
        "EP8 x PP4 = 32 does not divide 8 ranks",
        "use ep 1 or 2",
    ),
    ("attention heads", {"world": 6, "tp": 3, "ep": 2}, "TP=3 does not divide 64", "use tp 1, 2, 4 or 8"),
    ("key-value heads", {"world": 6, "tp": 3, "ep": 2}, "TP=3 neither divides 8", "use tp 1, 2, 4 or 8"),
    ("vocabulary", {"world": 5, "tp": 5}, "TP=5 does not divide the 201,088 rows", "use tp 1, 2, 4 or 8"),
    (
        "experts",
        {"world": 6, "ep": 3, "global_batch": 12},
        "EP=3 does not divide 32 experts",
        "use ep 1, 2, 4",
    ),
    ("layers", {"pp": 8, "model": GPT_OSS_120B}, "PP=8 does not divide 36 layers", "use pp 2 or 4"),
    ("layers", {"world": 96, "pp": 5, "model": GPT_OSS_120B}, "PP=5", "use pp 2, 3, 4, 6 or 12"),
    ("virtual stages", {"vpp": 2}, "VPP=2 has no pipeline", "pp above 1"),
    ("layers of a virtual stage", {"pp": 8, "vpp": 2}, "does not divide the 3 layers", "use vpp 1 or 3"),
    (
        "interleaving",
        {"pp": 4, "vpp": 2, "global_batch": 4},
        "2 micro batches are fewer than the 4",
        "8 or more",
    ),
    (
        "interleaving",
        {"pp": 4, "vpp": 2, "global_batch": 12},
        "6 micro batches are not a multiple",
        "multiple of 8",
    ),
    ("global batch", {"global_batch": 100}, "micro batch 1 x DP 8 = 8", "96 or 104"),
    ("global batch", {"global_batch": 4}, "global batch 4", "global batch of 8"),
    ("positions", {"sequence_length": 262_144}, "262,144", "131072 or fewer"),
    ("context split", {"cp": 2, "sequence_length": 4098}, "not a multiple of 2 x CP = 4", "4096 tokens"),
    ("sequence split", {"tp": 8, "sequence_length": 4097}, "TP x CP = 8", "4096 tokens"),
    ("context heads", {"tp": 8, "cp": 2, "world": 16}, "TP8 x CP2 = 16 does not divide 8", "use cp=1"),
    ("context on the CPU", {"cp": 2, "device": "cpu"}, "CP=2 needs TransformerEngine", "use cp=1"),
    (
        "recompute on the CPU",
        {"device": "cpu", "recompute": frozenset({"moe_act"})},
        "grouped GEMM",
        "none or full",
    ),
    ("recompute", {"recompute": frozenset({"full", "moe"})}, "already covers", "full alone"),
    ("precision", {"precision": "fp8", "capability": (8, 0)}, "8.9 and these GPUs have 8.0", "use bf16"),
    ("precision", {"precision": "mxfp8"}, "10.0 and these GPUs have 9.0", "fp8 (current scaling)"),
    ("precision", {"precision": "fp8", "device": "cpu"}, "fp8 needs a GPU", "bf16 or fp32"),
    ("compute capability", {"capability": (7, 5)}, "8.0 and these GPUs have 7.5", "Ampere"),
    ("packed sequences", {"goal": "sft", "micro_batch": 2}, "micro batch 2", "micro batch 1"),
]


@pytest.mark.parametrize(("name", "changes", "message", "fix"), BROKEN, ids=[f"{b[0]}-{b[2]}" for b in BROKEN])
def test_a_broken_rule_is_named_with_values_and_fix(name: str, changes: dict[str, Any], message: str, fix: str) -> None:
    found = {one.rule: one for one in rules.check(case(**changes))}
    assert name in found
    assert message in found[name].message
    assert fix in found[name].fix


def test_every_rule_has_a_case_and_a_source() -> None:
    assert {rule.name for rule in rules.RULES} == {broken[0] for broken in BROKEN}
    assert all(rule.source for rule in rules.RULES)


def test_the_rules_that_ask_for_more_are_silent_without_a_whole_dp() -> None:
    found = {one.rule for one in rules.check(case(tp=2, pp=3, global_batch=7))}
    assert "global batch" not in found


@pytest.mark.parametrize(
    "changes",
    [
        {"ep": 8},
        {"tp": 2, "pp": 4, "ep": 2},
        {"world": 64, "pp": 4, "ep": 8, "model": GPT_OSS_120B, "global_batch": 1280},
        {"world": 64, "tp": 2, "pp": 4, "ep": 16, "model": GPT_OSS_120B, "global_batch": 512},
        {"tp": 4, "cp": 2, "ep": 8, "goal": "sft", "global_batch": 32, "sequence_length": 32768},
        {
            "world": 48,
            "tp": 2,
            "pp": 6,
            "cp": 4,
            "ep": 4,
            "model": GPT_OSS_120B,
            "global_batch": 128,
            "sequence_length": 32768,
        },
    ],
)
def test_published_layouts_are_legal(changes: dict[str, Any]) -> None:
    assert rules.check(case(**changes)) == ()


@given(
    tp=st.sampled_from([1, 2, 3, 4, 8]),
    pp=st.integers(1, 12),
    cp=st.sampled_from([1, 2, 4]),
    ep=st.integers(1, 40),
    vpp=st.integers(1, 4),
    world=st.integers(1, 96),
    batch=st.integers(1, 300),
)
def test_a_legal_layout_divides_everything(
    tp: int, pp: int, cp: int, ep: int, vpp: int, world: int, batch: int
) -> None:
    tried = case(world=world, tp=tp, pp=pp, cp=cp, ep=ep, vpp=vpp, global_batch=batch)
    layout = tried.layout
    if rules.is_legal(tried):
        assert layout.world_size == world
        assert GPT_OSS_20B.layers % (layout.pp * layout.vpp) == 0
        assert GPT_OSS_20B.experts % layout.ep == 0
        assert batch == tried.micro_batches * layout.dp
    else:
        assert all(one.message and one.fix for one in rules.check(tried))
