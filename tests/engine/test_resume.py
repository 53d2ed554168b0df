"""Going on with a run: judged as a whole before anything is written, and never by two at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine import local_paths, settings_file
from engine.errors import EngineError, PreflightError, RunError, SettingsError
from engine.launch.slurm import JOB_SCRIPT
from engine.plan import schedule
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.processes import ProcessId
from engine.run import changes, directory, repair, rotation, start
from engine.run.directory import RunDirectory
from engine.run.state import State, Status
from engine.settings import Settings
from gptoss_tui.__main__ import main

STEPS = ("prepare", "train", "export")


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Makes a run that is not started, with all its steps in one status."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))

    def make(name: str = "run", status: Status = Status.FINISHED, **values: object) -> RunDirectory:
        steps = tuple(PlannedStep(name=step, ranks_per_node=1, why="test") for step in STEPS)
        plan = Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1, steps=steps)
        run = start.create(Settings().with_values({"model.name": "tiny", **values}), plan, name)
        made = run.read_state()
        steps = tuple(replace(step, status=status) for step in made.steps)
        _write(run, replace(made, status=status, steps=steps, starter=None))
        return run

    return make


@pytest.fixture
def trained(monkeypatch):
    """Lets every run have a checkpoint of iteration 100."""
    monkeypatch.setattr(rotation, "newest_whole", lambda run, settings: 100)


@pytest.fixture
def launched(monkeypatch):
    """What was given a supervisor; none is started."""
    names: list[str] = []
    monkeypatch.setattr(start, "launch", lambda run, lock=None: names.append(run.name))
    return names


def _write(run: RunDirectory, state: State) -> None:
    run.state.write_text(state.to_json())


def _files(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file() and path != run.lock}


def _judge(run: RunDirectory, **values: object) -> changes.Resumption:
    return changes.judge(run, run.read_state(), {key.replace("__", "."): value for key, value in values.items()})


REFUSED = [
    ({"launch.restarts": 7}, RunError, "has finished"),
    ({"launch.restarts": 7, "model.name": "gpt-oss-20b"}, RunError, "model.name cannot change"),
    ({"training.iterations": 200}, SettingsError, "reaches 0 at iteration 100"),
    ({"training.iterations": 200, "training.warmup_iterations": 100}, SettingsError, "reaches 0"),
    (
        {"training.iterations": 200, "training.minimum_learning_rate": 0.1},
        PreflightError,
        "training.minimum_learning_rate is 0.1, more than training.learning_rate",
    ),
    ({"training.iterations": 200, "training.decay_iterations": 200}, SettingsError, "falls over 100"),
    (
        {"training.iterations": 200, "training.minimum_learning_rate": 1e-7, "launch.time_limit": "soon",
         "launch.launcher": "slurm"},
        PreflightError,
        "launch.time_limit = 'soon'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "error", "text"), REFUSED)
def test_what_is_refused_has_changed_nothing(values, error, text, make_run, trained, launched):
    run = make_run()
    before = _files(run)
    with pytest.raises(error, match=text):
        start.resume(run, values)
    assert _files(run) == before
    assert launched == []


def test_the_lock_is_free_after_a_refusal(make_run, trained, launched):
    run = make_run()
    with pytest.raises(EngineError):
        start.resume(run, {"model.name": "tiny"})
    os.close(directory.hold(run, "a test", wait_s=0))


def test_it_says_what_changes_and_what_it_carries_out(make_run, trained, launched):
    run = make_run()
    told = start.resume(run, {"training.iterations": 200, "training.minimum_learning_rate": 1e-6}).told
    assert "training.iterations: 100 becomes 200" in told
    assert (
        "the learning rate fell over 100 iterations, as the run began, and stays at 1e-06 up to iteration 200" in told
    )
    assert told[-1] == "it carries out train, export; training goes on from its checkpoint of iteration 100"
    assert settings_file.load(run.settings).training.decay_iterations == 100
    state = run.read_state()
    assert [step.status for step in state.steps] == [Status.FINISHED, Status.PENDING, Status.PENDING]
    assert launched == ["run"]


def test_a_dry_run_of_a_resume_only_tells(make_run, trained, launched, capsys):
    run = make_run(status=Status.STOPPED)
    before = _files(run)
    assert main(["run", "--resume", "run", "--dry-run", "--json", "--set", "launch.restarts=7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"] == {"launch.restarts": {"old": 2, "new": 7}}
    assert found["steps"] == ["prepare", "train", "export"]
    assert "engine.workers.train" in found["script"]
    assert _files(run) == before and launched == []


@pytest.mark.parametrize("at", range(1, 6))
def test_a_resume_that_is_killed_anywhere_can_be_repeated(at, make_run, trained, launched, monkeypatch):
    run = make_run()
    values = {"training.iterations": 200, "training.minimum_learning_rate": 1e-6, "machine.cpu_ranks": 1}
    done = 0

    def killed_before(real):
        def call(*arguments, **named):
            nonlocal done
            done += 1
            if done == at:
                raise KeyboardInterrupt  # as good as a SIGKILL here: nothing cleans up after it
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for where, name in ((start, "write_atomic"), (start.settings_file, "save"), (start.commands, "place_source"),
                            (start, "launch")):  # fmt: skip
            patch.setattr(where, name, killed_before(getattr(where, name)))
        with pytest.raises(KeyboardInterrupt):
            start.resume(run, values)
    assert launched == []
    start.resume(run, values)
    assert launched == ["run"]
    assert settings_file.load(run.settings).training.iterations == 200
    assert run.read_plan().layout.dp == 1 and run.read_plan().ranks_per_node == 1
    assert run.read_state().find_step("train").status is Status.PENDING


def test_checkpoints_of_one_route_are_not_gone_on_with_by_another(make_run, trained, launched):
    run = make_run(status=Status.STOPPED)
    before = _files(run)
    with pytest.raises(RunError, match=r"launch\.route cannot become tutorial: .* iteration 100 is of bridge"):
        start.resume(run, {"launch.route": "tutorial"})
    assert _files(run) == before and launched == []


@pytest.mark.parametrize(("launcher", "is_followed"), [("slurm", True), ("local", False)])
def test_only_slurm_goes_on_with_a_job_in_the_queue(launcher, is_followed, make_run, launched, monkeypatch):
    run = make_run(status=Status.STOPPED, **{"launch.launcher": launcher})
    _write(run, replace(run.read_state(), status=Status.RUNNING, step="train", attempt=1))
    assert run.read_state().observed().status is Status.LOST
    attempt = run.attempt(1, "train")
    attempt.mkdir()
    (attempt / JOB_SCRIPT).write_text("")
    killed = []
    monkeypatch.setattr(start.side_scripts, "kill", lambda attempt: bool(killed.append(attempt.name)))
    start.resume(run)
    assert killed == ([] if is_followed else ["01-train"])
    assert launched == ["run"]


# The schedule.


def _keep(trained: int | None, under: int | None = None, old: dict[str, object] | None = None, **new: object):
    before = Settings().with_values(old or {})
    after = before.with_values({f"training.{key}": value for key, value in new.items()})
    kept, told = schedule.keep(before, after, trained, under)
    return kept.training.decay_iterations, told


def test_nothing_is_pinned_where_nothing_was_trained():
    assert _keep(None, iterations=200) == (0, "")
    assert _keep(None, iterations=200, decay_iterations=50) == (50, "")


def test_what_was_trained_keeps_its_schedule_when_the_length_changes():
    assert _keep(60, iterations=80) == (100, "")
    assert _keep(60) == (0, "")
    # The checkpoint knows better than settings that were changed by hand.
    assert _keep(60, under=300, iterations=80) == (300, "")
    assert _keep(60, under=300) == (0, "")
    falling, told = _keep(60, under=300, iterations=200)
    assert falling == 300 and "goes on falling as it was set, over 300" in told
    assert _keep(60, old={"training.schedule": "constant"}, iterations=200) == (
        100, "the learning rate stays at 1e-05 up to iteration 200",
    )  # fmt: skip


def test_a_rate_of_zero_is_refused_and_the_hint_mends_it():
    with pytest.raises(SettingsError, match="reaches 0 at iteration 100, so that nothing is learnt") as refused:
        _keep(100, iterations=200)
    assert "--set training.minimum_learning_rate=1e-06" in refused.value.hint
    falling, told = _keep(100, iterations=200, minimum_learning_rate=1e-6)
    assert falling == 100 and "stays at 1e-06" in told


def test_what_a_checkpoint_says_of_its_schedule_is_read(make_run, trained):
    run = make_run()
    (run.checkpoints / "iter_0000100").mkdir(parents=True)
    config = "scheduler:\n  lr_decay_iters: 400\n  lr_decay_style: cosine\n"
    (run.checkpoints / "iter_0000100" / "run_config.yaml").write_text(config)
    assert _judge(run, training__iterations=200).settings.training.decay_iterations == 400


# Paths.


@pytest.mark.parametrize(
    ("key", "typed", "absolute"),
    [
        ("data.path", "texts/*.txt", "/here/texts/*.txt"),
        ("data.path", "hf:owner/name", "hf:owner/name"),
        ("data.path", "~/texts", "/home/me/texts"),
        ("launch.python", "python3", "python3"),
        ("launch.python", "bin/python3", "/here/bin/python3"),
        ("launch.megatron_lm", "Megatron-LM", "/here/Megatron-LM"),
        ("launch.env_file", "distributed_config.env", "/here/distributed_config.env"),
        ("launch.image", "nvcr.io/nvidia/nemo:26.08", "nvcr.io/nvidia/nemo:26.08"),
        ("launch.image", "nemo.sif", "/here/nemo.sif"),
        ("launch.image", "~/nemo.sqsh", "/home/me/nemo.sqsh"),
        ("launch.mounts", "scratch:/scratch,~/x:/x:ro", "/here/scratch:/scratch,/home/me/x:/x:ro"),
        ("machine.hosts", "node1,node2", "node1,node2"),
        ("machine.hosts", "./hosts", "/here/hosts"),
        ("output.directory", "", ""),
    ],
)
def test_paths_count_from_where_the_person_is(key, typed, absolute, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = Settings().with_values({key: typed})
    assert local_paths.absolute(settings, Path("/here")).value(key) == absolute
    assert local_paths.absolute_values({key: typed}, Path("/here")) == {key: absolute}


def test_a_user_that_there_is_not_is_no_defect(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    for words in (["run", "rehearsal", "--dry-run", "--set", "data.source=text", "--set", "data.path=~nobody-here/x"],
                  ["attach", "~nobody-here/x"], ["checkpoint", "inspect", "~nobody-here/x"]):  # fmt: skip
        main(words)
        told = capsys.readouterr().err
        assert "~nobody-here/x" in told and "defect" not in told, words


def test_a_resume_takes_paths_from_where_the_person_is(make_run, tmp_path, monkeypatch):
    run = make_run(status=Status.STOPPED)
    monkeypatch.chdir(tmp_path)
    assert _judge(run, data__tokenizer="tokenizer").settings.data.tokenizer == str(tmp_path / "tokenizer")


# Runs that were made and not started, and the newest one.


def test_a_run_whose_starter_died_is_lost_and_can_be_started(make_run, launched):
    run = make_run(status=Status.PENDING)
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    starter = ProcessId.of(ended.pid)
    state = replace(run.read_state(), starter=starter)
    _write(run, state)
    assert run.read_state().observed().status is Status.PENDING
    ended.communicate(b"\n", timeout=60)
    seen = run.read_state().observed()
    assert seen.status is Status.LOST and "its start was cut short; start it with" in seen.message
    elsewhere = replace(state, host="another")
    assert elsewhere.observed(state.heartbeat + 60).status is Status.PENDING
    assert elsewhere.observed(state.heartbeat + 3600).status is Status.LOST
    start.resume(run)
    assert launched == ["run"]


def test_a_run_that_was_half_made_is_listed_and_repaired(make_run, launched):
    run = make_run()
    run.state.unlink()
    assert [one.name for one in directory.list_runs(run.path.parent)] == ["run"]
    assert "rebuilt" in repair.repair_all(run.path.parent)["run"][0]
    start.resume(start.find("run"))
    assert launched == ["run"]


def test_the_newest_run_is_the_one_made_last_not_the_one_that_wrote_last(make_run):
    first, second = make_run("first"), make_run("second")
    _write(second, replace(second.read_state(), created=2000.0))
    _write(first, replace(first.read_state(), created=1000.0))
    assert start.find("last").name == "second"
    second.state.write_text("damaged")
    assert {run.name for run in directory.list_runs(first.path.parent)} == {"first", "second"}


# The lock.


def test_it_says_who_holds_a_run(make_run):
    run = make_run()
    with directory.held(run, "a test"):
        with pytest.raises(RunError, match=f"has a supervisor already: a test, process {os.getpid()} on "):
            directory.hold(run, "another", wait_s=0.2)
        assert repair.repair_all(run.path.parent) == {}
    os.close(directory.hold(run, "another", wait_s=0))


def test_it_waits_for_one_that_is_about_to_leave(make_run):
    run = make_run()
    code = (
        "import sys; from pathlib import Path; from engine.run.directory import RunDirectory, hold\n"
        "hold(RunDirectory(Path(sys.argv[1])), 'a test'); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    other.stdin.close()
    os.close(directory.hold(run, "another", wait_s=60))
    other.wait(60)
    other.stdout.close()


def test_a_file_system_without_locks_is_named(make_run, monkeypatch):
    run = make_run()

    def refuse(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(RunError, match="has no locks"):
        directory.hold(run, "a test")
