"""Megatron's rules about layouts and batches, as data: a check, a sentence and the fix.

A layout that passes here is one that Megatron starts; tests/plan_megatron holds both
against each other. Line numbers are those of megatron-core 0.19.2 and megatron-bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.plan.job import Job
from engine.plan.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A job laid out over ranks: all that a rule may look at."""

    job: Job
    layout: Layout
    world_size: int
    ranks_per_node: int
    device: str = "gpu"
    capability: tuple[int, int] | None = None
    """Compute capability of the GPUs, None where it is not known."""

    @property
    def micro_batches(self) -> int:
        """Micro batches that one pipeline works through in an iteration."""
        return self.job.global_batch // (self.job.micro_batch * self.layout.dp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule: which, with the values, and what to type instead."""

    rule: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}: {self.fix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of Megatron, TransformerEngine or the hardware."""

    name: str
    source: str
    """File (under `megatron/` where nothing else is said) and line that refuse a violation."""
    check: Callable[[Case], tuple[str, str] | None]
    """The sentence and the fix, or None when the rule is kept."""
    needs_world: bool = False
    """True when it only makes sense in a layout that fills the ranks."""
    of_batch: bool = False
    """True when it looks at the micro batch; the others hold for a layout whatever the batch."""


def check(case: Case) -> tuple[Violation, ...]:
    """Every rule that `case` breaks, the most basic first."""
    found = []
    fills_world = _world(case) is None
    for rule in RULES:
        # Without a whole data-parallel size, what depends on it means nothing.
        if rule.needs_world and not fills_world:
            continue
        verdict = rule.check(case)
        if verdict is not None:
            found.append(Violation(rule=rule.name, message=verdict[0], fix=verdict[1]))
    return tuple(found)


def is_legal(case: Case) -> bool:
    """True when no rule is broken."""
    return is_legal_layout(case) and is_legal_batch(case)


def is_legal_layout(case: Case) -> bool:
    """True when no rule is broken that holds whatever the micro batch."""
    return all(check(case) is None for check in _LAYOUT_CHECKS)


def is_legal_batch(case: Case) -> bool:
    """True when no rule about the micro batch is broken."""
    return all(check(case) is None for check in _BATCH_CHECKS)


def divisors(number: int, most: int | None = None) -> list[int]:
    """The divisors of `number`, ascending, up to `most`."""
    return [n for n in range(1, min(number, most or number) + 1) if number % n == 0]


def _choices(values: Iterable[int], name: str) -> str:
    found = list(values)
    if not found:
        return f"no {name} fits; change another size"
    listed = " or ".join(", ".join(map(str, found)).rsplit(", ", 1))
    return f"use {name}={listed}" if len(found) == 1 else f"use {name} {listed}"


def _world(case: Case) -> tuple[str, str] | None:
    layout, world = case.layout, case.world_size
    size = layout.tp * layout.pp * layout.cp
    if world % size:
        return (
            f"TP{layout.tp} x PP{layout.pp} x CP{layout.cp} = {size} does not divide {world} ranks",
            f"make the product one of {', '.join(map(str, divisors(world)))}",
        )
    if layout.dp != world // size:
        return f"DP{layout.dp} does not fill {world} ranks with {size} each", f"use dp={world // size}"
    return None


def _expert_world(case: Case) -> tuple[str, str] | None:
    layout, world = case.layout, case.world_size
    size = layout.ep * layout.pp
    if world % size == 0:
        return None
    fits = [e for e in divisors(case.job.model.experts) if world % (e * layout.pp) == 0]
    return f"EP{layout.ep} x PP{layout.pp} = {size} does not divide {world} ranks", _choices(fits, "ep")


def _heads(case: Case) -> tuple[str, str] | None:
    model, tp = case.job.model, case.layout.tp
    if model.heads % tp == 0:
        return None
    return f"TP={tp} does not divide {model.heads} attention heads", _choices(_legal_tp(case), "tp")


def _groups(case: Case) -> tuple[str, str] | None:
    groups, tp = case.job.model.kv_heads, case.layout.tp
    if groups % tp == 0 or tp % groups == 0:
        return None
    return f"TP={tp} neither divides {groups} key-value heads nor is a multiple", _choices(_legal_tp(case), "tp")


def _legal_tp(case: Case) -> list[int]:
    model = case.job.model
    return [t for t in divisors(model.heads) if model.kv_heads % t == 0 and model.vocab % t == 0]


def _vocabulary(case: Case) -> tuple[str, str] | None:
    vocab, tp = case.job.model.vocab, case.layout.tp
    if vocab % tp == 0:
        return None
    return f"TP={tp} does not divide the {vocab:,} rows of the embedding", _choices(_legal_tp(case), "tp")


def _experts(case: Case) -> tuple[str, str] | None:
    experts, ep = case.job.model.experts, case.layout.ep
    if experts % ep == 0:
        return None
    return f"EP={ep} does not divide {experts} experts", _choices(divisors(experts), "ep")


def _layers(case: Case) -> tuple[str, str] | None:
    layers, pp = case.job.model.layers, case.layout.pp
    if layers % pp == 0:
        return None
    found = [size for size in divisors(layers) if size > 1]
    fits = [size for size in found if case.world_size % size == 0]
    return f"PP={pp} does not divide {layers} layers", _choices(fits or found, "pp")


def _virtual_needs_pipeline(case: Case) -> tuple[str, str] | None:
    if case.layout.vpp == 1 or case.layout.pp > 1:
        return None
    return f"VPP={case.layout.vpp} has no pipeline to interleave (PP=1)", "use vpp=1, or pp above 1"


def _virtual_layers(case: Case) -> tuple[str, str] | None:
    layers, pp, vpp = case.job.model.layers, case.layout.pp, case.layout.vpp
    if vpp == 1 or layers % pp or (layers // pp) % vpp == 0:
        return None
    return f"VPP={vpp} does not divide the {layers // pp} layers of a stage", _choices(divisors(layers // pp), "vpp")


def _virtual_batches(case: Case) -> tuple[str, str] | None:
    layout, count = case.layout, case.micro_batches
    if layout.vpp == 1 or layout.pp == 1:
        return None
    if count < layout.pp:
        return (
            f"{count} micro batches are fewer than the {layout.pp} stages that VPP={layout.vpp} interleaves",
            f"use a global batch of {case.job.micro_batch * layout.dp * layout.pp} or more, or vpp=1",
        )
    if count % layout.pp:
        return (
            f"{count} micro batches are not a multiple of the {layout.pp} stages of VPP={layout.vpp}",
            f"use a multiple of {case.job.micro_batch * layout.dp * layout.pp} as the global batch, or vpp=1",
        )
    return None


def _batch(case: Case) -> tuple[str, str] | None:
    job, layout = case.job, case.layout
    step = job.micro_batch * layout.dp
    if job.global_batch % step == 0:
        return None
    lower = job.global_batch // step * step
    near = f"{lower} or {lower + step}" if lower else f"{step}"
    return (
        f"global batch {job.global_batch} is not a multiple of micro batch {job.micro_batch} x DP {layout.dp} = {step}",
        f"use a global batch of {near}",
    )


def _positions(case: Case) -> tuple[str, str] | None:
    length, most = case.job.sequence_length, case.job.model.max_positions
    if length <= most:
        return None
    return f"sequence length {length:,} is above the model's {most:,} positions", f"use {most} or fewer"


def _context_split(case: Case) -> tuple[str, str] | None:
    length, cp = case.job.sequence_length, case.layout.cp
    if cp == 1 or length % (2 * cp) == 0:
        return None
    return (
        f"sequence length {length} is not a multiple of 2 x CP = {2 * cp}",
        f"use {_nearest(length, 2 * cp)} tokens, or another cp",
    )


def _sequence_split(case: Case) -> tuple[str, str] | None:
    length, tp, cp = case.job.sequence_length, case.layout.tp, case.layout.cp
    if length % (tp * cp) == 0:
        return None
    return (
        f"sequence length {length} is not a multiple of TP x CP = {tp * cp}, which share it",
        f"use {_nearest(length, tp * cp * (2 if cp > 1 else 1))} tokens, or another tp",
    )


def _nearest(length: int, step: int) -> int:
    return max(step, round(length / step) * step)


def _context_heads(case: Case) -> tuple[str, str] | None:
    model, tp, cp = case.job.model, case.layout.tp, case.layout.cp
    if cp == 1 or model.kv_heads % (tp * cp) == 0:
        return None
    return (
        f"TP{tp} x CP{cp} = {tp * cp} does not divide {model.kv_heads} key-value heads, which they share out",
        _choices((c for c in divisors(model.kv_heads) if model.kv_heads % (tp * c) == 0), "cp"),
    )


def _context_device(case: Case) -> tuple[str, str] | None:
    if case.device == "gpu" or case.layout.cp == 1:
        return None
    return f"CP={case.layout.cp} needs TransformerEngine, which the CPU does not have", "use cp=1"


def _cpu_recompute(case: Case) -> tuple[str, str] | None:
    if case.device == "gpu" or "moe_act" not in case.job.recompute:
        return None
    return (
        "recomputing the expert activation needs the grouped GEMM, which the CPU does not have",
        "set training.recompute to none or full",
    )


def _recompute_mix(case: Case) -> tuple[str, str] | None:
    if "full" not in case.job.recompute or len(case.job.recompute) == 1:
        return None
    return "recompute=full already covers every module", "give full alone, or the modules without it"


def _precision(case: Case) -> tuple[str, str] | None:
    needs = {"fp8": (8, 9), "mxfp8": (10, 0)}.get(case.job.precision)
    if needs is None:
        return None
    if case.device == "cpu":
        return f"{case.job.precision} needs a GPU", "use bf16 or fp32"
    if case.capability is not None and case.capability < needs:
        have = ".".join(map(str, case.capability))
        return (
            f"{case.job.precision} needs compute capability {needs[0]}.{needs[1]} and these GPUs have {have}",
            "use bf16" if case.capability < (8, 9) else "use fp8 (current scaling) or bf16",
        )
    return None


def _old_gpu(case: Case) -> tuple[str, str] | None:
    if case.device == "cpu" or case.capability is None or case.capability >= (8, 0):
        return None
    have = ".".join(map(str, case.capability))
    return f"the grouped GEMM needs compute capability 8.0 and these GPUs have {have}", "use Ampere or newer"


def _packed(case: Case) -> tuple[str, str] | None:
    # Nothing is packed on the CPU: attention over several chats in a row needs Transformer Engine.
    if case.job.goal not in ("sft", "lora") or case.job.micro_batch == 1 or case.device == "cpu":
        return None
    return (
        f"micro batch {case.job.micro_batch} with packed sequences",
        "use micro batch 1: the sequence length says how much is packed",
    )


RULES: tuple[Rule, ...] = (
    Rule(name="world size", source="bridge/training/config.py:1024; core/parallel_state.py:822", check=_world),
    Rule(name="expert world size", source="core/parallel_state.py:881", check=_expert_world, needs_world=True),
    Rule(name="attention heads", source="core/transformer/transformer_config.py:1323", check=_heads),
    Rule(name="key-value heads", source="core/transformer/transformer_config.py:1338", check=_groups),
    Rule(name="vocabulary", source="core/tensor_parallel/utils.py:118", check=_vocabulary),
    Rule(name="experts", source="core/transformer/moe/moe_layer.py:185", check=_experts),
    Rule(name="layers", source="core/transformer/transformer_block.py:151", check=_layers),
    Rule(name="virtual stages", source="core/parallel_state.py:828", check=_virtual_needs_pipeline),
    Rule(
        name="layers of a virtual stage",
        source="core/transformer/transformer_block.py:170",
        check=_virtual_layers,
    ),
    Rule(
        name="interleaving",
        source="core/pipeline_parallel/schedules.py:1141",
        check=_virtual_batches,
        of_batch=True,
        needs_world=True,
    ),
    Rule(
        name="global batch",
        source="core/num_microbatches_calculator.py:381",
        check=_batch,
        needs_world=True,
        of_batch=True,
    ),
    Rule(name="positions", source="training/arguments.py:1314", check=_positions),
    Rule(name="context split", source="bridge/training/config.py:1436", check=_context_split),
    # moe_layer.py:629 refuses TP without sequence parallelism, and that one splits the sequence.
    Rule(name="sequence split", source="core/tensor_parallel/mappings.py:73", check=_sequence_split),
    # Sinks allow only the all-to-all form of context parallelism, which splits the heads
    # (TransformerEngine 2.20 context_parallel.py:4247).
    Rule(name="context heads", source="TransformerEngine context_parallel.py:4247", check=_context_heads),
    Rule(
        name="context on the CPU",
        source="core/transformer/dot_product_attention.py:58",
        check=_context_device,
    ),
    Rule(
        name="recompute on the CPU",
        source="core/transformer/transformer_config.py:1784",
        check=_cpu_recompute,
    ),
    Rule(name="recompute", source="core/transformer/transformer_config.py:1724", check=_recompute_mix),
    Rule(name="precision", source="TransformerEngine quantization.py:154", check=_precision),
    Rule(name="compute capability", source="training/arguments.py:1340", check=_old_gpu),
    Rule(name="packed sequences", source="bridge/training/config.py:1466", check=_packed, of_batch=True),
)
_LAYOUT_CHECKS = tuple(rule.check for rule in RULES if not rule.of_batch)
_BATCH_CHECKS = tuple(rule.check for rule in RULES if rule.of_batch)
