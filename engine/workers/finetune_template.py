"""A chat template for tokenizers that bring none: Harmony for chats without tools and reasoning."""

from __future__ import annotations

import json
from pathlib import Path

from engine.data.harmony import Style

FILE = "chat_template.jinja"

# It renders what `engine.data.harmony` renders; a test compares the two.
_TEMPLATE = (
    "<|start|>system<|message|>{system}<|end|>"
    "{{% for message in messages %}}"
    "{{% if message['role'] == 'assistant' %}}"
    "<|start|>assistant<|channel|>final<|message|>{{{{ message['content'] }}}}"
    "{{% if loop.last and not add_generation_prompt %}}<|return|>{{% else %}}<|end|>{{% endif %}}"
    "{{% elif message['role'] == 'user' %}}"
    "<|start|>user<|message|>{{{{ message['content'] }}}}<|end|>"
    "{{% else %}}"
    "<|start|>developer<|message|># Instructions\n\n{{{{ message['content'] }}}}<|end|>"
    "{{% endif %}}"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|start|>assistant{{% endif %}}"
)


def text(style: Style) -> str:
    """A chat template that renders as `engine.data.harmony` does, for chats without tools and reasoning."""
    return _TEMPLATE.format(system=style.system_text())


def is_there(tokenizer: Path) -> bool:
    """True when the tokenizer in this directory has a chat template."""
    if (tokenizer / FILE).is_file():
        return True
    try:
        return bool(json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False
