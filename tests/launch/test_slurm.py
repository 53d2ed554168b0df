"""The batch script as text, and what Slurm's answers mean. The real Slurm is in test_real_launchers.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import SettingsError
from engine.launch import signals, slurm, slurm_answers
from engine.run import start
from engine.run.job import processes_of
from engine.run.state import Status
from tests.launch.support import LIMIT_S, messages, request_of, until

SLURM = {"launch.launcher": "slurm"}


def _job(**changes) -> str:
    values = {**SLURM, **changes.pop("values", {})}
    request = request_of(values=values, runtime=changes.pop("runtime", ""), **changes)
    return slurm.job_script([request], request.attempt / slurm.JOB_SCRIPT)


def test_a_job_asks_for_what_the_plan_needs():
    values = {
        "launch.partition": "h100",
        "launch.account": "lab-7",
        "launch.qos": "long",
        "launch.time_limit": "2-12:00:00",
        "launch.mail": "me@example.org",
        "launch.slurm_options": "--constraint=h100&ib --exclude=node[07,09]",
        "launch.grace_s": 240,
    }
    lines = [line for line in _job(nodes=4, ranks_per_node=8, values=values).splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "#SBATCH --job-name=gptoss-mine-03-train",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --output=attempts/03-train/slurm-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=h100",
        "#SBATCH --account=lab-7",
        "#SBATCH --qos=long",
        "#SBATCH --time=2-12:00:00",
        "#SBATCH --mail-user=me@example.org",
        "#SBATCH --mail-type=BEGIN,END,FAIL,REQUEUE",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --exclusive",
        "#SBATCH --mem=0",
        "#SBATCH --requeue",
        "#SBATCH --constraint=h100&ib",
        "#SBATCH --exclude=node[07,09]",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"launch.partition": "a b"},
        {"launch.partition": "x --wrap=evil"},
        {"launch.account": "$(id)"},
        {"launch.mail": "me@x;touch hit"},
        {"launch.time_limit": "soon"},
        {"launch.time_limit": "1:2:3"},
        {"launch.slurm_options": "-p other"},
        {"launch.slurm_options": "--comment='open"},
        {"launch.slurm_options": "--comment='two words'"},
    ],
)
def test_what_a_directive_cannot_hold_is_refused(values):
    with pytest.raises(SettingsError):
        _job(values=values)


def test_small_steps_ask_for_one_node_and_the_data_step_for_no_gpu():
    text = _job(step="prepare", uses_all_ranks=False, nodes=4, ranks_per_node=1)
    assert "--nodes=1" in text and "gpus-per-node" not in text and "--exclusive" not in text


def test_without_requeue_nothing_is_put_back():
    assert "scontrol requeue" in _job()
    text = _job(values={"launch.requeue": False})
    assert "#SBATCH --no-requeue" in text and "scontrol requeue" not in text


def test_the_image_is_spelled_as_each_runtime_wants_it():
    assert "IMAGE='nvcr.io#nvidia/nemo:26.08'" in _job(runtime="pyxis")
    assert "IMAGE=docker://nvcr.io/nvidia/nemo:26.08" in _job(runtime="apptainer")
    text = _job(runtime="apptainer", values={"launch.image": "/images/nemo 26.sif"})
    assert "IMAGE='/images/nemo 26.sif'" in text and "apptainer exec --nv" in text
    assert '--container-mounts="$RUN_DIR":"$RUN_DIR"' in _job(runtime="pyxis")


def test_a_node_takes_its_place_from_the_allocation():
    text = slurm.node_script(request_of(values=SLURM))
    order = [text.index(part) for part in ("distributed_config.env", "job.env", "NODE_RANK=", "torch.distributed.run")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("PENDING|Resources|2026-11-23T04:00:00|\n",
         "waiting in the queue (no free nodes yet); expected to start 2026-11-23T04:00:00"),
        ("PENDING|None|N/A|\n", "waiting in the queue (no reason given)"),
        ("PENDING|(BeginTime)|N/A|", "waiting in the queue (it was put back and may start again in about two minutes)"),
        ("RUNNING|None|2026-11-22T09:30:32|n[1-2]", "running on n[1-2]"),
    ],
)  # fmt: skip
def test_the_queue_in_words(text, sentence):
    assert slurm_answers.parse_squeue(text).sentence == sentence


def test_a_job_that_slurm_forgot_or_garbage_is_no_answer():
    assert slurm_answers.parse_squeue("") is None
    assert slurm_answers.parse_squeue("slurm_load_jobs error: Invalid job id specified") is None
    assert slurm_answers.parse_job("") is None
    assert slurm_answers.parse_sacct("\n") is None


def test_ends_are_told_apart():
    # scontrol 22.05.8, shortened.
    text = (
        "JobId=12 JobName=gptoss UserId=root(0) JobState=TIMEOUT Reason=TimeLimit ExitCode=0:0 NodeList=n1 StartTime=x"
    )
    state = slurm_answers.parse_job(text)
    assert state.is_over and "time limit" in state.sentence
    assert not slurm_answers.parse_squeue("REQUEUED|None|N/A|n1").is_over
    assert slurm_answers.parse_sacct("CANCELLED by 0|0:15\n").sentence == "cancelled with scancel"
    assert slurm_answers.parse_sacct("NODE_FAIL|0:0").sentence == "ended because a node failed"


def test_a_job_that_can_never_start_says_why():
    assert slurm_answers.parse_squeue("PENDING|PartitionTimeLimit|N/A|").hopeless[0].startswith("launch.time_limit")
    assert slurm_answers.parse_squeue("PENDING|Resources|N/A|").hopeless is None
    assert slurm_answers.parse_squeue("RUNNING|PartitionTimeLimit|x|n1").hopeless is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        # sbatch 22.05.8
        ("sbatch: error: invalid partition specified: nope\n"
         "sbatch: error: Batch job submission failed: Invalid partition name specified\n", "no such partition"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
         "what the job asks for"),
        ("sbatch: error: Invalid --time specification", "time limit"),
        ("sbatch: error: something new", "something new"),
        ("", "no reason given"),
    ],
)  # fmt: skip
def test_refusals_in_words(said, meant):
    assert meant in slurm_answers.refusal(said)[0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("04:00:00", 14_400), ("2-12", 216_000), ("2-12:30", 217_800),
     ("1-00:00:01", 86_401), ("0", 0)],
)  # fmt: skip
def test_a_time_limit_in_seconds(text, seconds):
    assert slurm.limit_s(text) == seconds


def test_a_time_limit_that_leaves_no_time_to_work_is_refused():
    with pytest.raises(SettingsError, match="is 420 s, and saving begins 420 s before its end") as refused:
        _job(values={"launch.time_limit": "7", "launch.grace_s": 300})
    assert "--set launch.time_limit=67" in refused.value.hint
    assert "--time=8" in _job(values={"launch.time_limit": "8", "launch.grace_s": 300})
    assert "--time=0" in _job(values={"launch.time_limit": "0", "launch.grace_s": 300})


FAKE_SRUN = """\
#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
case "$*" in
  *signal.sh*) "$@" && code=0 || code=$?; echo "asked: $code" >>"$RUN_DIR/asked"; exit "$code" ;;
esac
: >"$RUN_DIR/starting"
until [ -e "$RUN_DIR/go" ]; do sleep 0.05; done # a node takes its time
exec "$@"
"""
RANK = "import time; time.sleep(600)"
SAVING = """
import pathlib, signal, time
def save(*_): pathlib.Path("saving").touch()
signal.signal(signal.SIGTERM, save)
pathlib.Path("trains").touch()
while not pathlib.Path("saved").exists(): time.sleep(0.05)
"""


@contextmanager
def batch_job(run: Path, rank: str) -> Iterator[subprocess.Popen[bytes]]:
    """The batch script at work in `run`, with `rank` as its Python rank; `scontrol` notes what it is asked."""
    request = request_of(values=SLURM, run=run, runtime="")
    request.attempt.mkdir(parents=True)
    (run / "settings.toml").touch()
    script = request.attempt / slurm.JOB_SCRIPT
    script.write_text(slurm.job_script([request], script))
    (request.attempt / signals.NAME).write_text(signals.SCRIPT)
    (request.attempt / "rank.py").write_text(rank)
    start = f"exec {sys.executable} attempts/03-train/rank.py"
    node = f"export GPTOSS_ATTEMPT={request.attempt} LOCAL_RANK=0\ncd {run}\n{start}\n"
    (request.attempt / slurm.NODE_SCRIPT).write_text(node)
    programs = run / "bin"
    programs.mkdir()
    scontrol = '#!/bin/bash\necho "$*" >>"$RUN_DIR/scontrol"\necho NodeAddr=127.0.0.1\n'
    for name, text in (("srun", FAKE_SRUN), ("scontrol", scontrol)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RUN_DIR": str(run),
                   "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_SUBMIT_DIR": str(run)}  # fmt: skip
    job = subprocess.Popen(["bash", str(script)], env=environment)
    try:
        yield job
    finally:
        subprocess.run(["bash", str(request.attempt / signals.NAME), "kill"], capture_output=True)
        job.kill()
        job.wait()


def test_a_signal_that_comes_while_the_step_starts_reaches_its_ranks(tmp_path):
    with batch_job(tmp_path, RANK) as job:
        until((tmp_path / "starting").exists)
        job.send_signal(signal.SIGUSR1)
        until(lambda: (tmp_path / "asked").exists() and "asked: 1" in (tmp_path / "asked").read_text())
        (tmp_path / "go").touch()
        assert job.wait(LIMIT_S) == 0  # else it would train on for ever


@pytest.mark.parametrize(("then", "is_put_back"), [([signal.SIGTERM], False), ([], True)])
def test_who_was_stopped_is_not_put_back_when_the_limit_comes_while_it_saves(tmp_path, then, is_put_back):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (tmp_path / "go").touch()
    with batch_job(tmp_path, SAVING) as job:
        until((tmp_path / "trains").exists)
        for number, asked in enumerate([*then, signal.SIGUSR1], start=1):
            job.send_signal(asked)
            until(lambda number=number: (tmp_path / "asked").exists()
                  and (tmp_path / "asked").read_text().count("asked: 0") == number)  # fmt: skip
        until((tmp_path / "saving").exists)
        (checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
        (tmp_path / "saved").touch()
        assert job.wait(LIMIT_S) == 0
    assert ("requeue 7" in (tmp_path / "scontrol").read_text()) is is_put_back


@pytest.mark.parametrize("report", ["", '{"outcome": "running"}', '{"outcome": "stopped"}'])
def test_a_second_stop_leaves_a_node_alone_whose_ranks_have_left(tmp_path, report):
    """Its torchrun waits for the other nodes; ended by a signal, it would let srun end those that still save."""
    script = tmp_path / signals.NAME
    script.write_text(signals.SCRIPT)
    if report:
        (tmp_path / "rank-0.json").write_text(report)
    ready = f"import pathlib, time; pathlib.Path({str(tmp_path / 'waits')!r}).touch(); time.sleep(600)"
    torchrun = subprocess.Popen([sys.executable, "-c", ready], env={**os.environ, "GPTOSS_ATTEMPT": str(tmp_path)})
    try:
        until((tmp_path / "waits").exists)
        assert subprocess.run(["bash", str(script), "stop"], timeout=LIMIT_S).returncode == 0
        if "stopped" in report:
            # The next signal is the first that it gets.
            torchrun.send_signal(signal.SIGINT)
            assert torchrun.wait(LIMIT_S) != -signal.SIGTERM
        else:
            assert torchrun.wait(LIMIT_S) == -signal.SIGTERM
    finally:
        torchrun.kill()
        torchrun.wait()


FAKE_SLURM = """\
#!/bin/bash
# One job, number 7: in the queue until `over` is there. What was asked is in `asked`.
cd "$FAKE_SLURM" || exit 1
echo "${0##*/} $*" >>asked
case "${0##*/}" in
  sbatch) touch job; echo 7 ;;
  squeue) if [ -e job ] && [ ! -e over ]; then
      case "$*" in
        *--name*) echo "7|$(cat run)" ;;
        *) echo "RUNNING|None|2026-01-01T00:00:00|n1" ;;
      esac
    fi ;;
  scontrol) if [ -e over ]; then echo "JobId=7 JobState=COMPLETED Reason=None ExitCode=0:0 NodeList=n1"; fi ;;
esac
"""


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """A Slurm with one job on PATH; its directory."""
    directory = tmp_path / "fake-slurm"
    directory.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
        (directory / name).write_text(FAKE_SLURM)
        (directory / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(directory))
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def _asked(fake_slurm, program: str) -> int:
    return sum(line.startswith(f"{program} ") for line in (fake_slurm / "asked").read_text().splitlines())


def _end_job(run, fake_slurm) -> None:
    """Let the job's rank report its end, and then the job be over."""
    report = {"rank": 0, "outcome": "finished", "process": None, "result": {}}
    (run.attempt(1, "train") / "rank-0.json").write_text(json.dumps(report))
    (fake_slurm / "over").touch()


def test_a_job_outlives_the_process_that_follows_it(make_run, fake_slurm):
    run = make_run([], **SLURM)
    start.launch(run)
    until(lambda: any("is running on n1" in message for message in messages(run, "queue")))
    follower = run.read_state().job
    follower.send(signal.SIGKILL)
    until(lambda: messages(run, "note") == ["going on with Slurm job 7, which is still there"])
    assert _asked(fake_slurm, "sbatch") == 1 and _asked(fake_slurm, "scancel") == 0
    _end_job(run, fake_slurm)
    assert start.wait(run, LIMIT_S).status is Status.FINISHED


def test_a_job_that_was_submitted_and_never_noted_is_found(make_run, fake_slurm):
    run = make_run([], **SLURM)
    (fake_slurm / "run").write_text(str(run.path))
    start.launch(run)
    until(lambda: any("is running on n1" in message for message in messages(run, "queue")))
    (run.attempt(1, "train") / "slurm.job").unlink()
    supervisor = run.read_state().supervisor
    supervisor.send(signal.SIGKILL)
    until(lambda: not supervisor.is_alive())
    until(lambda: not processes_of(run.path))
    start.resume(run)
    until(lambda: messages(run, "note") == ["going on with Slurm job 7, which is still there"])
    assert _asked(fake_slurm, "sbatch") == 1 and _asked(fake_slurm, "scancel") == 0
    _end_job(run, fake_slurm)
    assert start.wait(run, LIMIT_S).status is Status.FINISHED
