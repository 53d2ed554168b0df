"""Judging and choosing layouts: the object of `gptoss plan --json`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import PlanError
from engine.models import GPT_OSS_20B, GPT_OSS_120B, TINY
from engine.plan import memory, rules, search
from engine.plan.cluster import named
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.report import judge, parse_layout, parse_recompute


def published(**changes: Any) -> dict[str, Any]:
    """The tuned 120b run on 64 H100, as a person would type it."""
    question: dict[str, Any] = {
        "gpu": "H100",
        "gpus_per_node": 8,
        "nodes": 8,
        "goal": "pretrain",
        "sequence_length": 4096,
        "micro_batch": 1,
        "global_batch": 1280,
        "precision": "bf16",
        "layout": "tp=1,pp=4,ep=8,cp=1",
        "recompute": ("layernorm", "moe_act"),
        "gradient_precision": "bf16",
    }
    return judge(GPT_OSS_120B, **{**question, **changes})


def test_a_given_layout_is_judged() -> None:
    found = published()
    assert found["verdict"] == "SAFE"
    assert found["layout"] == {"tp": 1, "pp": 4, "cp": 1, "ep": 8, "dp": 16, "vpp": 1}
    assert found["micro_batch"] == 1
    assert len(found["memory"]["stages"]) == 4
    assert found["memory"]["peak_gib"] == max(s["total_gib"] for s in found["memory"]["stages"])
    assert found["memory"]["peak_gb"] / found["memory"]["peak_gib"] == pytest.approx(1.0737, rel=1e-3)
    assert found["throughput"]["tokens_per_s_per_gpu"] == pytest.approx(5860, rel=0.15)
    assert found["throughput"]["extrapolated"] is False
    assert json.loads(json.dumps(found)) == found


def test_a_layout_that_breaks_rules_is_invalid_with_the_fix() -> None:
    found = published(layout="tp=1,pp=8,ep=8")
    assert found["verdict"] == "INVALID"
    assert found["memory"] is None
    assert found["throughput"] is None
    assert found["findings"][0]["severity"] == "error"
    assert "PP=8 does not divide 36 layers" in found["findings"][0]["what"]
    assert not found["findings"][0]["ignorable"]


def test_a_layout_that_does_not_fit_names_the_term_and_the_cheapest_way_out() -> None:
    found = published(nodes=4, recompute=(), gradient_precision="fp32", micro_batch=2)
    assert found["verdict"] == "OUT OF MEMORY"
    finding = found["findings"][0]
    assert found["memory"]["largest_term"].replace("_", " ") in finding["what"]
    assert finding["fix"].startswith("use ")
    assert finding["fix"] == found["memory"]["way_out"]


def test_the_way_out_is_one() -> None:
    found = judge(GPT_OSS_20B, gpu="H100", micro_batch=4, layout="ep=8", global_batch=128)
    assert found["verdict"] == "OUT OF MEMORY"
    assert "micro batch" in found["memory"]["way_out"] or "recompute" in found["memory"]["way_out"]


@pytest.mark.parametrize(
    ("gpu", "nodes", "goal", "needed"),
    [
        ("A100-40GB", 1, "sft", ("8xH100", "4xH200", "on 8xA100-40GB: LoRA")),
        ("H100", 1, "pretrain", ("8xH100",)),
    ],
)
def test_when_nothing_fits_it_says_what_would(gpu: str, nodes: int, goal: str, needed: tuple[str, ...]) -> None:
    gpus = 8 if gpu != "H100" else 4
    found = judge(GPT_OSS_20B, gpu=gpu, gpus_per_node=gpus, nodes=nodes, goal=goal, global_batch=128)
    assert found["verdict"] == "OUT OF MEMORY"
    assert all(part in found["findings"][0]["fix"] for part in needed), found["findings"][0]


def test_the_published_layout_is_chosen_for_the_published_machine() -> None:
    found = judge(GPT_OSS_120B, gpu="H100", nodes=8, global_batch=1280)
    chosen = {name: found["layout"][name] for name in ("tp", "pp", "cp", "ep")}
    assert chosen == {"tp": 1, "pp": 4, "cp": 1, "ep": 8}
    assert found["verdict"] == "SAFE"
    others = [one for one in found["alternatives"] if one["layout"] != found["layout"]]
    assert 1 <= len(others) <= 4
    assert len({json.dumps(one["layout"]) for one in others}) == len(others)
    assert all(one["why"] for one in found["alternatives"])
    assert len(found["reasons"]) >= 6


def test_other_number_formats_are_offered_only_where_they_were_left_open() -> None:
    left_open = judge(GPT_OSS_120B, gpu="GB300", gpus_per_node=4, nodes=16, global_batch=1280)
    assert left_open["precision"] == "bf16"
    offered = {(one["precision"], one["gradient_precision"]) for one in left_open["alternatives"]}
    assert {("mxfp8", "fp32"), ("bf16", "bf16")} <= offered
    said = judge(
        GPT_OSS_120B, gpu="GB300", gpus_per_node=4, nodes=16, global_batch=1280, precision="bf16",
        gradient_precision="fp32",
    )  # fmt: skip
    assert {(one["precision"], one["gradient_precision"]) for one in said["alternatives"]} == {("bf16", "fp32")}


def test_bf16_gradients_are_taken_when_only_they_are_safe_and_nobody_said_otherwise() -> None:
    found = judge(GPT_OSS_120B, gpu="B300", nodes=1, global_batch=128)
    assert (found["verdict"], found["gradient_precision"]) == ("SAFE", "bf16")
    assert any("bf16" in reason for reason in found["reasons"])
    said = judge(GPT_OSS_120B, gpu="B300", nodes=1, global_batch=128, gradient_precision="fp32")
    assert said["verdict"] == "TIGHT"
    assert "bf16 gradients" in said["findings"][0]["fix"]


def test_experts_stay_inside_the_node_where_they_can() -> None:
    for gpu, nodes in (("H100", 8), ("H200", 4), ("B200", 8)):
        assert judge(GPT_OSS_120B, gpu=gpu, nodes=nodes, global_batch=1280)["layout"]["ep"] <= 8


def test_leaving_the_nvlink_domain_is_said() -> None:
    keys = {finding["key"] for finding in published(layout="tp=2,pp=4,ep=16")["findings"]}
    assert "plan.ep-outside-nvlink" in keys
    rack = judge(GPT_OSS_120B, gpu="GB300", gpus_per_node=4, nodes=16, global_batch=1280, layout="ep=64")
    assert "plan.ep-outside-nvlink" not in {finding["key"] for finding in rack["findings"]}


def test_extrapolation_is_said_with_its_reasons() -> None:
    found = judge(GPT_OSS_20B, gpu="H200", gpus_per_node=4, global_batch=128, sequence_length=16_384)
    assert found["throughput"]["extrapolated"] is True
    assert any("H200" in reason for reason in found["throughput"]["extrapolated_because"])
    assert any("16,384" in reason for reason in found["throughput"]["extrapolated_because"])


def test_another_tool_is_named_where_it_serves_better() -> None:
    found = judge(GPT_OSS_20B, gpu="H100", gpus_per_node=1, goal="lora", sequence_length=2048)
    assert any("Unsloth" in finding["what"] for finding in found["findings"])
    assert found["verdict"] == "SAFE"


def test_hours_and_cost_follow_from_the_speed() -> None:
    found = published(tokens=1e9, price=2.5)
    budget, speed = found["budget"], found["throughput"]
    assert budget["hours"] == pytest.approx(1e9 / speed["tokens_per_s"] / 3600)
    assert budget["cost"] == pytest.approx(budget["hours"] * 64 * 2.5)
    assert published()["budget"] is None


@pytest.mark.parametrize("text", ["tp", "tp=", "tp=x", "tp=0", "zz=2", "tp=-1", "tp=1;pp=2", "tp=99999999", "tp=²"])
def test_a_layout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="layout"):
        parse_layout(text)


def test_layouts_and_recomputation_are_read_in_any_order() -> None:
    assert parse_layout("EP=8, pp=4") == Layout(pp=4, ep=8)
    assert parse_recompute("layernorm, moe_act") == ("layernorm", "moe_act")
    assert parse_recompute("none") == ()
    with pytest.raises(PlanError, match="attention"):
        parse_recompute("attention")


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "H1000"},
        {"gpus_per_node": 0},
        {"nodes": -1},
        {"goal": "distil"},
        {"precision": "int4"},
        {"gradient_precision": "fp8"},
        {"recompute": ("everything",)},
        {"micro_batch": -1},
        {"sequence_length": 0},
        {"global_batch": 0},
    ],
)
def test_nonsense_is_refused_with_a_hint(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError) as caught:
        published(**changes)
    assert caught.value.hint


@settings(max_examples=25, deadline=None)
@given(
    gpus=st.integers(1, 9),
    nodes=st.sampled_from([1, 2, 3, 6]),
    gpu=st.sampled_from(["H100", "B300", "L40S"]),
    goal=st.sampled_from(["pretrain", "continue", "sft", "lora"]),
    length=st.sampled_from([1000, 4096, 32_768]),
    batch=st.sampled_from([6, 128]),
)
def test_the_planner_never_breaks_a_rule_or_the_memory(
    gpus: int, nodes: int, gpu: str, goal: str, length: int, batch: int
) -> None:
    cluster = named(gpu, gpus, nodes)
    job = Job(model=GPT_OSS_20B, goal=goal, sequence_length=length, global_batch=batch)
    for one in search.search(job, cluster, search.Space()):
        assert rules.check(search.case_of(one.job, one.layout, cluster)) == ()
        assert one.peak_gib <= cluster.memory_gib
    found = judge(
        GPT_OSS_20B,
        gpu=gpu,
        gpus_per_node=gpus,
        nodes=nodes,
        goal=goal,
        sequence_length=length,
        global_batch=batch,
    )
    assert found["verdict"] in (memory.SAFE, memory.TIGHT, memory.OUT_OF_MEMORY, "INVALID")
    if found["verdict"] in (memory.OUT_OF_MEMORY, "INVALID"):
        assert found["findings"][0]["fix"]


def test_micro_batch_one_is_kept_for_packed_sequences() -> None:
    found = judge(GPT_OSS_20B, gpu="H200", goal="sft", sequence_length=2048)
    assert found["micro_batch"] == 1


def test_the_search_finds_the_fastest_of_all_layouts() -> None:
    cluster, job = named("H100", 8, 1), Job(model=TINY, global_batch=64)
    ranked = search.search(job, cluster, search.Space())
    assert ranked == sorted(ranked, key=lambda one: -one.tokens_per_s)
    assert {asdict(one.layout)["tp"] for one in ranked} == {1, 2}
    assert search.choose(ranked).tokens_per_s >= search.INDISTINGUISHABLE * ranked[0].tokens_per_s
