"""What speaks against a fine-tuning before it starts; asked by the checks and, once more, by the workers."""

from __future__ import annotations

from collections.abc import Iterator

from engine.findings import Finding, error, info
from engine.finetune_settings import GOALS
from engine.models import Model
from engine.plan.layout import Layout
from engine.plan.memory import adapter_parameters
from engine.settings import Settings

CHAT_SOURCES = ("chat", "sample")


def check(settings: Settings, model: Model, device: str) -> Iterator[Finding]:
    """The findings about a run on this device (`gpu` or `cpu`)."""
    goal, source = settings.training.goal, settings.data.source
    if goal not in GOALS:
        if source == "chat":
            yield error(
                "finetune.goal",
                f"data.source is chat and training.goal is {goal}",
                "chats are learnt with a loss on their answers, which are the goals sft and lora",
                "--set training.goal=sft, or lora",
            )
        return
    if source not in CHAT_SOURCES:
        yield error(
            "finetune.source",
            f"training.goal is {goal} and data.source is {source}, which holds no chats",
            "fine-tuning learns answers from chats",
            "--set data.source=chat --set data.path=FILE, or training.goal=continue for text",
        )
    elif source == "sample" and model.name != "tiny":
        what = "the run learns the toy chats that come with gptoss"
        yield info("finetune.toy", what, "good for timing; your own: --set data.source=chat --set data.path=FILE")
    if settings.launch.route != "bridge":
        yield error(
            "finetune.route",
            f"launch.route is {settings.launch.route}, which cannot learn from chats",
            "Megatron-LM's own --sft has no Harmony format and also trains on the questions",
            "--set launch.route=bridge",
        )
    if goal == "lora":
        yield from _check_lora(settings, model, device)


def trained_parameters(settings: Settings, model: Model) -> int:
    """Parameters that the training changes and its checkpoints hold."""
    if settings.training.goal != "lora":
        return model.parameters
    chosen = settings.finetune
    held = 0
    if "attention" in chosen.lora_targets:
        held += adapter_parameters(model, Layout(), chosen.lora_rank)
    if "experts" in chosen.lora_targets:
        # Two matrices in each expert: hidden to twice the inner size, and back.
        inner = (model.hidden + 2 * model.ffn) + (model.ffn + model.hidden)
        held += model.layers * model.experts * chosen.lora_rank * inner
    return held


def _check_lora(settings: Settings, model: Model, device: str) -> Iterator[Finding]:
    chosen = settings.finetune
    sides = {"attention": model.query_width, "experts": model.ffn}
    smallest = min(model.hidden, *(side for part, side in sides.items() if part in chosen.lora_targets))
    if chosen.lora_rank > smallest:
        yield error(
            "finetune.rank",
            f"finetune.lora_rank is {chosen.lora_rank}, and the smallest side of a matrix is {smallest}",
            "an adapter of a higher rank than its matrix is larger than the matrix itself",
            f"--set finetune.lora_rank={min(32, smallest)}",
        )
    if "experts" in chosen.lora_targets and device == "gpu":
        yield error(
            "finetune.experts",
            f"finetune.lora_targets is {chosen.lora_targets}, and the run computes on GPUs",
            "Megatron-Bridge gives all experts of a GPU one adapter in common, and exports one of several: "
            "what was learnt would be lost",
            "--set finetune.lora_targets=attention",
        )
