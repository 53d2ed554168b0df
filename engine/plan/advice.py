"""What to do when a plan does not fit, and when another tool serves better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from engine.findings import Finding, info
from engine.plan import memory
from engine.plan.cluster import Cluster, named
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.search import Candidate, Space, choose, is_possible, search

_FAMILIES = ("H100", "H200", "B300")
"""GPUs that people can rent by the node, by memory."""
_SIZES = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8), (8, 16))
"""GPUs in a node and nodes."""


def way_out(job: Job, layout: Layout, cluster: Cluster) -> Candidate | None:
    """The fastest change of batch, recomputation, gradients or, last, layout that makes the job SAFE."""
    sizes = tuple(size for size in range(job.micro_batch, 0, -1) if job.global_batch % (size * layout.dp) == 0)
    space = Space(micro_batches=sizes or (1,), gradient_precisions=("fp32", "bf16"), precisions=(job.precision,))
    for only in (layout, None):
        found = [one for one in search(job, cluster, space, only) if one.verdict == memory.SAFE]
        if found:
            return found[0] if only else choose(found)
    return None


def describe_change(job: Job, layout: Layout, better: Candidate) -> str:
    """What `better` does otherwise, as things to set."""
    changes = []
    if better.layout != layout:
        changes.append(f"layout {better.layout}")
    if better.job.micro_batch != job.micro_batch:
        changes.append(f"micro batch {better.job.micro_batch}")
    if better.job.recompute != job.recompute:
        changes.append("recompute " + (",".join(sorted(better.job.recompute)) or "none"))
    if better.job.gradient_precision != job.gradient_precision:
        changes.append(f"{better.job.gradient_precision} gradients")
    return ", ".join(changes)


def closest(job: Job, cluster: Cluster, space: Space) -> Candidate | None:
    """The legal layout within `space` that needs the least memory, whether it fits or not."""
    boundless = replace(cluster, memory_gib=9_999.0)
    smallest = replace(space, micro_batches=(min(space.micro_batches),), recomputes=space.recomputes[-1:])
    found = search(job, boundless, smallest)
    return min(found, key=lambda one: one.peak_gib, default=None)


def needed(job: Job, cluster: Cluster) -> str:
    """What would be enough for `job`, in one sentence, for a cluster on which nothing fits."""
    bigger = next((size for size in _more_nodes(cluster) if fits(job, size)), None)
    others = []
    for family in _FAMILIES:
        if family == cluster.family.name:
            continue
        enough = next((one for one in _sizes(family) if fits(job, one)), None)
        if enough:
            others.append(enough.name)
    options = ([f"{bigger.name} ({bigger.nodes} of these nodes)"] if bigger else []) + others
    what = f"{job.model.name} {'full training' if job.goal != 'lora' else 'LoRA'}"
    text = f"{what} needs {' or '.join(options)}" if options else f"{what} fits no cluster that is known here"
    if job.goal != "lora" and fits(replace(job, goal="lora"), cluster):
        text += f"; on {cluster.name}: LoRA"
    return text


def fits(job: Job, cluster: Cluster) -> bool:
    """True when some layout is SAFE with everything recomputed and bf16 gradients."""
    # The batch is no obstacle here: any multiple of the ranks can be chosen.
    relaxed = replace(
        job,
        micro_batch=1,
        global_batch=4 * cluster.world_size,
        recompute=frozenset({"full"}),
        gradient_precision="bf16",
        precision="bf16",
    )
    return is_possible(relaxed, cluster)


def _more_nodes(cluster: Cluster) -> Iterator[Cluster]:
    for factor in (2, 4, 8, 16):
        yield cluster.resized(cluster.nodes * factor)


def _sizes(family: str) -> Iterator[Cluster]:
    for gpus, nodes in _SIZES:
        yield named(family, gpus, nodes)


def other_tools(job: Job, cluster: Cluster) -> tuple[Finding, ...]:
    """Honest advice: where another tool is cheaper, simpler or faster."""
    gpus, name = cluster.world_size, job.model.name
    if name not in ("gpt-oss-20b", "gpt-oss-120b"):
        return ()
    if job.goal == "lora" and gpus == 1:
        return (
            info(
                "plan.other-tool",
                "for LoRA on one GPU, Unsloth or Axolotl is simpler and needs less memory",
                "Unsloth's QLoRA takes about 14 GB for 20b and 65 GB for 120b; Megatron keeps bf16 weights",
            ),
        )
    if job.goal != "lora" and name == "gpt-oss-20b" and gpus <= 8 and cluster.family.name == "H100":
        return (
            info(
                "plan.other-tool",
                "NeMo Automodel publishes 13,058 tokens/s for each of 8 H100 with this model",
                "it shards with FSDP and trains Hugging Face weights without a conversion",
            ),
        )
    return ()
