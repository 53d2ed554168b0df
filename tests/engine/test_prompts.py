"""`gptoss new`: as questions in a real terminal, as a conversation with a scripted person, and with nobody to ask."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import presets, settings_file
from engine.cli import parser
from engine.findings import Finding
from engine.findings import error as finding
from engine.machine import Machine
from engine.run.directory import RunDirectory
from engine.settings import OPTIONS, Settings
from gptoss_tui.__main__ import main
from gptoss_tui.bridge import Services
from gptoss_tui.draft import Draft
from gptoss_tui.prompts import SetUp
from tests.limits import LIMIT_S


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)


class Terminal:
    """A real pseudo-terminal with `gptoss` in it."""

    def __init__(self, *words: str, term: str) -> None:
        self.text = ""
        self._seen = 0
        self._pid, self._fd = pty.fork()
        if not self._pid:
            os.environ["TERM"] = term
            os.environ["NO_COLOR"] = "1"
            os.execv(sys.executable, [sys.executable, "-m", "gptoss_tui", *words])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def expect(self, wanted: str) -> None:
        """Read until `wanted` appears behind what was expected before."""
        deadline = time.monotonic() + LIMIT_S
        while (place := self.text.find(wanted, self._seen)) < 0:
            self._read(deadline, wanted)
        self._seen = place + len(wanted)

    def _read(self, deadline: float, wanted: str) -> bool:
        """Take what comes; False at the end."""
        assert time.monotonic() < deadline, f"no {wanted!r} in {self.text[self._seen :]!r}"
        if select.select([self._fd], [], [], 0.2)[0]:
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                return False  # the other side is closed
            self.text += data.decode(errors="replace")
            return bool(data)
        return True

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        """Wait for the program and return its exit code."""
        deadline = time.monotonic() + LIMIT_S
        while self._read(deadline, "the end"):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def close(self) -> None:
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it ended by itself
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*words: str, term: str = "xterm") -> Terminal:
        opened.append(Terminal(*words, term=term))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_asks_goes_back_explains_and_writes_a_file(open_terminal, term, tmp_path):
    terminal = open_terminal("new", "--plain", term=term)
    for wanted, keys in [
        ("machine.device [auto]", "3\r"),
        ("machine.nodes [1]", "<\r"),
        ("machine.device [cpu]", "\r"),
        ("machine.nodes [1]", "none\r"),
        ("Not taken: 'none' is not allowed", ""),
        ("machine.nodes [1]", "?\r"),
        ("In Megatron: NUM_NODES.", ""),
        ("machine.nodes [1]", "\r"),
        ("Advanced settings of Machine? [no]", "\r"),
        ("model.name [gpt-oss-20b]", "tiny\r"),
        ("Advanced settings of Model? [no]", ">\r"),
        ("number [6]", "2\r"),
        ("File [gptoss.toml]", "mine.toml\r"),
        ("number [6]", "\r"),
    ]:
        terminal.expect(wanted)
        terminal.type(keys)
    assert terminal.end() == 0
    assert set(re.findall(r"\x1b\[([0-9;]*)m", terminal.text)) <= {"0"}  # no colour, nothing bold
    assert ("\x1b" in terminal.text) is (term == "xterm")
    written = settings_file.load(tmp_path / "mine.toml")
    assert (written.machine.device, written.model.name) == ("cpu", "tiny")


def test_leaving_keeps_the_answers_for_the_next_time(open_terminal):
    first = open_terminal("new", "--plain", term="dumb")
    first.expect("machine.device [auto]")
    first.type("cpu\r")
    first.expect("machine.nodes [1]")
    first.type("\x03")
    assert first.end() == 130
    assert "Your answers are kept" in first.text
    second = open_terminal("new", "--plain", term="dumb")
    second.expect("Go on with them? [yes]")
    second.type("\r")
    second.expect("machine.device [cpu]")
    second.type("\x04")
    assert second.end() == 130


def test_answers_from_before_are_not_replaced_by_a_preset(capsys):
    kept = Draft(name="rehearsal")
    kept.set("training.iterations", "77")
    kept.save()

    def taken_up(*answers: tuple[str, str]) -> SetUp:
        setup = SetUp(Draft(Settings().with_values(REHEARSAL), "tiny"), Services(), ScriptedPerson(*answers), None)
        setup.take_up()
        return setup

    assert taken_up(("Go on", "yes")).draft.settings.training.iterations == 77
    assert "training.iterations = 77" in capsys.readouterr().out
    assert taken_up(("Go on", "no"), ("Keep", "yes")).draft.settings.model.name == "tiny"
    assert presets.find("rehearsal-unfinished").settings.training.iterations == 77


class ScriptedPerson:
    """Stands in for the person: answers by what the prompt begins with, Enter to everything else."""

    def __init__(self, *answers: tuple[str, str], wants_all: bool = False) -> None:
        self._answers = list(answers)
        self._wants_all = wants_all
        self.prompts: list[str] = []

    def __call__(self, prompt: str, is_path: bool) -> str:
        self.prompts.append(prompt)
        if self._answers and prompt.startswith(self._answers[0][0]):
            return self._answers.pop(0)[1]
        if self._wants_all and prompt.startswith("Advanced"):
            return "yes"
        assert not (prompt.startswith("number") and self._answers), f"never asked: {self._answers[0]}"
        return ""


class ServicesOfALaptop(Services):
    """The real engine on a machine that is described here."""

    def machine(self) -> Machine:
        return Machine(cpu_cores=4, ram_gib=16.0)


def _talk(person: ScriptedPerson, base: Settings | None = None, services: Services | None = None) -> SetUp:
    arguments = SimpleNamespace(force=False, name="named", detach=True, json=False, show_screen=None)
    setup = SetUp(Draft(base), services or ServicesOfALaptop(), person, arguments)
    assert setup.run() == 0
    return setup


REHEARSAL = {"model.name": "tiny", "data.source": "sample"}


def test_only_what_matters_is_asked_and_the_advanced_when_wanted():
    person = ScriptedPerson(("Advanced settings of Training?", "y"))
    _talk(person, Settings().with_values(REHEARSAL))
    asked = [prompt.split(" ")[0] for prompt in person.prompts]
    assert "training.iterations" in asked and "training.seed" in asked
    for pointless in ("data.path", "layout.tp", "launch.partition", "launch.image", "finetune.lora_rank",
                      "launch.grace_s"):  # fmt: skip
        assert pointless not in asked


def test_every_option_can_be_reached():
    reached: set[str] = set()
    for values in (
        {"training.goal": "lora", "data.source": "text", "data.path": ".", "layout.mode": "manual",
         "data.tokenizer": ".", "output.tracker": "wandb",
         "launch.launcher": "slurm", "launch.route": "megatron-lm", "launch.megatron_lm": "."},
        {"training.goal": "sft", "data.source": "sample", "launch.launcher": "container"},
        {"launch.launcher": "ssh", "machine.hosts": "a,b", "model.name": "tiny"},
    ):  # fmt: skip
        person = ScriptedPerson(wants_all=True)
        _talk(person, Settings().with_values(values))
        reached |= {prompt.split(" ")[0] for prompt in person.prompts}
    assert sorted(set(OPTIONS) - reached) == []


def test_a_length_is_taken_in_any_unit(capsys):
    person = ScriptedPerson(
        ("training.iterations", "3h"), ("training.iterations", "10m"), ("training.iterations", "1M-tokens"),
        ("training.sequence_length", "<"), ("training.iterations", ""), ("training.sequence_length", "128"),
        ("training.global_batch", "16"),
    )  # fmt: skip
    setup = _talk(person, Settings().with_values(REHEARSAL))
    said = capsys.readouterr().out
    assert "the plan predicts no speed" in said and "'10m' is no length" in said
    assert setup.draft.settings.training.iterations == 2  # 128 samples of 4,096 tokens were an iteration then
    assert "length: 2 iterations = 4.1k tokens = 32 samples" in said


def test_the_summary_names_what_is_missing_and_a_station_can_be_changed(capsys, tmp_path):
    (tmp_path / "own.txt").write_text("some text\n" * 2000)
    person = ScriptedPerson(
        ("data.source", "text"), ("data.path", ""), ("Advanced settings of Data", ">"),
        ("number", "1"), ("number", "5"), ("station", "3"), ("data.path", "own.txt"), ("number", "9"),
    )  # fmt: skip
    setup = _talk(person, Settings().with_values(REHEARSAL))
    said = capsys.readouterr().out
    assert "missing: data.path: data.source is text" in said
    assert "it cannot start like this" in said and "'9' is not a number from 1 to 6" in said
    assert setup.draft.settings.data.path == "own.txt"


def test_what_was_left_on_the_screens_as_no_value_is_named_and_starts_nothing(capsys):
    draft = Draft(Settings().with_values(REHEARSAL))
    draft.set("training.global_batch", "lots")
    arguments = SimpleNamespace(force=False, name="named", detach=True, json=False, show_screen=None)
    person = ScriptedPerson(("number", "1"), ("number", "6"))
    assert SetUp(draft, ServicesOfALaptop(), person, arguments).run() == 0
    said = capsys.readouterr().out
    assert "no value: training.global_batch: 'lots' is not allowed" in said
    assert "it cannot start like this" in said


def test_a_preset_and_scripts_can_be_kept(capsys, tmp_path):
    person = ScriptedPerson(
        ("machine.device", ">"), ("number", "2"), ("File", "<"), ("number", "5"), ("station", "<"),
        ("number", "3"), ("Name of the preset", "<"), ("number", "4"), ("Directory", "<"),
        ("number", "<"), ("machine.device", ">"), ("number", "3"), ("Name of the preset", "../evil"), ("number", "3"),
        ("Name of the preset", "mine"), ("number", "4"), ("Directory", "out"),
    )  # fmt: skip
    _talk(person, Settings().with_values(REHEARSAL))
    assert "cannot name a preset" in capsys.readouterr().out
    assert presets.find("mine").settings.model.name == "tiny"
    assert (tmp_path / "out" / "run.sh").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("config", "state", "data")) == ["out"]


class ServicesThatRecord(ServicesOfALaptop):
    """Plans for real; what the checks find is written down, and a start is only recorded."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings
        self.started: list[tuple[Settings, str]] = []

    def check(self, settings: Settings, plan: Any, machine: Machine) -> tuple[Finding, ...]:
        return self.findings

    def start(self, settings: Settings, plan: Any, name: str = "") -> RunDirectory:
        self.started.append((settings, name))
        return RunDirectory(Path("/runs/mine"))


def test_a_start_needs_what_the_checks_need_and_forgets_the_draft(capsys):
    bad = finding("disk.full", "the disk is full", "the checkpoint would not fit", "--set output.directory=DIR")
    person = ScriptedPerson(("machine.device", ">"), ("number", "1"), ("number", "6"))
    services = ServicesThatRecord(bad)
    _talk(person, Settings().with_values(REHEARSAL), services)
    assert services.started == [] and Draft.load() is not None
    assert "the disk is full. the checkpoint would not fit" in capsys.readouterr().out
    person = ScriptedPerson(("machine.device", ">"), ("number", "1"))
    services = ServicesThatRecord()
    _talk(person, Settings().with_values(REHEARSAL), services)
    assert [(made.model.name, name) for made, name in services.started] == [("tiny", "named")]
    assert Draft.load() is None
    assert "gptoss attach mine" in capsys.readouterr().err


def test_every_prompt_says_what_stands_there():
    person = ScriptedPerson()
    _talk(person, Settings().with_values(REHEARSAL))
    for prompt in person.prompts:
        assert "[" in prompt and "]" in prompt, prompt


def test_without_anybody_to_ask_the_missing_answers_are_listed(capsys):
    assert main(["new", "--no-input"]) == 2
    error = capsys.readouterr().err
    assert "model.name, data.source, training.goal are missing" in error
    words = ["new", "rehearsal", "--no-input", "--set", "data.source=chat", "--set", "launch.launcher=ssh"]
    assert main([*words, "--json"]) == 2
    shown = capsys.readouterr()
    assert set(json.loads(shown.out)["missing"]) == {"data.path", "machine.hosts"}
    assert "--set data.path=… --set machine.hosts=…" in shown.err


def test_without_anybody_to_ask_settings_are_made(capsys, tmp_path):
    file = tmp_path / "gptoss.toml"
    words = ["new", "rehearsal", "--no-input", "--set", "training.seed=7", "--length", "1M-tokens"]
    assert main([*words, "--output", str(file), "--save-preset", "mine"]) == 0
    made = settings_file.load(file)
    assert made == presets.find("mine").settings
    assert (made.training.seed, made.training.iterations) == (7, 489)
    assert main([*words, "--output", str(file)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(words) == 0
    assert tomllib.loads(capsys.readouterr().out)["training"]["seed"] == 7
    assert main(["new", str(file), "--dry-run"]) == 0
    assert "engine.workers.train" in capsys.readouterr().out


def test_the_help_names_both_ways(capsys):
    with pytest.raises(SystemExit):
        parser.build().parse_args(["new", "--help"])
    shown: Any = capsys.readouterr().out
    assert "--plain" in shown and "--no-input" in shown and "--from" in shown


def test_a_killed_set_up_has_kept_the_last_key(open_terminal):
    terminal = open_terminal("new", "rehearsal", "--set", "training.iterations=60")
    terminal.expect("Machine")
    terminal.type("\x1b[6~" * 3)  # to the Training station
    terminal.expect("iterations")
    terminal.type("\x1b[B")
    terminal.expect("optimiser")  # what the second field is about
    terminal.type("77")
    deadline = time.monotonic() + LIMIT_S
    while (kept := Draft.load()) is None or kept.text("training.iterations") != "77":
        terminal._read(deadline, "the draft")
    terminal.close()  # SIGKILL
    again = Draft.load()
    assert again is not None and again.settings.training.iterations == 77
