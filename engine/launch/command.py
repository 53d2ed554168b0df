"""A Step as a command: the one object that a dry run, an exported script and a launch share."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.env_file import KEYS
from engine.plan.layout import Layout
from engine.settings import Settings

type Words = tuple[str, ...]
"""An argv. A word that is exactly `$NAME`, NAME a variable of the script, is left for bash to expand."""

BASH = "#!/usr/bin/env bash"
ENV_FILE = "distributed_config.env"


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
    """The interpreter that runs the workers: on the node, or in the image."""
    own_python: str = "python"
    """The interpreter that runs gptoss, for what follows a job from here."""
    settings: Settings = field(default_factory=Settings)
    source: Path | None = None
    """Directory to import `engine` from, when `python` does not have it installed."""
    gpus: tuple[int, ...] = ()
    user: tuple[int, int] = (0, 0)
    """User and group id that the files of the run belong to."""
    runtime: str = ""
    """What starts the container: docker, podman, pyxis, apptainer, or nothing."""
    hosts: tuple[str, ...] = ()
    """The nodes, for the ssh launcher."""
    caches: tuple[Path, ...] = ()
    """Directories outside the run that the step writes: the Hugging Face cache."""
    own_env_file: Path | None = None
    """The env file of this node, when it is not the run's."""
    by_hand: bool = False
    """True for a script that a person starts, on each node: nobody follows it from outside."""
    environment: Mapping[str, str | int] = field(default_factory=dict)
    """The keys of the env file, for launchers that write one for each node."""

    @property
    def env_file(self) -> Path:
        return self.own_env_file or self.run / ENV_FILE

    @property
    def name(self) -> str:
        """What the step of the run is called in a queue or among containers."""
        return f"{self.run_label}-{self.attempt.name}"

    @property
    def run_label(self) -> str:
        """The run's name where only plain letters are understood."""
        return "gptoss-" + re.sub(r"[^A-Za-z0-9._-]", "-", self.run.name)

    @property
    def ranks(self) -> int:
        """How many ranks will report."""
        return self.ranks_per_node * self.nodes if self.uses_all_ranks else self.ranks_per_node

    @property
    def nodes_used(self) -> int:
        return self.nodes if self.uses_all_ranks else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line with what it needs around it. Starting it is somebody else's business."""

    argv: Words
    title: str
    run: Path
    env: Mapping[str, str] = field(default_factory=dict)
    env_file: Path | None = None
    """The file with the five keys; None where the launcher takes them from elsewhere."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Names that `argv` uses as `$NAME`, with their values; a person may override them outside."""
    cwd: Path | None = None
    """Where it runs; the run directory when None."""
    makes: tuple[Path, ...] = ()
    """Directories that must exist before the start."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files beside the script, by name: what runs on the nodes."""
    once: tuple[str, ...] = ()
    """Lines of bash that set up what all steps of a script share."""
    before: tuple[str, ...] = ()
    """Lines of bash before the command."""
    after: tuple[str, ...] = ()
    """Lines of bash after it; without them bash is replaced by the command."""
    stop: tuple[str, ...] = ()
    """Lines of bash that ask ranks to save and leave which the supervisor cannot signal itself."""
    kill: tuple[str, ...] = ()
    """Lines of bash that end what does not end with this process."""
    stacks: tuple[str, ...] = ()
    """Lines of bash that let ranks write their stacks which the supervisor cannot signal itself."""
    reports: bool = True
    """False when the started program is not ours and writes no reports of its ranks."""
    log: str = "launcher.log"
    """Where in the attempt's directory a program that writes no reports prints its metrics; a pattern."""
    ranks: int = 1

    def script(self, at: Path) -> str:
        """The command as a bash script that stands at `at`, can move with the run, and needs no gptoss."""
        return "\n".join([*head(self.title, at, self.run), *self.body()]) + "\n"

    def body(self) -> list[str]:
        """The lines that do the work, for a script that has set RUN_DIR."""
        prefix = "" if self.after else "exec "
        return [*self.setup(), *self.before, prefix + self.line(), *self.after]

    def setup(self) -> list[str]:
        """The lines that only set names and directories."""
        quote = self._quoter()
        lines = [*_assignments(self.variables), *(["\n".join(self.once)] if self.once else [])]
        lines += [f"mkdir -p {quote(str(path))}" for path in self.makes]
        if self.env_file:
            lines += [
                # One line, so that a script of several steps has it once.
                f"set -a; source {quote(str(self.env_file))}; set +a # {' '.join(KEYS)}",
            ]
        lines += [f"export {key}={quote(value)}" for key, value in self.env.items()]
        return [*lines, f"cd {quote(str(self.cwd or self.run))}"]

    def line(self) -> str:
        """The command line itself, quoted for bash."""
        return self._quoter().line(self.argv)

    def _quoter(self) -> Quoter:
        return Quoter(self.run, {*self.variables, *KEYS})

    def stop_script(self, at: Path) -> str:
        """What asks the ranks to save and leave; empty when they can be signalled directly."""
        return self._side_script(self.stop, at, "Ask the ranks to save a checkpoint and to leave.")

    def kill_script(self, at: Path) -> str:
        """What ends everything at once; empty when there is nothing beyond this machine's processes."""
        return self._side_script(self.kill, at, "End everything of this attempt at once.")

    def stacks_script(self, at: Path) -> str:
        """What lets the ranks write where they are; empty when they can be signalled directly."""
        return self._side_script(self.stacks, at, "Let every rank write its stacks to rank-K.stacks.")

    def at_once(self, lines: tuple[str, ...], run: Path) -> str:
        """`lines` as bash that needs no file of the run, which lies in `run`; empty without any."""
        if not lines:
            return ""
        return "\n".join(["set -euo pipefail", f"RUN_DIR={shlex.quote(str(run))}", *self._used(lines), *lines]) + "\n"

    def _used(self, lines: tuple[str, ...]) -> list[str]:
        used = {name: value for name, value in self.variables.items() if any(f"${name}" in line for line in lines)}
        return _assignments(used)

    def _side_script(self, lines: tuple[str, ...], at: Path, title: str) -> str:
        if not lines:
            return ""
        start = head(title, at, self.run)
        if not any("$RUN_DIR" in line for line in lines):
            start.pop()  # the line that finds the run
        return "\n".join([*start, *self._used(lines), *lines]) + "\n"

    def expanded(self, values: Mapping[str, str | int] | None = None) -> Words:
        """`argv` with its variables and the keys of the env file filled in."""
        known = {**self.variables, **{key: str(value) for key, value in (values or {}).items()}}
        return tuple(known.get(word[1:], word) if word.startswith("$") else word for word in self.argv)


class Quoter:
    """Quotes words for bash; the run's own path becomes `$RUN_DIR`, so that a script can move with it."""

    def __init__(self, run: Path, names: Iterable[str] = ()) -> None:
        self._run = re.compile(rf"(?<![^:=,]){re.escape(str(run))}(?=[/:,]|$)")
        self._references = {f"${name}" for name in names}

    def __call__(self, word: str) -> str:
        if word in self._references:
            return f'"{word}"'
        parts = self._run.split(word)
        return '"$RUN_DIR"'.join(shlex.quote(part) if part else "" for part in parts) or "''"

    def line(self, words: Words) -> str:
        """A command line, one option with its value a line."""
        text, open_option = self(words[0]), False
        for word in words[1:]:
            starts_line = word.startswith("-") or not open_option
            text += (" \\\n  " if starts_line else " ") + self(word)
            open_option = word.startswith("-") and "=" not in word
        return text


def head(title: str, at: Path, run: Path) -> list[str]:
    """The first lines of a script at `at`: they find the run from where the script lies."""
    up = os.path.relpath(run, at.parent)
    here = '"$(dirname -- "${BASH_SOURCE[0]}")"' + ("" if up == "." else f"/{up}")
    return [
        BASH,
        comment(title),
        "# shellcheck disable=SC1091,SC2030,SC2031 # it sources files of the run; each step is a subshell",
        "set -euo pipefail",
        # Physical, because processes of an attempt are recognised by its path.
        f'RUN_DIR="$(cd -- {here} && pwd -P)"',
    ]


def comment(text: str) -> str:
    """A comment line. A directory's name may hold a line break, behind which bash would read a command."""
    return "# " + re.sub(r"[\x00-\x1f\x7f]", "?", text)


def _assignments(variables: Mapping[str, str]) -> list[str]:
    # Not `${NAME:-value}`: bash reads quotes inside it by rules of their own.
    return [f'[ -n "${{{name}:-}}" ] || {name}={shlex.quote(value)}' for name, value in variables.items()]
