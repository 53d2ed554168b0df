"""Memory of one GPU, term by term and stage by stage. Formulas and anchors: docs/planning.md.

Bytes inside, GiB (2^30 bytes) in everything that leaves this module.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from engine.models import Model
from engine.plan.job import Job
from engine.plan.layout import Layout

GIB = 2**30
FIXED_GIB = 3.5
"""CUDA context, cuBLAS and cuDNN workspaces, the allocator's rounding."""
COMMUNICATOR_GIB = 0.35
"""NCCL buffers of one group of ranks."""
NATURAL_IMBALANCE = 1.3
"""Tokens on the busiest rank over the mean, with routers that were trained: a guess (1.1 to 2 seen)."""
SAFE_SHARE = 0.92
"""Up to this share of the memory a plan is SAFE; the rest is for fragmentation and surprises."""

TERMS = ("weights", "gradients", "optimizer", "activations", "expert_activations", "logits", "working")
"""What grows with the model or the batch; `fixed` comes on top."""

SAFE, TIGHT, OUT_OF_MEMORY = "SAFE", "TIGHT", "OUT OF MEMORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """What one GPU of one pipeline stage holds at its peak, in GiB."""

    stage: int
    layers: int
    parameters: int
    """Parameters on one rank of this stage."""
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    """This rank's share of master weights and moments."""
    activations_gib: float
    """Saved for backward outside the experts, over all micro batches in flight."""
    expert_activations_gib: float
    logits_gib: float
    working_gib: float
    """Buffers of the one layer at work: gradients of activations, dispatch, recomputed values."""
    fixed_gib: float

    @property
    def total_gib(self) -> float:
        return sum(size for _, size in self.terms)

    @property
    def terms(self) -> tuple[tuple[str, float], ...]:
        """Every term as (name, GiB)."""
        return tuple((name, getattr(self, f"{name}_gib")) for name in (*TERMS, "fixed"))

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "total_gib": self.total_gib}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Bytes for each parameter and each token: what depends on the job alone."""

    weight: float
    gradient: float
    optimizer: float
    """Before it is shared out over data-parallel ranks."""
    dense: float
    """Saved for one token of one layer outside the experts."""
    dense_working: float
    expert: float
    """Saved for one visit of a token to an expert, times the visits (top-k)."""
    expert_working: float
    logit: float
    """For one token and one row of the vocabulary."""
    score: float
    """For one pair of tokens and one head, where attention is not fused."""
    imbalance: float


def bytes_of(job: Job, is_fused: bool = True) -> Bytes:
    """The bytes that `job` needs for each parameter and token.

    `is_fused` means Transformer Engine's layers; without it, Megatron's local ones on the CPU,
    which also keep what fused kernels never write.
    """
    model, recompute = job.model, job.recompute
    saved = _saved_by_layer(job)
    extra = _Saved() if is_fused else _saved_by_local_layer(job)
    score = 4.0 if job.precision == "fp32" else 6.0  # fp32 softmax, and its bf16 copy
    if is_fused and job.precision != "fp32":
        score = 0.0
    # Gradients of fc1's and the activation's output, and the two buffers of the exchange.
    working: float = model.top_k * (3 * model.ffn + 2 * model.hidden) * job.weight_bytes
    whole = saved.expert + extra.expert
    dense, expert = saved.dense + saved.router + extra.dense, whole
    dense_working = 0.0
    if "core_attn" in recompute:
        score, dense = 0.0, dense - saved.attention - extra.attention
    if "moe" in recompute:
        dense, expert, working = dense - saved.router, 0.0, working + whole
    if "full" in recompute:
        dense_working, dense, expert, working = dense, model.hidden * job.weight_bytes, 0.0, working + whole
        score = 0.0
    weight, gradient, optimizer = _state_bytes(job)
    return Bytes(
        weight=weight,
        gradient=gradient,
        optimizer=optimizer,
        dense=dense,
        dense_working=dense_working,
        expert=expert,
        expert_working=working,
        # bf16 logits and their fp32 copy, which becomes softmax and gradient in place
        # (fused_cross_entropy.py:88).
        logit=job.weight_bytes + 4,
        score=score,
        imbalance=1.0 if job.is_balanced else NATURAL_IMBALANCE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """Bytes that one layer keeps for backward, for one token."""

    dense: float = 0.0
    attention: float = 0.0
    """The part of `dense` that recomputing the attention core frees."""
    router: float = 0.0
    expert: float = 0.0


def _saved_by_layer(job: Job) -> _Saved:
    """With Transformer Engine's fused attention, norms, activation and permutation."""
    model, wide = job.model, job.weight_bytes
    narrow = 1 if job.precision in ("fp8", "mxfp8") else wide
    # Two residuals are the inputs of the two norms; the norms' outputs feed QKV and the router.
    norms = 0 if "layernorm" in job.recompute else 2 * model.hidden * narrow
    query_key_value = (model.query_width + 2 * model.kv_width) * wide
    log_sum_exp = 4 * model.heads
    activation = 0 if "moe_act" in job.recompute else model.ffn * narrow
    return _Saved(
        dense=2 * model.hidden * wide + norms + query_key_value + model.query_width * narrow + log_sum_exp,
        attention=log_sum_exp,
        # fp32 logits and probabilities, indices and weights of the chosen experts.
        router=8 * model.experts + 24 * model.top_k + 8,
        # What fc1 reads, what it writes, and what fc2 reads.
        expert=model.top_k * (model.hidden * narrow + 2 * model.ffn * wide + activation),
    )


def _saved_by_local_layer(job: Job) -> _Saved:
    """What Megatron's local layers keep on top: measured term by term in tests/plan_megatron."""
    model, wide = job.model, job.weight_bytes
    repeated = 2 * (model.query_width - model.kv_width) * wide  # k and v, repeated for every query head
    log_sum_exp = 4 * model.heads  # part of the scores here
    return _Saved(
        dense=(8 if wide == 4 else 12) * model.hidden + repeated - log_sum_exp,
        attention=repeated - log_sum_exp,
        expert=5 * model.top_k * model.ffn * wide,  # clamped gate and up, sigmoid, products
    )


def _state_bytes(job: Job) -> tuple[float, float, float]:
    """Weight, gradient and optimizer bytes for one parameter."""
    if job.precision == "fp32":
        return (4.0, 4.0, 8.0)  # the weights are their own master copy
    # FP8 kernels keep a row-wise and a column-wise quantised copy beside the bf16 weight.
    weight = 4.0 if job.precision in ("fp8", "mxfp8") else 2.0
    if job.goal == "lora":
        return (weight, 0.0, 0.0)
    # fp32 master weight and Adam's two fp32 moments.
    return (weight, 4.0 if job.gradient_precision == "fp32" else 2.0, 12.0)


def dense_parameters(model: Model, layout: Layout, stage: int) -> int:
    """Parameters outside the experts on one rank of `stage`."""
    # The output projection's bias, the norms and the router are on every tensor rank.
    split = (model.attention_parameters - model.hidden) // layout.tp
    layer = split + model.hidden + 2 * model.hidden + model.router_parameters
    total = model.layers // layout.pp * layer
    if stage == 0:
        total += model.embedding_parameters // layout.tp
    if stage == layout.pp - 1:
        total += model.embedding_parameters // layout.tp + model.hidden
    return total


def expert_parameters(model: Model, layout: Layout) -> int:
    """Parameters of the experts on one rank; the same on every stage."""
    return model.layers // layout.pp * (model.experts // layout.ep) * model.expert_parameters


def adapter_parameters(model: Model, layout: Layout, rank: int) -> int:
    """Parameters of the LoRA adapters (QKV and output projection) on one rank."""
    qkv = model.hidden + model.query_width + 2 * model.kv_width
    return model.layers // layout.pp * rank * (qkv + model.query_width + model.hidden) // layout.tp


def layers_in_flight(layout: Layout, all_layers: int, micro_batches: int, stage: int) -> float:
    """Layers whose activations `stage` holds at its peak, over all micro batches in flight."""
    layers = all_layers // layout.pp
    if layout.vpp == 1:
        return layers * min(micro_batches, layout.pp - stage)
    # Warm-up of the interleaved schedule (schedules.py:933) and the one at work.
    chunks = 2 * (layout.pp - stage - 1) + (layout.vpp - 1) * layout.pp + 1
    return layers / layout.vpp * min(chunks, micro_batches * layout.vpp)


def fixed_gib(layout: Layout) -> float:
    """What is there before the first weight: context, workspaces, communicators."""
    groups = (layout.tp > 1) + (layout.pp > 1) + (layout.cp > 1) + (layout.ep > 1) + (layout.dp > 1)
    groups += layout.tp * layout.cp * layout.dp > layout.ep  # several copies of each expert
    return FIXED_GIB + COMMUNICATOR_GIB * groups


def state_bytes(job: Job, layout: Layout, stage: int, each: Bytes) -> tuple[float, float, float]:
    """Weights, gradients and optimizer of one GPU of `stage`, in bytes."""
    model = job.model
    dense, experts = dense_parameters(model, layout, stage), expert_parameters(model, layout)
    copies = layout.dp * layout.cp
    optimizer = each.optimizer * (dense / copies + experts * layout.ep / (layout.tp * copies))
    weights, gradients = each.weight * (dense + experts), each.gradient * (dense + experts)
    if job.goal == "lora":
        adapters = adapter_parameters(model, layout, job.lora_rank)
        weights, gradients, optimizer = weights + 2 * adapters, 4.0 * adapters, 12.0 * adapters
    return weights, gradients, optimizer


def batch_bytes(job: Job, layout: Layout, stage: int, each: Bytes) -> tuple[float, float, float, float]:
    """What grows with the batch on one GPU of `stage`, in bytes: both activations, logits, working."""
    model = job.model
    tokens = job.micro_batch * job.sequence_length / layout.cp
    share = tokens / layout.tp
    # With all experts on one rank every token is local, however the router chooses.
    routed = share * (each.imbalance if layout.ep > 1 else 1.0)
    held = layers_in_flight(layout, model.layers, job.global_batch // (job.micro_batch * layout.dp), stage)
    scores = each.score * model.heads / layout.tp * tokens * (job.sequence_length + 1)  # and the sink
    logits = 0.0
    if stage == layout.pp - 1:
        logits = tokens * (model.vocab / layout.tp * each.logit + 2 * model.hidden * job.weight_bytes)
    return (
        held * (share * each.dense + scores),
        held * routed * each.expert,
        logits,
        share * each.dense_working + routed * each.expert_working,
    )


def stage_memory(job: Job, layout: Layout, stage: int) -> StageMemory:
    """The peak memory of one GPU of `stage`."""
    model = job.model
    each = bytes_of(job)
    sizes = (*state_bytes(job, layout, stage, each), *batch_bytes(job, layout, stage, each))
    return StageMemory(
        stage=stage,
        layers=model.layers // layout.pp,
        parameters=dense_parameters(model, layout, stage) + expert_parameters(model, layout),
        fixed_gib=fixed_gib(layout),
        **{f"{name}_gib": size / GIB for name, size in zip(TERMS, sizes, strict=True)},
    )


def estimate(job: Job, layout: Layout) -> tuple[StageMemory, ...]:
    """The peak memory of one GPU of every pipeline stage."""
    return tuple(stage_memory(job, layout, stage) for stage in range(layout.pp))


def end_stages(layout: Layout) -> tuple[int, ...]:
    """The stages that can be the fullest: the first (batches in flight) and the last (logits)."""
    return (0,) if layout.pp == 1 else (0, layout.pp - 1)


def peak_gib(job: Job, layout: Layout, each: Bytes, states: list[float]) -> float:
    """The peak of the fullest stage; `states` are the summed `state_bytes` of the `end_stages`."""
    stages = zip(end_stages(layout), states, strict=True)
    most = max(state + sum(batch_bytes(job, layout, stage, each)) for stage, state in stages)
    return most / GIB + fixed_gib(layout)


def cpu_gib(job: Job, layout: Layout, stage: int) -> float:
    """The peak of one CPU rank of `stage` in GiB, without the process itself."""
    each = bytes_of(job, is_fused=False)
    return (sum(state_bytes(job, layout, stage, each)) + sum(batch_bytes(job, layout, stage, each))) / GIB


def verdict(total_gib: float, capacity_gib: float) -> str:
    """SAFE, TIGHT or OUT OF MEMORY for a peak of `total_gib`."""
    if total_gib <= SAFE_SHARE * capacity_gib:
        return SAFE
    return TIGHT if total_gib <= capacity_gib else OUT_OF_MEMORY
