"""Why a plan is as it is, and what to watch: one sentence each."""

from __future__ import annotations

from engine.findings import Finding, error, info, warning
from engine.plan import memory
from engine.plan.cluster import Cluster
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.memory import StageMemory
from engine.plan.rules import Violation
from engine.plan.throughput import Throughput


def reasons(job: Job, layout: Layout, cluster: Cluster, fullest: StageMemory, speed: Throughput) -> tuple[str, ...]:
    """One sentence for each choice."""
    found = [_experts(job, layout, cluster), _tensor(layout), _pipeline(job, layout, speed)]
    if layout.cp > 1:
        found.append(f"CP{layout.cp}: {layout.cp} GPUs share each sequence of {job.sequence_length:,} tokens.")
    found.append(_batch(job, layout))
    found += [_recompute(job), _gradients(job)]
    name, size = max(fullest.terms, key=lambda term: term[1])
    found.append(
        f"Stage {fullest.stage} is the fullest: {fullest.total_gib:.1f} of {cluster.memory_gib:.1f} GiB, "
        f"the largest part is {name.replace('_', ' ')} with {size:.1f} GiB."
    )
    return tuple(sentence for sentence in found if sentence)


def _experts(job: Job, layout: Layout, cluster: Cluster) -> str:
    experts = job.model.experts
    if layout.ep == 1:
        return f"EP1: every GPU holds all {experts} experts of its layers, so no token has to travel."
    where = "inside one node or NVLink domain" if layout.ep <= cluster.fast_domain else "over several nodes"
    return f"EP{layout.ep}: each GPU holds {experts // layout.ep} of {experts} experts; tokens travel {where}."


def _tensor(layout: Layout) -> str:
    if layout.tp == 1:
        return "TP1: no matrix is split, which saves an exchange in every layer."
    return f"TP{layout.tp}: {layout.tp} GPUs share each attention matrix and the activations, to save memory."


def _pipeline(job: Job, layout: Layout, speed: Throughput) -> str:
    if layout.pp == 1:
        return "PP1: no pipeline, so no GPU waits for another stage."
    idle = speed.shares["pipeline bubble"] / speed.iteration_s
    layers = job.model.layers // layout.pp
    text = f"PP{layout.pp}: {layers} layers on each stage; {idle:.1%} of the time is bubble"
    return text + (f" with {layout.vpp} virtual stages on each GPU." if layout.vpp > 1 else ".")


def _batch(job: Job, layout: Layout) -> str:
    count = job.global_batch // (job.micro_batch * layout.dp)
    return (
        f"Micro batch {job.micro_batch}: {count} of them on each of {layout.dp} data-parallel ranks make "
        f"the global batch of {job.global_batch}."
    )


def _gradients(job: Job) -> str:
    if job.gradient_precision == "fp32" or job.goal == "lora":
        return ""
    return "Gradients are kept and reduced in bf16, half of fp32's memory and a little less exact."


def _recompute(job: Job) -> str:
    if not job.recompute:
        return "Nothing is recomputed: the activations fit."
    if "full" in job.recompute:
        return "Every layer is recomputed, about a third more work, to save activation memory."
    return f"{', '.join(sorted(job.recompute))} are recomputed to save activation memory."


def of_violations(violations: tuple[Violation, ...]) -> tuple[Finding, ...]:
    """Broken rules as findings that nobody can ignore."""
    return tuple(
        error(f"plan.{one.rule.replace(' ', '-')}", one.message, "Megatron refuses to start", one.fix)
        for one in violations
    )


def of_memory(total_gib: float, name: str, size_gib: float, capacity_gib: float, fix: str) -> tuple[Finding, ...]:
    """The memory verdict as a finding: none when SAFE."""
    what = (
        f"the predicted peak is {total_gib:.1f} GiB of {capacity_gib:.1f} GiB; "
        f"the largest term is {name.replace('_', ' ')} with {size_gib:.1f} GiB"
    )
    verdict = memory.verdict(total_gib, capacity_gib)
    if verdict == memory.OUT_OF_MEMORY:
        return (error("plan.memory", what, "the run would end in an out-of-memory error", fix, ignorable=True),)
    if verdict == memory.TIGHT:
        return (warning("plan.memory", what, "fragmentation or uneven routing may end the run", fix),)
    return ()


def of_layout(job: Job, layout: Layout, cluster: Cluster, fullest: StageMemory) -> tuple[Finding, ...]:
    """What a legal layout should be watched for."""
    found = []
    if layout.ep > cluster.fast_domain:
        found.append(
            warning(
                "plan.ep-outside-nvlink",
                f"EP{layout.ep} spreads experts over {layout.ep} GPUs; "
                f"{cluster.fast_domain} reach each other without the network",
                "token exchanges over the network nearly halve the published throughput",
                f"use ep {cluster.fast_domain} or fewer",
            )
        )
    if layout.tp > cluster.nvlink_domain:
        found.append(
            warning(
                "plan.tp-outside-nvlink",
                f"TP{layout.tp} is wider than the NVLink domain of {cluster.nvlink_domain}",
                "every layer waits for a slow exchange",
                f"use tp {cluster.nvlink_domain}",
            )
        )
    if layout.cp > 1:
        found.append(
            warning(
                "plan.context-parallel",
                "context parallelism with attention sinks is slow",
                "the only published row (20b, 32k tokens, H100) reaches 428 tokens/s for each GPU",
                "use a shorter sequence or more recomputation where you can",
            )
        )
    if job.precision == "fp32":
        found.append(
            warning(
                "plan.fp32",
                "fp32 has no fused attention with sinks",
                "attention scores are kept whole: memory grows with the square of the sequence",
                "use bf16",
            )
        )
    return tuple(found) + _imbalance(job, layout, cluster, fullest)


def _imbalance(job: Job, layout: Layout, cluster: Cluster, fullest: StageMemory) -> tuple[Finding, ...]:
    if not job.is_balanced or layout.ep == 1:
        return ()
    extra = (memory.NATURAL_IMBALANCE - 1) * (fullest.expert_activations_gib + fullest.working_gib)
    what = (
        f"balanced routing is assumed; with {memory.NATURAL_IMBALANCE} times the mean on one GPU "
        f"it needs {extra:.1f} GiB more"
    )
    if fullest.total_gib + extra > cluster.memory_gib >= fullest.total_gib:
        return (warning("plan.imbalance", what, "that would not fit", "recompute more, or use a smaller micro batch"),)
    return (info("plan.imbalance", what),)


def extrapolations(job: Job, layout: Layout, cluster: Cluster) -> tuple[str, ...]:
    """Why the predicted speed goes beyond what was published; empty when it does not."""
    family, found = cluster.family, []
    if not family.is_known:
        found.append(f"{family.name} is not in the table; its speed is guessed from its compute capability")
    elif job.precision not in family.published:
        found.append(f"no {job.precision} row was published for {family.name}")
    if job.model.name not in ("gpt-oss-20b", "gpt-oss-120b"):
        found.append(f"no row was published for the model {job.model.name}")
    if not 2048 <= job.sequence_length <= 8192 or layout.cp > 1:
        length = f"{job.sequence_length:,}"
        found.append(f"published rows have 2,048 to 8,192 tokens and no context parallelism; this is {length}")
    if cluster.world_size > 64:
        found.append(f"published rows end at 64 GPUs; these are {cluster.world_size:,}")
    if layout.vpp > 1:
        found.append("no row was published with virtual pipeline stages")
    return tuple(found)
