"""A Step as a command: the one object that a dry run, an exported script and a launch share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.env_file import KEYS
from engine.plan.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """What a launcher needs to know of a step, as plain values."""

    run: Path
    attempt: Path
    step: str
    ranks_per_node: int
    nodes: int
    uses_all_ranks: bool
    """True when the step runs on every rank, False when one process is enough."""
    device: str
    layout: Layout
    python: str
    source: Path | None = None
    """Directory to import `engine` from, when `python` does not have it installed."""
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line with what it adds to the environment."""

    argv: tuple[str, ...]
    """Words for a shell; `$NAME` refers to a key of the env file."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path
    env_file: Path
    title: str

    def script(self) -> str:
        """The command as a bash script that also runs without gptoss."""
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in self.env.items())
        words = " \\\n  ".join(_word(word) for word in self.argv)
        return (
            "#!/usr/bin/env bash\n"
            f"# {self.title}\n"
            "set -euo pipefail\n"
            f"cd {shlex.quote(str(self.cwd))}\n"
            f"# {' '.join(KEYS)}\n"
            "set -a\n"
            f"source {shlex.quote(str(self.env_file))}\n"
            "set +a\n"
            f"{exports}"
            f"exec {words}\n"
        )


def _word(word: str) -> str:
    # Only our own references to the env file are left for bash to expand.
    return f'"{word}"' if word.startswith("$") and word[1:] in KEYS else shlex.quote(word)
