"""The verbs about a run whose share has fallen silent: none waits for it for ever, or without a word."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from engine.cli import follow
from engine.paths import write_atomic
from engine.processes import ProcessId
from engine.run import directory
from engine.run.directory import RunDirectory
from engine.run.state import State, Status, StepState
from gptoss_tui.__main__ import main
from tests.limits import LIMIT_S

SLEEP = "import time; time.sleep(3600)"


class Share:
    """Lets calls through until it is silent; then they wait until it speaks again."""

    def __init__(self) -> None:
        self._answers = threading.Event()
        self._answers.set()
        self._left: int | None = None

    def fall_silent(self, after: int = 0) -> None:
        """Answer so many calls more."""
        self._left = after

    def speak(self) -> None:
        self._left = None
        self._answers.set()

    def ask(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._answers.clear()
                assert self._answers.wait(LIMIT_S), "nobody stopped waiting for the share"


@pytest.fixture
def supervisor(tmp_path):
    """A process that looks like the supervisor of the run."""
    words = [sys.executable, "-c", SLEEP, "engine.run.supervisor", str(tmp_path / "runs" / "night")]
    process = subprocess.Popen(words)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def run(tmp_path, monkeypatch, supervisor):
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    made = directory.create(tmp_path / "runs", "night")
    step = StepState(name="train", status=Status.RUNNING, attempt=1, started=1.0)
    state = State(
        name="night",
        status=Status.RUNNING,
        steps=(step,),
        step="train",
        attempt=1,
        supervisor=ProcessId.of(supervisor.pid),
    )
    write_atomic(made.state, state.to_json())
    made.attempt(1, "train").mkdir()
    (made.attempt(1, "train") / "rank-0.log").write_text("first line\n")
    return made


@pytest.fixture
def share(run, monkeypatch):
    """The share that the run is on."""
    share, read_state = Share(), RunDirectory.read_state

    def read(self: RunDirectory) -> State:
        share.ask()
        return read_state(self)

    monkeypatch.setattr(RunDirectory, "read_state", read)
    yield share
    share.speak()


@pytest.fixture
def told(run, share, monkeypatch):
    """Whenever a person was told of the silence, which then ends together with the run."""
    told = []

    def tell(of: RunDirectory) -> None:
        told.append(of.name)
        (run.attempt(1, "train") / "rank-0.log").write_text("first line\nlast line\n")
        write_atomic(run.state, replace(State.from_json(run.state.read_text()), status=Status.FINISHED).to_json())
        share.speak()

    monkeypatch.setattr(follow, "tell_silence", tell)
    return told


@pytest.mark.parametrize("words", [["logs", "night"], ["attach", "night", "--headless"]])
def test_what_cannot_begin_says_so(share, words, capsys):
    share.fall_silent()
    assert main(words) == 2
    assert "night gives no answer within" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["logs", "night", "--follow"], ["attach", "night", "--headless"]])
def test_who_follows_is_told_and_goes_on_when_the_silence_ends(share, told, words, capsys):
    share.fall_silent(after=2)
    assert main(words) == 0
    assert told
    out = capsys.readouterr().out
    assert ("last line" in out) if words[0] == "logs" else ("night: finished" in out)


def test_a_stop_reaches_the_supervisor_of_a_run_that_cannot_be_read(share, supervisor, capsys):
    share.fall_silent()
    assert main(["stop", "night", "--json"]) == 0
    assert supervisor.wait(LIMIT_S) == -signal.SIGTERM
    assert json.loads(capsys.readouterr().out)["status"] == "unreachable"


def test_waiting_for_a_stop_outlasts_the_silence(share, told):
    share.fall_silent(after=1)
    assert main(["stop", "night", "--wait"]) == 0
    assert told
