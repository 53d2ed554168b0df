"""How command lines are read: one rule for numbers, one manner of refusing."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli import parser
from engine.cli.examples import EXAMPLES
from engine.cli.numbers import Number
from engine.errors import SettingsError
from engine.number_text import read_number, size_text
from engine.settings import parse_assignments


def _verbs(
    built: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every verb and action with the words that name it."""
    found = [action for action in built._actions if isinstance(action, argparse._SubParsersAction)]
    yield words, built
    for action in found:
        for name, verb in action.choices.items():
            yield from _verbs(verb, (*words, name))


VERBS = list(_verbs(parser.build()))
NUMBERS = [
    (words, action.option_strings[0], action.type)
    for words, verb in VERBS
    for action in verb._actions
    if isinstance(action.type, Number)
]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8), (" 5 ", 5), ("1_000", 1000), ("1,000", 1000), ("12,345,678", 12_345_678), ("1e9", 10**9),
        ("10k", 10_000), ("10 K", 10_000), ("2.5M", 2_500_000), ("1e-5", 1e-5), ("-1", -1), (".5", 0.5), ("5.", 5),
        ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text, number):
    assert read_number(text) == number
    assert type(read_number(text)) is type(number)


@pytest.mark.parametrize(
    "text", ["", " ", "k", ".", "e5", "1,5", "1,0000", "1__0", "_1", "1 2", "0x10", "٣", "1e99999", "9" * 5000, "5min"]
)
def test_what_is_no_number(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("gib", "text"),
    [(1234.4, "1,234 GiB"), (12.84, "12.8 GiB"), (0.04, "41.0 MiB"), (0, "0.0 MiB")],
)
def test_sizes_for_people(gib, text):
    assert size_text(gib) == text


def test_a_unit_may_be_said():
    assert read_number("10min", "s") == 600
    assert read_number("2 GB", "MB") == 2000
    assert read_number("5%", "%") == 5
    assert read_number("-1e999") == -math.inf
    assert read_number("5m", "s") is None, "minutes to one reader, millions to another"


def test_no_option_reads_numbers_by_a_rule_of_its_own():
    assert len(NUMBERS) > 15
    for words, verb in VERBS:
        for action in verb._actions:
            assert action.type is None or isinstance(action.type, Number), (words, action.option_strings)


@pytest.mark.parametrize("text", ["x", "", "nan", "inf", "-inf", "1,5", "1e999", "9" * 5000, "-1"])
def test_every_number_is_refused_in_the_same_way(text):
    built = parser.build()
    for words, name, _ in NUMBERS:
        with pytest.raises(SettingsError) as refused:
            built.parse_args([*words, f"{name}={text}"])
        assert refused.value.message.startswith(f"{name} '{text[:40]}")
        assert "it takes" in refused.value.message and len(refused.value.message) < 200
        assert refused.value.hint == f"see: {' '.join(('gptoss', *words))} --help"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("plann", "there is no verb 'plann'", "did you mean plan?"),
        ("zzz", "there is no verb 'zzz'", "there are: quickstart, new"),
        ("presets lst", "there is no action 'lst'", "did you mean list?"),
        ("run --sett a=b", "gptoss run has no option '--sett'", "did you mean --set?"),
        ("run --sett=a=b", "gptoss run has no option '--sett'", "did you mean --set?"),
        ("plan --jso", "gptoss plan has no option '--jso'", "did you mean --json?"),
        ("run one two", "gptoss run takes no further word 'two'", "see: gptoss run --help"),
        ("plan --goal xft", "--goal 'xft' is not allowed; it takes pretrain", "did you mean sft?"),
        ("settings explan", "action 'explan' is not allowed", "did you mean explain?"),
        ("logs --rank -1k", "--rank: expected one argument", "--rank=VALUE"),
        ("data", "ACTION", "see: gptoss data --help"),
        ("kill", "the following arguments are required: run", "see: gptoss kill --help"),
        ("run " + "x" * 5000 + " y", "takes no further word 'y'", "see: gptoss run --help"),
        ("x" * 5000, "there is no verb 'xxx", "there are: "),
    ],
)  # fmt: skip
def test_a_mistyped_command_line_is_told_what_was_meant(line, message, hint):
    with pytest.raises(SettingsError) as refused:
        parser.build().parse_args(line.split())
    assert message in refused.value.message and len(refused.value.message) < 300
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("words", "verb"),
    [one for one in VERBS if one[0]],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_help_of_a_verb_shows_examples_that_are_understood(words, verb):
    """Also its exit codes, and of every option what it is."""
    text = verb.format_help()
    assert "examples:\n" in text and "exit codes: 0 done" in text
    for example in EXAMPLES[" ".join(words)]:
        assert f"  {example}\n" in text
        line = example.removeprefix('eval "$(').removesuffix(')"')
        assert line.startswith(f"gptoss {words[0]}")
        options = parser.build().parse_args(shlex.split(line)[1:])
        parse_assignments(getattr(options, "assignments", []))
    for action in verb._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action
        if action.default and action.default not in (argparse.SUPPRESS, "last", True) and action.option_strings:
            assert "default" in (action.help or ""), f"{action.option_strings}: its default is {action.default}"


def test_there_is_no_example_of_a_verb_that_is_gone():
    assert set(EXAMPLES) == {" ".join(words) for words, _ in VERBS if words}


def test_every_verb_is_in_the_documentation():
    page = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text()
    for words, _ in VERBS:
        assert not words or re.search(rf"`{words[0]}\b|{words[0]}\b.*`", page), words
