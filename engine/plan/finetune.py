"""What speaks against a fine-tuning, an early stop or the best checkpoint; asked by the checks and by the workers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from engine.errors import SettingsError
from engine.findings import Finding, error, info
from engine.finetune_settings import GOALS
from engine.models import Model
from engine.plan.layout import Layout
from engine.plan.memory import adapter_parameters
from engine.settings import Settings

CHAT_SOURCES = ("chat", "sample")


def check(settings: Settings, model: Model, device: str, layout: Layout) -> Iterator[Finding]:
    """The findings about a run on this device (`gpu` or `cpu`)."""
    yield from _check_validation(settings)
    goal, source = settings.training.goal, settings.data.source
    if goal not in GOALS:
        if source == "chat":
            yield error(
                "finetune.goal",
                f"data.source is chat and training.goal is {goal}",
                "chats are learnt with a loss on their answers, which are the goals sft and lora",
                "--set training.goal=sft or lora",
            )
        return
    if source not in CHAT_SOURCES:
        yield error(
            "finetune.source",
            f"training.goal is {goal} and data.source is {source}, which holds no chats",
            "fine-tuning learns answers from chats",
            "--set data.source=chat --set data.path=FILE or training.goal=continue for text",
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
    if settings.finetune.epochs:
        yield info(
            "finetune.epochs",
            f"finetune.epochs is {settings.finetune.epochs:g}: the prepare step sets training.iterations, now "
            f"{settings.training.iterations:,}",
            "it counts the rows of tokens first; disk, time and schedule are judged here by the present number",
        )
    if goal == "lora":
        yield from _check_lora(settings, model, device, layout)


def iterations_of(settings: Settings, rows: int, device: str) -> int:
    """How many iterations `finetune.epochs` are, for so many rows to train on. Raises SettingsError."""
    training, epochs = settings.training, settings.finetune.epochs
    if device == "gpu":
        # Bridge fills the last global batch of each epoch with rows that do not count (drop_last is false).
        iterations = math.ceil(epochs * math.ceil(rows / training.global_batch))
    else:
        iterations = math.ceil(epochs * rows / training.global_batch)
    falling = training.decay_iterations or iterations
    if training.warmup_iterations >= falling:
        raise SettingsError(
            f"finetune.epochs: {epochs:g} epochs of {rows:,} rows in batches of {training.global_batch} are "
            f"{iterations} iterations; the learning rate rises over {training.warmup_iterations} and falls over the "
            f"rest of {falling}",
            f"--set training.warmup_iterations={falling // 10} or more epochs, or a smaller training.global_batch",
        )
    return iterations


def trained_parameters(settings: Settings, model: Model) -> int:
    """Parameters that the training changes and its checkpoints hold."""
    if settings.training.goal != "lora":
        return model.parameters
    chosen = settings.finetune
    held = 0
    if "attention" in chosen.adapted_parts:
        held += adapter_parameters(model, Layout(), chosen.lora_rank)
    if "router" in chosen.adapted_parts:
        held += model.layers * chosen.lora_rank * (model.hidden + model.experts)
    if "experts" in chosen.adapted_parts:
        # Two matrices in each expert: hidden to twice the inner size, and back.
        inner = (model.hidden + 2 * model.ffn) + (model.ffn + model.hidden)
        held += model.layers * model.experts * chosen.lora_rank * inner
    return held


def _check_lora(settings: Settings, model: Model, device: str, layout: Layout) -> Iterator[Finding]:
    chosen = settings.finetune
    sides = {"attention": model.query_width, "experts": model.ffn, "router": model.experts}
    smallest, part = min((min(model.hidden, sides[part]), part) for part in chosen.adapted_parts)
    if chosen.lora_rank > smallest:
        yield error(
            "finetune.rank",
            f"finetune.lora_rank is {chosen.lora_rank}, and the smallest side of a matrix of the {part} is {smallest}",
            "an adapter of a higher rank than its matrix is larger than the matrix itself",
            f"--set finetune.lora_rank={min(32, smallest)}",
        )
    if "router" in chosen.adapted_parts and layout.tp > 1:
        without = "+".join(part for part in chosen.adapted_parts if part != "router") or "attention"
        yield error(
            "finetune.router",
            f"finetune.lora_targets is {chosen.lora_targets}, and the layout has tp = {layout.tp}",
            "with tensor parallelism each rank's router sees other tokens, and Megatron-Bridge joins the parts of the "
            "router's adapter as if they were the same (peft/utils.py, ParallelLinearAdapter): what is trained is not "
            "what is saved",
            f"--set layout.tp=1 or --set finetune.lora_targets={without}",
        )
    if "experts" in chosen.adapted_parts and device == "gpu":
        yield error(
            "finetune.experts",
            f"finetune.lora_targets is {chosen.lora_targets}, and the run computes on GPUs",
            "Megatron-Bridge gives all experts of a GPU one adapter in common, and exports one of several: "
            "what was learnt would be lost",
            "--set finetune.lora_targets=attention",
        )


def _check_validation(settings: Settings) -> Iterator[Finding]:
    training, wants_best = settings.training, settings.output.export_checkpoint == "best"
    if settings.launch.route != "bridge" and (wants_best or training.patience):
        key = "output.export_checkpoint is best" if wants_best else f"training.patience is {training.patience}"
        yield error(
            "validation.route",
            f"launch.route is {settings.launch.route} and {key}",
            "only gptoss's own training with Megatron-Bridge acts on the validation loss",
            "--set launch.route=bridge",
        )
    shared = math.gcd(training.checkpoint_interval, training.evaluation_interval)
    is_apart = shared != training.evaluation_interval and training.checkpoint_interval < training.iterations
    if wants_best and is_apart:
        yield error(
            "validation.interval",
            f"training.checkpoint_interval is {training.checkpoint_interval}, no multiple of "
            f"training.evaluation_interval, which is {training.evaluation_interval}",
            "the best checkpoint is known by its validation loss, and those in between would have none",
            f"--set training.evaluation_interval={shared}",
        )
