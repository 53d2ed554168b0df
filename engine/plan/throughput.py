"""Time of one iteration from work, traffic and links. Formulas and errors: docs/planning.md.

Seconds, bytes and FLOPs inside; constants come from calibration.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.models import Model
from engine.plan.cluster import Cluster
from engine.plan.job import Job
from engine.plan.layout import Layout
from engine.plan.memory import NATURAL_IMBALANCE, dense_parameters, expert_parameters

_MEMORY_PASSES_HIDDEN, _MEMORY_PASSES_HEADS = 24, 8
"""How often a token's hidden state, and its heads, are read or written by one layer, both ways."""
_MEMORY_PASSES_ROUTED_HIDDEN, _MEMORY_PASSES_ROUTED_FFN = 14, 16
"""The same for each copy of a token that goes to an expert: permuting, activation, gradients."""
_CROSS_ENTROPY_BYTES = 30
"""Traffic for one logit: fp32 copy, maximum, exponential, sum, gradient."""
_OPTIMIZER_BYTES = 30
"""Traffic for one parameter of this rank's share: gradient, master weight, moments, weight."""
_EXPERT_GEMM_ROWS = 128
"""Tokens of one expert at which its matrix products reach half of their speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast, and where the time goes."""

    iteration_s: float
    tokens_per_s_per_gpu: float
    tflops_per_gpu: float
    """Model FLOPs: gated experts of the top-k, attention inside its window; recomputation not counted."""
    mfu: float
    """Share of the GPU's dense bf16 peak, 0 to 1."""
    shares: dict[str, float]
    """Seconds of one iteration by cause; they sum to `iteration_s`."""


def flops_per_token(model: Model, sequence_length: int) -> float:
    """Forward and backward FLOPs of one token, with the sliding window and the top-k counted."""
    linear = 6 * (model.layers * (_attention_weights(model) + model.hidden * model.experts))
    experts = 6 * model.layers * model.top_k * 3 * model.hidden * model.ffn
    return linear + experts + 6 * model.embedding_parameters + _attention_flops(model, sequence_length)


def _attention_weights(model: Model) -> int:
    return model.hidden * (2 * model.query_width + 2 * model.kv_width)


def _attention_flops(model: Model, length: int) -> float:
    """FLOPs of the attention cores of all layers for one token, both ways."""
    seen = length / 2  # causal: half of the sequence on average
    windowed = model.windowed_layers
    contexts = windowed * min(model.window, seen) + (model.layers - windowed) * seen
    return 12 * model.query_width * contexts


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """FLOPs and bytes of one token in one layer, both ways, before any split."""

    linear: float
    """FLOPs of QKV, output projection and router."""
    attention: float
    expert: float
    """FLOPs of one visit to an expert."""
    traffic: float
    """Bytes read and written outside the experts."""
    routed_traffic: float
    """Bytes for one visit to an expert."""


def _work_of(job: Job) -> Work:
    model, wide = job.model, job.weight_bytes
    # Frozen weights need no gradient of their own: forward and one backward product of three.
    passes = 4 if job.goal == "lora" else 6
    heads = model.query_width + 2 * model.kv_width
    return Work(
        linear=passes * (_attention_weights(model) + model.hidden * model.experts),
        attention=_attention_flops(model, job.sequence_length) / model.layers,
        expert=passes * 3 * model.hidden * model.ffn,
        traffic=wide * (_MEMORY_PASSES_HIDDEN * model.hidden + _MEMORY_PASSES_HEADS * heads),
        routed_traffic=wide * (_MEMORY_PASSES_ROUTED_HIDDEN * model.hidden + _MEMORY_PASSES_ROUTED_FFN * model.ffn),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds for one unit of each kind of work: what depends on job and cluster alone."""

    linear: float
    """For one FLOP of a dense matrix product."""
    experts: float
    attention: float
    context_attention: float
    memory: float
    """For one byte."""
    link: float
    network: float
    network_all_to_all: float
    host: float
    """In each layer of each micro batch."""
    tensor_host: float
    """The same on top, for each doubling of the tensor-parallel size."""
    imbalance: float
    """Tokens on the busiest expert-parallel rank over the mean."""
    work: Work


def rates_of(job: Job, cluster: Cluster) -> Rates:
    """The speeds that `job` reaches on `cluster`'s GPUs."""
    family, share = cluster.family, cluster.family.architecture
    is_fp8 = job.precision in ("fp8", "mxfp8")
    # fp32 runs as TF32, at half of the bf16 rate.
    peak = 1e12 * (family.bf16_tflops if job.precision != "fp32" else family.bf16_tflops / 2)
    matrix_peak = 1e12 * family.fp8_tflops if is_fp8 else peak
    host_ms = share.host_ms if not is_fp8 or share.host_ms_fp8 is None else share.host_ms_fp8
    if job.goal in ("sft", "lora"):
        host_ms += share.packed_host_ms
    return Rates(
        linear=1 / (matrix_peak * (share.gemm_fp8 if is_fp8 else share.gemm)),
        experts=1 / (matrix_peak * (share.experts_fp8 if is_fp8 else share.experts)),
        attention=1 / (peak * share.attention),
        context_attention=1 / (share.context_attention_tflops * 1e12),
        memory=1 / (family.memory_gb_per_s * 1e9 * share.memory),
        link=1 / (cluster.link_gb_per_s * 1e9 * share.nvlink),
        network=1 / (family.network_gb_per_s * 1e9 * share.network),
        network_all_to_all=1e-9 / min(share.all_to_all_network_gb_per_s, family.network_gb_per_s),
        host=host_ms / 1e3,
        tensor_host=share.tensor_host_ms / 1e3,
        imbalance=1.0 if job.is_balanced else NATURAL_IMBALANCE,
        work=_work_of(job),
    )


LAYER_SHARES = (
    "attention projections",
    "attention",
    "experts",
    "memory traffic",
    "expert exchange",
    "tensor-parallel exchange",
    "waiting for the host",
    "recomputation",
)
SHARES = (
    *LAYER_SHARES,
    "weights",
    "logits",
    "pipeline bubble",
    "pipeline transfers",
    "data-parallel exchange",
    "optimizer",
)
"""Where the time of an iteration goes."""


def estimate(job: Job, layout: Layout, cluster: Cluster) -> Throughput:
    """The predicted speed of `job` in `layout` on `cluster`."""
    seconds = iteration_seconds(job, layout, cluster, rates_of(job, cluster))
    iteration = sum(seconds)
    speed = job.tokens / iteration / cluster.world_size
    tflops = speed * flops_per_token(job.model, job.sequence_length) / 1e12
    return Throughput(
        iteration_s=iteration,
        tokens_per_s_per_gpu=speed,
        tflops_per_gpu=tflops,
        mfu=tflops / cluster.family.bf16_tflops,
        shares=dict(zip(SHARES, seconds, strict=True)),
    )


def iteration_seconds(job: Job, layout: Layout, cluster: Cluster, rates: Rates) -> tuple[float, ...]:
    """Seconds of one iteration by cause, in the order of `SHARES`."""
    layers = job.model.layers // layout.pp
    count = job.global_batch // (job.micro_batch * layout.dp)
    layer = _layer_seconds(job, layout, cluster, rates)
    weights = _weight_traffic_s(job, layout, rates)
    logits = _logits_s(job, layout, rates)
    inner = layers * sum(layer) + weights
    # The last stage has the logits on top and sets the pace of the others.
    pace = inner + logits
    return (
        *[count * layers * value for value in layer],
        count * weights,
        count * logits,
        (layout.pp - 1) * inner / layout.vpp,
        count * _transfer_s(job, layout, cluster, rates),
        _data_parallel_s(job, layout, cluster, rates, pace),
        _optimizer_s(job, layout, rates),
    )


def _layer_seconds(job: Job, layout: Layout, cluster: Cluster, rates: Rates) -> list[float]:
    """Seconds of one layer for one micro batch, both ways, in the order of `LAYER_SHARES`."""
    model, wide, work = job.model, job.weight_bytes, rates.work
    per_context = job.micro_batch * job.sequence_length / layout.cp
    tokens = per_context / layout.tp
    routed = tokens * model.top_k * (rates.imbalance if layout.ep > 1 else 1.0)
    # Small products are slow: this is the number of tokens that one expert gets.
    slowdown = 1 + _EXPERT_GEMM_ROWS * model.experts / (tokens * model.top_k * layout.ep)
    rate = rates.attention if layout.cp == 1 else rates.context_attention
    times = [
        work.linear * tokens * rates.linear,
        work.attention * tokens * rate,
        work.expert * routed * rates.experts * slowdown,
        (work.traffic * tokens + work.routed_traffic * routed) * rates.memory,
        _exchange_s(layout, cluster, rates, routed * wide * model.hidden),
        _tensor_s(layout, cluster, rates, per_context * wide * model.hidden),
        rates.host + rates.tensor_host * (layout.tp.bit_length() - 1),
    ]
    times.append(_recompute_s(job.recompute, times))
    return times


def _recompute_s(recompute: frozenset[str], times: list[float]) -> float:
    """Seconds of one layer's second forward pass; a forward pass is a third of the work."""
    if not recompute:
        return 0.0
    _, attention, experts, memory, exchange, _, host = times
    if "full" in recompute:
        return sum(times) / 3
    seconds = 0.04 * memory if "layernorm" in recompute else 0.0
    if "moe" in recompute:
        seconds += (experts + 0.7 * memory + exchange) / 3 + host / 6
    elif "moe_act" in recompute:
        seconds += 0.06 * memory
    if "core_attn" in recompute:
        seconds += attention / 3.5
    return seconds


def _exchange_s(layout: Layout, cluster: Cluster, rates: Rates, size: float) -> float:
    """Four exchanges of `size` bytes between expert-parallel ranks: there and back, both ways."""
    if layout.ep == 1:
        return 0.0
    near = min(layout.ep, cluster.fast_domain)
    inside = 4 * size * (near - 1) / layout.ep * rates.link
    return inside + 4 * size * (layout.ep - near) / layout.ep * rates.network_all_to_all


def _tensor_s(layout: Layout, cluster: Cluster, rates: Rates, size: float) -> float:
    """Gathers and scatters of `size` bytes around QKV and output projection: five, both ways."""
    if layout.tp == 1:
        return 0.0
    rate = rates.link if layout.tp <= cluster.fast_domain else rates.network
    return 5 * size * (layout.tp - 1) / layout.tp * rate


def _weight_traffic_s(job: Job, layout: Layout, rates: Rates) -> float:
    """Reading this stage's weights twice and adding to its gradients, once for each micro batch."""
    count = expert_parameters(job.model, layout) + dense_parameters(job.model, layout, 0)
    if job.goal == "lora":
        return 2 * job.weight_bytes * count * rates.memory
    gradient = 4 if job.gradient_precision == "fp32" or job.precision == "fp32" else 2
    return (2 * job.weight_bytes + 2 * gradient) * count * rates.memory


def _logits_s(job: Job, layout: Layout, rates: Rates) -> float:
    """The output layer and the loss, on the last stage, for one micro batch."""
    tokens = job.micro_batch * job.sequence_length / (layout.tp * layout.cp)
    # Stays in bf16 whatever the layers compute in; its rate is close to the dense one.
    work = 6 * job.model.embedding_parameters * tokens * rates.linear
    return work + tokens * job.model.vocab * _CROSS_ENTROPY_BYTES * rates.memory


def _transfer_s(job: Job, layout: Layout, cluster: Cluster, rates: Rates) -> float:
    """Handing one micro batch from stage to stage, there and back; interleaving does it more often."""
    if layout.pp == 1:
        return 0.0
    tokens = job.micro_batch * job.sequence_length / (layout.tp * layout.cp)
    stage_ranks = layout.tp * layout.cp * layout.dp
    rate = rates.link if stage_ranks * layout.pp <= cluster.fast_domain else rates.network
    return 2 * layout.vpp * tokens * job.model.hidden * job.weight_bytes * rate


def _data_parallel_s(job: Job, layout: Layout, cluster: Cluster, rates: Rates, pace: float) -> float:
    """What is left of gradient reduction and weight gathering after hiding it behind one micro batch."""
    if job.goal == "lora":
        return 0.0
    dense_group, expert_group = layout.dp * layout.cp, layout.tp * layout.cp * layout.dp // layout.ep
    dense = dense_parameters(job.model, layout, 0) * _ring(dense_group, layout.tp, cluster, rates)
    experts = expert_parameters(job.model, layout) * _ring(expert_group, layout.ep, cluster, rates)
    gradient = 4 if job.gradient_precision == "fp32" or job.precision == "fp32" else 2
    reduce, gather = gradient * (dense + experts), job.weight_bytes * (dense + experts)
    if job.goal == "sft":  # the recipes switch the overlap off (recipes/gpt_oss/h100/gpt_oss.py:404)
        return reduce + gather
    return max(0.0, reduce - pace * 2 / 3) + max(0.0, gather - pace / 3)


def _ring(group: int, stride: int, cluster: Cluster, rates: Rates) -> float:
    """Seconds for one byte in a group of ranks that are `stride` apart."""
    if group == 1:
        return 0.0
    rate = rates.link if group * stride <= cluster.fast_domain else rates.network
    return (group - 1) / group * rate


def _optimizer_s(job: Job, layout: Layout, rates: Rates) -> float:
    if job.goal == "lora":
        return 0.0
    dense = dense_parameters(job.model, layout, 0) / (layout.dp * layout.cp)
    experts = expert_parameters(job.model, layout) * layout.ep / (layout.tp * layout.cp * layout.dp)
    return _OPTIMIZER_BYTES * (dense + experts) * rates.memory
