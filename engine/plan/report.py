"""Judge a layout, or choose one, and say everything about it in one plain object (`gptoss plan --json`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.errors import PlanError
from engine.findings import Finding, by_severity, error, info
from engine.models import Model
from engine.plan import advice, explain, memory, rules, throughput
from engine.plan.cluster import Cluster, named
from engine.plan.job import RECOMPUTE_MODULES, Job
from engine.plan.layout import Layout
from engine.plan.memory import GIB
from engine.plan.search import (
    MICRO_BATCHES,
    RECOMPUTES,
    Candidate,
    Space,
    best_per_layout,
    case_of,
    choose,
    search,
)

INVALID = "INVALID"
"""The verdict on a layout that breaks a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `gptoss plan` was asked. None means: choose it."""

    model: Model
    cluster: Cluster
    goal: str = "pretrain"
    sequence_length: int = 4096
    global_batch: int = 128
    micro_batch: int | None = None
    precision: str | None = None
    gradient_precision: str | None = None
    recompute: tuple[str, ...] | None = None
    lora_rank: int = 32
    """Of the goal `lora`."""
    layout: Layout | None = None
    """Its dp may be 1: it follows from the number of GPUs."""
    tokens: float | None = None
    """Tokens to train on, for hours and cost."""
    price: float | None = None
    """Price of one GPU for one hour, in any currency."""

    @property
    def job(self) -> Job:
        """The job, with the usual value for everything that is to be chosen."""
        return Job(
            model=self.model,
            goal=self.goal,
            sequence_length=self.sequence_length,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch or 1,
            precision=self.precision or "bf16",
            gradient_precision=self.gradient_precision or "fp32",
            recompute=frozenset(self.recompute or ()) - {"none"},
            lora_rank=self.lora_rank,
        )

    @property
    def space(self) -> Space:
        """What the planner may vary."""
        return Space(
            micro_batches=(self.micro_batch,) if self.micro_batch else MICRO_BATCHES,
            recomputes=RECOMPUTES if self.recompute is None else (self.job.recompute,),
            gradient_precisions=(self.gradient_precision or "fp32",),
            precisions=(self.precision or "bf16",),
        )


def judge(
    model: Model,
    *,
    gpu: str,
    gpus_per_node: int = 8,
    nodes: int = 1,
    layout: str | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """The object of `gptoss plan --json` for a cluster that is named; `choices` are fields of `Question`.

    Raises PlanError for unknown words and impossible counts; a layout that breaks a rule is no
    exception but the verdict INVALID with its findings.
    """
    cluster = named(gpu, gpus_per_node, nodes)
    given = parse_layout(layout) if layout else None
    return answer(Question(model=model, cluster=cluster, layout=given, **choices))


def answer(question: Question) -> dict[str, Any]:
    """The object of `gptoss plan --json`. Raises PlanError as `judge` does."""
    if question.layout is not None:
        share = question.layout.tp * question.layout.pp * question.layout.cp
        layout = replace(question.layout, dp=max(1, question.cluster.world_size // share))
        return _describe(question, question.job, layout)
    ranked = _ranked(question)
    if not ranked:
        return _nothing_fits(question)
    chosen = choose(ranked)
    found = _describe(question, chosen.job, chosen.layout)
    found["alternatives"] = alternatives(ranked, chosen) + _other_numerics(question, chosen)
    return found


def _ranked(question: Question) -> list[Candidate]:
    """What fits, the fastest first; with bf16 gradients where that alone is SAFE and fp32 was not asked for."""
    ranked = search(question.job, question.cluster, question.space)
    if question.gradient_precision is not None or (ranked and ranked[0].verdict == memory.SAFE):
        return ranked
    # Half the gradients' memory for a little accuracy, as the tuned recipes do: better than no plan.
    other = replace(question, gradient_precision="bf16")
    smaller = search(other.job, other.cluster, other.space)
    is_better = smaller and (not ranked or smaller[0].verdict == memory.SAFE)
    return smaller if is_better else ranked


def alternatives(ranked: list[Candidate], chosen: Candidate, count: int = 4) -> list[dict[str, Any]]:
    """Up to `count` other layouts, the fastest first, each compared with `chosen` in one sentence."""
    others = [one for one in best_per_layout(ranked, count + 1) if one.layout != chosen.layout]
    return [compare(one, chosen) for one in others[:count]]


def _other_numerics(question: Question, chosen: Candidate) -> list[dict[str, Any]]:
    """The chosen layout in number formats that were left open: faster, and another computation."""
    capability = question.cluster.family.capability
    # MXFP8 falls back to current scaling on consumer Blackwell (12.x).
    fp8 = "mxfp8" if (10, 0) <= capability < (12, 0) else "fp8" if capability >= (8, 9) else None
    changes: list[tuple[str, dict[str, str]]] = []
    if question.gradient_precision is None and chosen.job.gradient_precision != "bf16":
        changes.append(("bf16 gradients", {"gradient_precision": "bf16"}))
    if question.precision is None and fp8:
        changes.append((fp8, {"precision": fp8}))
    found = []
    for name, change in changes:
        other = replace(question, gradient_precision=chosen.job.gradient_precision)
        other = replace(other, **change)  # type: ignore[arg-type]
        ranked = search(other.job, other.cluster, other.space, chosen.layout)
        if ranked and ranked[0].tokens_per_s > chosen.tokens_per_s:
            one = compare(ranked[0], chosen)
            found.append({**one, "why": f"{one['why']}, with {name}"})
    return found


def compare(one: Candidate, chosen: Candidate) -> dict[str, Any]:
    """`one` as an alternative to `chosen`, with a sentence that compares them."""
    percent = 100 * (one.tokens_per_s / chosen.tokens_per_s - 1)
    saved = chosen.peak_gib - one.peak_gib
    speed = "as fast" if abs(percent) < 0.5 else f"{abs(percent):.0f} % {'faster' if percent > 0 else 'slower'}"
    room = f"{abs(saved):.1f} GiB {'less' if saved > 0 else 'more'} memory"
    return {
        "layout": asdict(one.layout),
        "micro_batch": one.job.micro_batch,
        "recompute": sorted(one.job.recompute),
        "gradient_precision": one.job.gradient_precision,
        "precision": one.job.precision,
        "verdict": one.verdict,
        "peak_gib": round(one.peak_gib, 3),
        "iteration_s": one.iteration_s,
        "tokens_per_s_per_gpu": one.tokens_per_s / one.layout.world_size,
        "why": f"{one.layout}, micro batch {one.job.micro_batch}: {speed}, {room}",
    }


def parse_layout(text: str) -> Layout:
    """Read `tp=1,pp=4,ep=8,cp=1` (any order, any of tp pp vpp cp ep). Raises PlanError."""
    sizes: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        name, _, value = part.lower().partition("=")
        if name not in ("tp", "pp", "vpp", "cp", "ep", "dp") or not value.isascii() or not value.isdecimal():
            raise PlanError(f"{part!r} in the layout is not a size", "write for example tp=1,pp=4,ep=8,cp=1")
        if not 1 <= int(value) <= 65_536:
            raise PlanError(f"{part!r} in the layout is not between 1 and 65,536", "give a size of at least 1")
        sizes[name] = int(value)
    return Layout(**sizes)


def parse_recompute(text: str) -> tuple[str, ...]:
    """Read `layernorm,moe_act`, `full` or `none`. Raises PlanError."""
    names = tuple(part.strip() for part in text.split(",") if part.strip() and part.strip() != "none")
    for name in names:
        if name not in RECOMPUTE_MODULES:
            raise PlanError(f"recompute {name!r} is not known", "use none, " + ", ".join(RECOMPUTE_MODULES))
    return names


def _describe(question: Question, job: Job, layout: Layout) -> dict[str, Any]:
    """Everything about `job` in `layout`."""
    cluster = question.cluster
    violations = rules.check(case_of(job, layout, cluster))
    if violations:
        return _object(question, job, layout, INVALID, explain.of_violations(violations))
    stages = memory.estimate(job, layout)
    fullest = max(stages, key=lambda stage: stage.total_gib)
    speed = throughput.estimate(job, layout, cluster)
    verdict = memory.verdict(fullest.total_gib, cluster.memory_gib)
    largest = max(fullest.terms, key=lambda term: term[1])
    fix = "" if verdict == memory.SAFE else fix_for(job, layout, cluster)
    beyond = explain.extrapolations(job, layout, cluster)
    findings = [
        *explain.of_memory(fullest.total_gib, *largest, cluster.memory_gib, fix),
        *explain.of_layout(job, layout, cluster, fullest),
        *([info("plan.extrapolated", "the speed is extrapolated: " + "; ".join(beyond))] if beyond else []),
        *advice.other_tools(job, cluster),
    ]
    found = _object(question, job, layout, verdict, findings)
    found["memory"] = {
        "stages": [stage.to_json() for stage in stages],
        "peak_gib": fullest.total_gib,
        "peak_gb": fullest.total_gib * GIB / 1e9,
        "capacity_gib": cluster.memory_gib,
        "fullest_stage": fullest.stage,
        "largest_term": largest[0],
        "way_out": fix,
    }
    found["throughput"] = {
        **asdict(speed),
        "tokens_per_s": speed.tokens_per_s_per_gpu * cluster.world_size,
        "extrapolated": bool(beyond),
        "extrapolated_because": list(beyond),
    }
    found["reasons"] = list(explain.reasons(job, layout, cluster, fullest, speed))
    found["budget"] = _budget(question, speed.tokens_per_s_per_gpu)
    return found


def fix_for(job: Job, layout: Layout, cluster: Cluster) -> str:
    """The cheapest way out of a plan that is TIGHT or does not fit, in words."""
    better = advice.way_out(job, layout, cluster)
    if better is None:
        return advice.needed(job, cluster)
    now = throughput.estimate(job, layout, cluster).iteration_s
    percent = 100 * (better.iteration_s / now - 1)
    cost = f"{percent:.0f} % slower" if percent >= 0.5 else "no slower"
    return f"use {advice.describe_change(job, layout, better)}: {better.peak_gib:.1f} GiB, {cost}"


def _nothing_fits(question: Question) -> dict[str, Any]:
    """The answer when no layout fits: the one that comes closest, and what would be needed."""
    job, cluster = question.job, question.cluster
    near = advice.closest(job, cluster, question.space)
    if near is None:
        plain = Layout(dp=cluster.world_size)
        violations = rules.check(case_of(job, plain, cluster))
        findings = explain.of_violations(violations) or (
            error(
                "plan.no-layout",
                f"no layout of {cluster.world_size} GPUs keeps every rule",
                fix="change the number of GPUs",
            ),
        )
        return _object(question, job, plain, INVALID, findings)
    return _describe(question, near.job, near.layout)


def _object(question: Question, job: Job, layout: Layout, verdict: str, findings: Iterable[Finding]) -> dict[str, Any]:
    cluster = question.cluster
    return {
        "verdict": verdict,
        "model": job.model.name,
        "goal": job.goal,
        "gpu": cluster.family.name,
        "gpus_per_node": cluster.gpus_per_node,
        "nodes": cluster.nodes,
        "world_size": cluster.world_size,
        "layout": asdict(layout),
        "micro_batch": job.micro_batch,
        "global_batch": job.global_batch,
        "sequence_length": job.sequence_length,
        "precision": job.precision,
        "gradient_precision": job.gradient_precision,
        "recompute": sorted(job.recompute),
        "memory": None,
        "throughput": None,
        "findings": [finding.to_json() for finding in by_severity(findings)],
        "reasons": [],
        "alternatives": [],
        "budget": None,
    }


def _budget(question: Question, speed: float) -> dict[str, float | None] | None:
    if question.tokens is None:
        return None
    hours = question.tokens / (speed * question.cluster.world_size) / 3600
    gpu_hours = hours * question.cluster.world_size
    cost = None if question.price is None else gpu_hours * question.price
    return {"tokens": question.tokens, "hours": hours, "gpu_hours": gpu_hours, "cost": cost}
