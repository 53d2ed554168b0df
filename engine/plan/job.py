"""What is to be computed: model, goal, batch and number formats, before any split over GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import PlanError
from engine.models import Model
from engine.settings import TrainingSettings

GOALS = ("pretrain", "continue", "sft", "lora")
PRECISIONS = ("bf16", "fp32", "fp8", "mxfp8")
"""`fp8` is Hopper's current scaling, `mxfp8` Blackwell's block scaling; both keep bf16 weights."""
GRADIENT_PRECISIONS = ("fp32", "bf16")
RECOMPUTE_MODULES = ("core_attn", "layernorm", "moe_act", "moe", "full")
"""`full` is Megatron's full granularity, the others its selective modules."""
RECOMPUTE_OF_SETTING = {
    "none": frozenset[str](),
    "moe": frozenset({"layernorm", "moe_act"}),
    "full": frozenset({"full"}),
}
"""`training.recompute` as Megatron's module names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training job, independent of the machine. Raises PlanError for unknown words or sizes below 1."""

    model: Model
    goal: str = "pretrain"
    sequence_length: int = 4096
    micro_batch: int = 1
    global_batch: int = 128
    precision: str = "bf16"
    gradient_precision: str = "fp32"
    """In which gradients are accumulated and reduced."""
    recompute: frozenset[str] = frozenset()
    lora_rank: int = 32
    """Rank of the adapters, used with the goal `lora` only."""

    def __post_init__(self) -> None:
        _one_of("goal", self.goal, GOALS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("gradient precision", self.gradient_precision, GRADIENT_PRECISIONS)
        for module in sorted(self.recompute):
            _one_of("recompute", module, RECOMPUTE_MODULES)
        for name in ("sequence_length", "micro_batch", "global_batch", "lora_rank"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} = {getattr(self, name)} is below 1", "give a positive whole number")

    @property
    def tokens(self) -> int:
        """Tokens in one iteration."""
        return self.global_batch * self.sequence_length

    @property
    def kind(self) -> str:
        """What decides about speed and memory beside model, goal and layout, in words."""
        parts = [f"{self.sequence_length} tokens", f"batch {self.global_batch} by {self.micro_batch}", self.precision]
        parts += [f"{self.gradient_precision} gradients", "+".join(sorted(self.recompute)) or "nothing recomputed"]
        return ", ".join([*parts, f"rank {self.lora_rank}"] if self.goal == "lora" else parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight and of one activation outside FP8 kernels."""
        return 4 if self.precision == "fp32" else 2

    @property
    def is_balanced(self) -> bool:
        """True where the routing may be taken as even; released weights route as they like."""
        return self.goal == "pretrain"


def from_training(training: TrainingSettings, model: Model, lora_rank: int = 32) -> Job:
    """The job that the training settings describe; `lora_rank` counts for the goal `lora` only."""
    return Job(
        model=model,
        goal=training.goal,
        sequence_length=training.sequence_length,
        micro_batch=training.micro_batch,
        global_batch=training.global_batch,
        precision=training.precision,
        recompute=RECOMPUTE_OF_SETTING[training.recompute],
        lora_rank=lora_rank,
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PlanError(f"{name} {value!r} is not known", "use one of " + ", ".join(known))
