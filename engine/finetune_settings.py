"""The settings of fine-tuning: what is learnt from chats, and where LoRA puts its adapters."""

from __future__ import annotations

from dataclasses import dataclass

from engine.options import option

GOALS = ("sft", "lora")
"""The goals that learn from chats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    epochs: float = option(
        0.0,
        help="How often every chat is learnt; 0 means that training.iterations says how long the training is.",
        why="The prepare step counts the rows of tokens, sets training.iterations accordingly and says so.",
        unit="epochs",
        minimum=0,
        maximum=10_000,
    )
    learn: str = option(
        "answers",
        help="Which tokens of a chat count for the loss.",
        why="`answers` teaches to answer and nothing else; `everything` also teaches to write questions.",
        choices=("answers", "everything"),
        native="preprocessing.loss_mode",
    )
    effort: str = option(
        "medium",
        help="The reasoning effort that the system message of each chat names.",
        why="Ask the tuned model with the effort it was trained with. Low suits answers without reasoning.",
        choices=("low", "medium", "high"),
        advanced=True,
    )
    lora_rank: int = option(
        32,
        help="Rank of the adapters (goal = lora).",
        why="A higher rank can learn more and takes more memory; 8 to 64 is usual.",
        minimum=1,
        maximum=1024,
        native="peft.dim",
    )
    lora_alpha: int = option(
        32,
        help="Strength of the adapters: what they add is multiplied by alpha / rank.",
        why="Keep it equal to the rank, or twice that, and change the learning rate instead.",
        minimum=1,
        maximum=4096,
        native="peft.alpha",
        advanced=True,
    )
    lora_dropout: float = option(
        0.0,
        help="Share of an adapter's inputs that is left out at random while training.",
        why="It helps against learning a small data set by heart.",
        minimum=0,
        maximum=0.9,
        native="peft.dropout",
        advanced=True,
    )
    lora_targets: str = option(
        "attention",
        help="Which parts of the model get adapters.",
        why="Attention is enough for style and format. Adapters on the experts, one for each, learn more facts and "
        "are many times larger; so far they can be exported without loss only after a training on the CPU. The router "
        "decides which expert sees a token: a change there is small and far-reaching.",
        choices=(
            "attention",
            "experts",
            "router",
            "attention+experts",
            "attention+router",
            "experts+router",
            "attention+experts+router",
        ),
        native="peft.target_modules",
    )

    @property
    def adapted_parts(self) -> tuple[str, ...]:
        """`lora_targets` one by one."""
        return tuple(self.lora_targets.split("+"))
