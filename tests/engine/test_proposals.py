"""Proposed changes: what is told to be pasted works when it is pasted, and forms get words of their own."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli import parser
from engine.findings import for_forms
from engine.options import Problem, Value, parse
from engine.proposals import as_options, edit_in
from engine.settings import OPTIONS, parse_assignments

ENGINE = Path(__file__).parent.parent.parent / "engine"
PLACEHOLDER = re.compile(r"[A-Z][A-Z:]*")


def words_of(line: str) -> list[str]:
    """The words that bash makes of a command line."""
    show = "gptoss() { printf '%s\\0' \"$@\"; }\n" + line
    done = subprocess.run([shutil.which("bash") or "bash", "-c", show], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def pasted(line: str) -> dict[str, Value]:
    """What our own parser takes from a command line that went through bash."""
    return parse_assignments(parser.build().parse_args(words_of(line)).assignments)


@pytest.mark.parametrize(
    "edit",
    [
        {"training.learning_rate": 5e-6, "training.warmup_iterations": 20},
        {"data.tokenizer": ""},
        {"output.export": False, "launch.requeue": True},
        {"data.path": '/data/it\'s a $HOME `x` "place"/*.jsonl'},
        {"launch.slurm_options": "--mem=0 --constraint='h100&ib'"},
        {"finetune.lora_targets": "attention+experts", "launch.mounts": "/a:/b,/c d:/e"},
        {"data.column": "[PROMPT,ANSWER]", "launch.image": "nvcr.io#nvidia/nemo:26.04"},
    ],
)
def test_a_proposed_command_can_be_pasted(edit):
    assert pasted(f"gptoss run --resume last {as_options(edit)}") == edit


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the engine that names `--set`, with where it stands; what is computed becomes a 1."""
    for path in sorted(ENGINE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        pieces = {id(part) for node in joined for part in node.values}
        for node in ast.walk(tree):
            if id(node) in pieces:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "1" for part in node.values]
                text = "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if re.search(r"(?<!`)--set [a-z]+\.", text):
                yield f"{path.relative_to(ENGINE)}:{node.lineno}", text


def test_every_fix_that_names_an_option_works_when_it_is_pasted():
    options = [(where, option) for where, text in texts() for option in re.findall(r"--set [a-z]\S*", text)]
    assert len(options) > 40
    for where, option in options:
        key, equals, value = words_of(f"gptoss {option}")[1].partition("=")
        assert equals and key in OPTIONS, f"{where}: {option}"
        assert not value or value[-1] not in ",;:.)", f"{where}: {option} takes in what only ends the sentence"
        assert (
            value in ("", "1") or PLACEHOLDER.fullmatch(value) or not isinstance(parse(OPTIONS[key], value), Problem)
        ), f"{where}: {option} is refused as it stands"


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("--set launch.route=bridge", {"launch.route": "bridge"}),
        (
            "--set data.source=chat --set training.iterations=10k",
            {"data.source": "chat", "training.iterations": 10_000},
        ),
        ("--set data.tokenizer=''", {"data.tokenizer": ""}),
        ("--set output.directory=DIR", {}),
        ("--set launch.time_limit=HH:MM:SS", {}),
        ("--set layout.tp=1 or --set layout.mode=auto", {}),
        ("--set layout.tp=99", {}),
        ("--set nothing.here=1", {}),
        ("--set data.path=Bob's", {}),
        ("free some space", {}),
        ("", {}),
    ],
)
def test_an_edit_is_read_only_from_a_fix_that_is_nothing_else(text, edit):
    assert edit_in(text) == edit


def test_what_is_proposed_is_read_again():
    edit = {"data.path": "/with space", "training.iterations": 20}
    assert edit_in(as_options({"training.iterations": 20, "launch.route": "bridge"})) == {
        "training.iterations": 20,
        "launch.route": "bridge",
    }
    assert pasted(f"gptoss run x {as_options(edit)}") == edit


@pytest.mark.parametrize(
    ("fix", "words"),
    [
        ("--set launch.route=bridge", "set launch.route to bridge"),
        ("free some, or --set output.directory=DIR", "free some, or set output.directory to DIR"),
        ("--set data.tokenizer=", "set data.tokenizer to nothing"),
        ("docker run --ipc=host", "docker run --ipc=host"),
    ],
)
def test_a_form_is_told_the_name_of_the_setting(fix, words):
    assert for_forms(fix) == words
