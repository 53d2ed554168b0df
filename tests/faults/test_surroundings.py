"""What happens around a run: terminals, lost processes, reboots, clocks, time limits."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import LaunchError
from engine.paths import write_atomic
from engine.processes import ProcessId
from engine.run import repair, start
from engine.run.directory import RunDirectory
from engine.run.job import processes_of
from engine.run.state import Status
from tests.faults import harness
from tests.faults.conftest import MakeRun
from tests.faults.harness import until

TRAIN = ("train",)


def is_training(run: RunDirectory) -> bool:
    return max(harness.losses(run), default=0) >= 3


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--headless",), id="headless", marks=pytest.mark.fault("pty-headless")),
        pytest.param((), id="screen", marks=pytest.mark.fault("pty-screen")),
    ],
)
def test_a_terminal_goes_away(words: tuple[str, ...], make_run: MakeRun) -> None:
    run = make_run("run", TRAIN, {"iteration_s": 0.6})  # long enough for a screen that opens slowly
    start.launch(run)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = harness.gptoss("attach", str(run.path), *words)
    environment = {**os.environ, "TERM": "xterm-256color"}
    watcher = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment
    )
    os.close(theirs)
    seen = b""
    while b"iteration" not in seen.lower():  # it shows the run
        seen += os.read(ours, 65536)
    os.close(ours)
    # A closed terminal hangs up its session: the kernel does it for the session's leader.
    watcher.send_signal(signal.SIGHUP)
    watcher.wait(harness.LIMIT_S)
    assert run.read_state().observed().status is Status.RUNNING
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert harness.most_repeated(run) == 0
    harness.check_nobody_left(run)


@pytest.mark.fault("deadlock")
def test_ranks_that_hang_leave_their_stacks_and_are_started_again(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN, {"hang_at": 9}, **{"launch.hang_s": 3})
    start.launch(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    for rank in range(harness.RANKS):
        stacks = run.attempt(1, "train") / f"rank-{rank}.stacks"
        assert "in _iterate" in stacks.read_text()
    [restart] = harness.messages(run, "restart")
    assert "it hung: no sign of life for" in restart and "the stacks of 2 of 2 ranks" in restart
    assert harness.losses(run) == harness.losses(calm)
    harness.check_nobody_left(run)


@pytest.mark.faults
@pytest.mark.fault("supervisor-asleep")
def test_a_supervisor_that_slept_takes_that_for_no_hang(make_run: MakeRun) -> None:
    hang_s = 3
    run = make_run("run", TRAIN, {"iteration_s": 0.2}, **{"launch.hang_s": hang_s, "training.iterations": 60})
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    supervisor = harness.supervisor_of(run)
    assert supervisor.send(signal.SIGSTOP)
    time.sleep(2 * hang_s)
    assert supervisor.send(signal.SIGCONT)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert "hang" not in harness.kinds(run) and harness.most_repeated(run) == 0


@pytest.mark.fault("supervisor-and-torchrun")
def test_ranks_do_not_outlive_supervisor_and_torchrun(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN)
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    for process in (harness.supervisor_of(run), harness.launcher_of(run)):
        assert process and process.send(signal.SIGKILL)
    until(lambda: not processes_of(run.path), "the ranks to leave")
    assert run.read_state().observed().status is Status.LOST
    reached = run.last_checkpoint()
    assert reached and reached % harness.INTERVAL  # saved because they were asked to leave
    start.resume(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert harness.losses(run) == harness.losses(calm)
    assert harness.most_repeated(run) == 0


@pytest.mark.fault("deaf-rank")
@pytest.mark.fault("repair")
def test_repair_ends_what_is_left_and_makes_the_record_true(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run", TRAIN, {"deaf": 1, "iteration_s": 0.2})
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    ranks, supervisor = harness.ranks_of(run), harness.supervisor_of(run)
    for process in (supervisor, harness.launcher_of(run)):
        assert process and process.send(signal.SIGKILL)
    until(lambda: not supervisor.is_alive(), "the supervisor to be gone")
    (run.path / ".state.json.abcdefgh").write_text("half")
    (run.path / ".export.partial").mkdir()
    told = repair.repair_all(tmp_path / "runs")["run"]
    assert f"{harness.RANKS} of its processes still ran and were ended" in told
    assert any("it was marked as running and is not" in sentence for sentence in told)
    assert "2 half-written files and directories were removed" in told
    assert not any(rank.is_alive() for rank in ranks)
    state = run.read_state()
    assert (state.status, state.find_step("train").status) == (Status.STOPPED, Status.STOPPED)
    assert repair.repair_all(tmp_path / "runs") == {}
    start.resume(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED


def test_repair_leaves_a_run_at_work_alone(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run", TRAIN, {"iteration_s": 0.15})
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    (run.path / ".export.partial").mkdir()
    assert repair.repair_all(tmp_path / "runs") == {}
    assert (run.path / ".export.partial").exists()
    attempt = run.attempt(1, "train")
    stacks = [attempt / f"rank-{rank}.stacks" for rank in range(harness.RANKS)]

    def are_told() -> bool:
        # Asked again as long as one of them was found while it saved.
        subprocess.run(["bash", str(attempt / "signal.sh"), "stacks"], check=False)  # as stacks.sh does elsewhere
        time.sleep(0.2)
        return all("in _iterate" in path.read_text() for path in stacks)

    until(are_told, "the stacks of all ranks")
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED


def test_repair_brings_back_a_result_that_was_being_replaced(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (run.path / ".export.old").mkdir()
    (run.path / ".export.old" / "model.safetensors").write_text("all there is")
    assert repair.repair_all(tmp_path / "runs") == {"run": ["export is back: it was being replaced"]}
    assert (run.export / "model.safetensors").read_text() == "all there is"


def test_repair_says_which_links_point_to_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "runs" / "far").symlink_to(tmp_path / "unmounted" / "far")
    assert "which is not there; mount its disk" in repair.repair_all(tmp_path / "runs")["far"][0]
    assert (tmp_path / "runs" / "far").is_symlink()


@pytest.mark.fault("two-supervisors")
def test_a_second_supervisor_is_refused(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN, {"iteration_s": 0.1})
    start.launch(run)
    with pytest.raises(LaunchError, match="has a supervisor already"):
        start.launch(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert harness.losses(run) == harness.losses(calm)
    assert harness.most_repeated(run) == 0


@pytest.mark.fault("two-resumes")
def test_of_two_resumes_at_once_one_goes_on(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN, {"iteration_s": 0.1})
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    start.stop(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.STOPPED
    words = harness.gptoss("run", "--resume", "run", "--detach", "--set", "launch.restarts=4")
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [one.communicate(timeout=harness.LIMIT_S)[1] for one in both]
    assert sorted(bool(one.returncode) for one in both) == [False, True], said
    refusal = said[0] if both[0].returncode else said[1]
    assert "has a supervisor already" in refusal or "is running" in refusal
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert harness.losses(run) == harness.losses(calm)
    assert harness.most_repeated(run) == 0
    assert harness.kinds(run).count("resumed") == 1


@pytest.mark.fault("start-cut-short")
def test_a_run_whose_starter_is_killed_can_be_started(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN)
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.run import start\n"
        "from engine.run.directory import RunDirectory\n"
        "start.launch = lambda run, lock=None: os.kill(os.getpid(), signal.SIGKILL)\n"
        "start.resume(RunDirectory(Path(sys.argv[1])))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run.path)]).returncode == -signal.SIGKILL
    assert run.read_state().status is Status.PENDING
    seen = run.read_state().observed()
    assert seen.status is Status.LOST and "its start was cut short" in seen.message
    start.resume(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert harness.losses(run) == harness.losses(calm)


@pytest.mark.fault("attempt-cut-short")
def test_an_attempt_that_the_state_does_not_know_is_ended(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN, {"deaf": 1, "iteration_s": 0.1})
    unknown = run.read_state()
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    ranks, supervisor = harness.ranks_of(run), harness.supervisor_of(run)
    for process in (supervisor, harness.launcher_of(run)):
        assert process and process.send(signal.SIGKILL)
    until(lambda: not supervisor.is_alive(), "the supervisor to be gone")
    write_atomic(run.state, replace(unknown, status=Status.RUNNING, supervisor=supervisor, starter=None).to_json())
    start.resume(run)
    assert not any(rank.is_alive() for rank in ranks)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert sorted(path.name for path in run.attempts.iterdir()) == ["01-train", "02-train"]
    assert harness.losses(run) == harness.losses(calm)


@pytest.mark.fault("same-second")
def test_runs_made_in_the_same_second_have_names_of_their_own(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path))
    monkeypatch.setattr(time, "strftime", lambda form, *when: "20260101-000000")
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda number: harness.make_run(tmp_path, python), range(8)))
    assert len({run.name for run in runs}) == 8
    assert all(run.read_state().name == run.name for run in runs)


@pytest.mark.fault("stale-pid")
def test_a_reused_pid_is_nobody_of_ours(make_run: MakeRun) -> None:
    run = make_run("run", TRAIN)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        real = ProcessId.of(stranger.pid)
        assert real is not None
        reused = replace(real, start_ticks=real.start_ticks - 1)
        _mark_as_running(run, reused)
        assert run.read_state().observed().status is Status.LOST
        start.resume(run)
        assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.fault("reboot")
def test_after_a_reboot_a_run_is_lost_and_goes_on(make_run: MakeRun) -> None:
    run = make_run("run", TRAIN)
    ourselves = ProcessId.of(os.getpid())
    assert ourselves is not None
    _mark_as_running(run, replace(ourselves, boot_id="another boot"))
    assert run.read_state().observed().status is Status.LOST
    start.resume(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED


def _mark_as_running(run: RunDirectory, process: ProcessId) -> None:
    state = replace(run.read_state(), status=Status.RUNNING, supervisor=process, job=process, step="train", attempt=1)
    attempt = run.attempt(1, "train")
    attempt.mkdir()
    record = {"rank": 0, "outcome": "running", "process": process.to_json()}
    (attempt / "rank-0.json").write_text(json.dumps(record))
    write_atomic(run.state, state.to_json())


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(86_400, id="forward", marks=pytest.mark.fault("clock-forward")),
        pytest.param(-86_400, id="back", marks=pytest.mark.fault("clock-back")),
    ],
)
def test_the_clock_is_set(seconds: int, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    monkeypatch.setenv("FAKE_CLOCK", str(clock))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("other_clock")))
    run = make_run("run", TRAIN, {"iteration_s": 0.15}, **{"launch.hang_s": 30})
    start.launch(run)
    until(lambda: is_training(run), "iterations")
    write_atomic(clock, str(seconds))
    before = run.read_state().heartbeat
    until(lambda: abs(run.read_state().heartbeat - before) > 80_000, "a heartbeat by the new clock")
    again = run.read_state().heartbeat
    until(lambda: run.read_state().heartbeat > again, "another heartbeat")
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert "restart" not in harness.kinds(run)
    assert harness.most_repeated(run) == 0


@pytest.mark.fault("time-limit")
def test_it_saves_before_the_allocation_ends(
    make_run: MakeRun, calm: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time() + 6)))
    run = make_run("run", TRAIN, {"iteration_s": 0.4})
    start.launch(run)
    state = start.wait(run, harness.LIMIT_S)
    assert state.status is Status.STOPPED
    assert harness.messages(run, "time-limit") == ["the Slurm allocation is about to end"]
    reached = run.last_checkpoint()
    assert reached and max(harness.losses(run)) == reached
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    (run.path / "pace.json").unlink()
    start.resume(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert harness.losses(run) == harness.losses(calm)
