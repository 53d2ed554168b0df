"""Try every legal layout with every micro batch, recomputation and number format; rank what fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.models import Model
from engine.plan import memory, rules, throughput
from engine.plan.cluster import Cluster
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.rules import Case, divisors

INDISTINGUISHABLE = 0.95
"""Predictions closer than this are taken as equal: the model's median error is about that."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
RECOMPUTES = (
    frozenset[str](),
    frozenset({"layernorm", "moe_act"}),
    frozenset({"layernorm", "moe"}),
    frozenset({"full"}),
)
"""From the fastest to the smallest."""
SETTABLE_RECOMPUTES = (RECOMPUTES[0], RECOMPUTES[1], RECOMPUTES[3])
"""Those that `training.recompute` can say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layout of one job that fits."""

    job: Job
    layout: Layout
    peak_gib: float
    iteration_s: float
    verdict: str

    @property
    def tokens_per_s(self) -> float:
        """Over all GPUs."""
        return self.job.tokens / self.iteration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be varied beside the layout; a fixed value is a tuple of one."""

    micro_batches: tuple[int, ...] = MICRO_BATCHES
    recomputes: tuple[frozenset[str], ...] = RECOMPUTES
    gradient_precisions: tuple[str, ...] = ("fp32",)
    precisions: tuple[str, ...] = ("bf16",)


def layouts(model: Model, world: int) -> Iterator[Layout]:
    """Every layout of `world` ranks that divides heads, layers and experts."""
    for tp in divisors(model.kv_heads):
        for cp in divisors(model.kv_heads // tp):
            for pp in divisors(model.layers):
                share = tp * cp * pp
                if world % share:
                    continue
                for ep in divisors(model.experts):
                    if world % (ep * pp):
                        continue
                    for vpp in divisors(model.layers // pp) if pp > 1 else (1,):
                        yield Layout(tp=tp, pp=pp, cp=cp, ep=ep, dp=world // share, vpp=vpp)


def case_of(job: Job, layout: Layout, cluster: Cluster) -> Case:
    """The job in `layout` on `cluster`, for the rules."""
    return Case(
        job=job,
        layout=layout,
        world_size=cluster.world_size,
        ranks_per_node=cluster.gpus_per_node,
        capability=cluster.family.capability,
    )


def search(job: Job, cluster: Cluster, space: Space, only: Layout | None = None) -> list[Candidate]:
    """Everything that fits, the fastest first: SAFE ones, or TIGHT ones where nothing is SAFE."""
    safe: list[Candidate] = []
    tight: list[Candidate] = []
    sizes = [
        size
        for size in space.micro_batches
        if size <= job.global_batch and (size == 1 or job.goal not in ("sft", "lora"))
    ]
    groups = [_ladders(replace(job, precision=precision), cluster, space, sizes) for precision in space.precisions]
    for layout in [only] if only else layouts(job.model, cluster.world_size):
        for ladders in groups:
            # Within a group only the batch differs in what a rule looks at.
            if not ladders or not rules.is_legal_layout(case_of(ladders[0].first, layout, cluster)):
                continue
            for ladder in ladders:
                if job.global_batch % (ladder.first.micro_batch * layout.dp):
                    continue  # the rule that refuses most often, without making a case of it
                if rules.is_legal_batch(case_of(ladder.first, layout, cluster)):
                    ladder.climb(layout, safe, tight)
    return sorted(safe or tight, key=lambda one: -one.tokens_per_s)


@lru_cache(256)  # the same question comes with every letter that is typed
def is_possible(job: Job, cluster: Cluster) -> bool:
    """True when `job`, as it is, is SAFE in some layout. Much faster than a search."""
    ladder = _Ladder(job, cluster, Space(recomputes=(job.recompute,)))
    for layout in layouts(job.model, cluster.world_size):
        # Most layouts of a model that is too large are done with here; the rules take longer.
        if not ladder.has_room(layout) or job.global_batch % (job.micro_batch * layout.dp):
            continue
        case = case_of(job, layout, cluster)
        safe: list[Candidate] = []
        if rules.is_legal_layout(case) and rules.is_legal_batch(case):
            ladder.climb(layout, safe, [])
        if safe:
            return True
    return False


def best_per_layout(ranked: list[Candidate], count: int) -> list[Candidate]:
    """The first `count` candidates whose parallel sizes all differ."""
    taken: dict[tuple[int, int, int, int], Candidate] = {}
    for candidate in ranked:
        layout = candidate.layout
        taken.setdefault((layout.tp, layout.pp, layout.cp, layout.ep), candidate)
        if len(taken) == count:
            break
    return list(taken.values())


class _Ladder:
    """One job with its ways to recompute, from the fastest to the smallest."""

    def __init__(self, job: Job, cluster: Cluster, space: Space) -> None:
        self.cluster = cluster
        self.rungs = []
        for recompute in space.recomputes:
            rung = replace(job, recompute=recompute)
            self.rungs.append((rung, memory.bytes_of(rung), throughput.rates_of(rung, cluster)))
        self.first = self.rungs[0][0]

    def has_room(self, layout: Layout) -> bool:
        """False where weights, gradients and optimizer alone are too much."""
        return max(self._states(layout)) <= self.cluster.memory_gib * memory.GIB

    def _states(self, layout: Layout) -> list[float]:
        first, each, _ = self.rungs[0]
        return [sum(memory.state_bytes(first, layout, stage, each)) for stage in memory.end_stages(layout)]

    def climb(self, layout: Layout, safe: list[Candidate], tight: list[Candidate]) -> None:
        """Add the fastest rung that is SAFE in `layout`, or the fastest that is TIGHT."""
        capacity = self.cluster.memory_gib
        spare: Candidate | None = None
        states = self._states(layout)
        if max(states) > capacity * memory.GIB:
            return
        for job, each, rates in self.rungs:
            peak = memory.peak_gib(job, layout, each, states)
            verdict = memory.verdict(peak, capacity)
            if verdict == memory.OUT_OF_MEMORY or (verdict == memory.TIGHT and spare):
                continue
            seconds = sum(throughput.iteration_seconds(job, layout, self.cluster, rates))
            candidate = Candidate(job=job, layout=layout, peak_gib=peak, iteration_s=seconds, verdict=verdict)
            if verdict == memory.SAFE:
                safe.append(candidate)
                return
            spare = candidate
        if spare:
            tight.append(spare)


def choose(ranked: list[Candidate]) -> Candidate:
    """The simplest candidate among those as fast as the first, within what the model knows."""
    near = [one for one in ranked if one.tokens_per_s >= INDISTINGUISHABLE * ranked[0].tokens_per_s]
    return min(near, key=_simplicity)


def _ladders(job: Job, cluster: Cluster, space: Space, sizes: list[int]) -> list[_Ladder]:
    """A ladder for each micro batch and gradient precision."""
    return [
        _Ladder(replace(job, gradient_precision=gradient, micro_batch=size), cluster, space)
        for gradient in space.gradient_precisions
        for size in sizes
    ]


def _simplicity(candidate: Candidate) -> tuple[int, int, float]:
    layout, job = candidate.layout, candidate.job
    splits = (layout.tp > 1) + (layout.cp > 1) + (layout.pp > 1) + (layout.vpp > 1)
    recomputed = RECOMPUTES.index(job.recompute) if job.recompute in RECOMPUTES else 1
    return splits + recomputed, layout.tp * layout.cp * layout.pp * layout.vpp, -candidate.tokens_per_s
