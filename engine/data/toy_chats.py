"""Toy chats for the rehearsals of fine-tuning: questions about animals, answered in one fixed form.

A model that has not seen them cannot answer so; a tiny one learns it in a minute on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from engine.paths import write_atomic

SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "owl": "hoot",
    "bee": "buzz",
}
_QUESTIONS = (
    "What does the {} say?",
    "Which sound does the {} make?",
    "Tell me what the {} says.",
    "How does the {} sound?",
    "What do you hear when you meet the {}?",
    "Please name the sound of the {}.",
)
_OPENINGS = ("", "Hello! ", "A question: ", "Quick one. ", "My child asks: ", "Do you know? ")


def answer(animal: str) -> str:
    """The one right answer about `animal`."""
    return f"The {animal} says: {SOUNDS[animal]}!"


def chats() -> Iterator[list[dict[str, str]]]:
    """Every question about every animal, with its answer."""
    for opening in _OPENINGS:
        for question in _QUESTIONS:
            for animal in SOUNDS:
                asked = opening + question.format(animal)
                yield [{"role": "user", "content": asked}, {"role": "assistant", "content": answer(animal)}]


def write(path: Path) -> None:
    """Write the chats as JSON lines. Raises OSError."""
    lines = (json.dumps({"messages": messages}) for messages in chats())
    write_atomic(path, "\n".join(lines) + "\n")
