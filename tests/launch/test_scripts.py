"""The exported scripts: clean, movable, the launchers' own commands, and reviewed as text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from engine import machine_file, presets
from engine.errors import RunError
from engine.launch import container, images, launchers, local
from engine.machine import Machine
from engine.plan.planner import make_plan
from engine.run import commands, exported
from engine.run.directory import RunDirectory
from engine.settings import Settings
from tests.launch.support import need

GOLDEN = Path(__file__).parent / "golden"
PYTHON = "/opt/venv/bin/python"
SHOW = """#!/usr/bin/env python3
import json, os, sys
print("ARGV " + json.dumps(sys.argv))
"""


def _machine(settings: Settings) -> Machine:
    if settings.model.name == "tiny":
        return Machine(cpu_cores=8, ram_gib=64.0)
    gpu = {"count": settings.machine.gpus_per_node or 8, "name": "NVIDIA GB300", "memory_gib": 278.0}
    return machine_file.to_machine(machine_file.describe({"cluster": {"nodes": settings.machine.nodes}, "gpu": gpu}))


def _export(directory: Path, preset: str, **values: object) -> RunDirectory:
    # The tutorial's preset leaves it to the person where the checkout is.
    checkout = "/src/Megatron-LM" if preset == "tutorial" else ""
    chosen = {"launch.python": PYTHON, "launch.runtime": "docker", "launch.megatron_lm": checkout, **values}
    settings = presets.find(preset).settings.with_values(chosen)
    exported.export(settings, make_plan(settings, _machine(settings)), directory)
    return RunDirectory(directory)


def _scripts(directory: Path) -> list[Path]:
    found = [path for path in directory.rglob("*") if path.suffix in (".sh", ".sbatch")]
    return sorted(path for path in found if "source" not in path.relative_to(directory).parts)


@pytest.fixture(scope="module", params=[preset.name for preset in presets.all_presets() if not preset.is_user])
def exported_preset(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, RunDirectory]:
    """The scripts of a shipped preset, and its name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HOME", "XDG_CACHE_HOME"):
            patch.delenv(name, raising=False)
        return request.param, _export(tmp_path_factory.mktemp(request.param) / "scripts", request.param)


def _shellcheck(scripts: list[Path]) -> None:
    need("shellcheck")
    assert scripts
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _typical(run: RunDirectory) -> list[Path]:
    """One script of each kind: nodes, and steps in a queue, differ from one another in a number."""
    ways = ("run.sh", "docker.sh", "apptainer.sh", "enroot.sh")
    where = run.path / "nodes" / "node-0" if (run.path / "nodes").is_dir() else run.path
    train = [path / "node.sh" for path in (run.path / "attempts").glob("*-train")]
    last = sorted((run.path / "nodes").glob("node-*"), key=lambda path: int(path.name[5:]))[-1:]
    every = [*(where / way for way in ways), *(path / "run.sh" for path in last), run.path / "job.sbatch", *train]
    return [path for path in every if path.is_file()]


def test_every_script_of_every_preset_passes_shellcheck(exported_preset):
    _shellcheck(_typical(exported_preset[1]))


def test_a_path_with_everything_in_it_passes_shellcheck(tmp_path):
    run = _export(tmp_path / "it's $(my) directory", "rehearsal")
    _shellcheck(_scripts(run.path))


@pytest.mark.parametrize(
    "values",
    [
        {"launch.launcher": "container"},
        {"launch.launcher": "slurm", "launch.runtime": "pyxis", "launch.requeue": False},
        {"launch.launcher": "slurm", "launch.runtime": "apptainer", "launch.image": "/images/nemo.sif"},
        {"launch.launcher": "ssh", "machine.hosts": "node01,root@node02", "machine.nodes": 2, "machine.cpu_ranks": 1},
    ],
)
def test_what_the_supervisor_writes_passes_shellcheck(values, tmp_path):
    need("shellcheck")
    from engine.run.side_scripts import SideScripts

    settings = presets.find("rehearsal").settings.with_values(values)
    plan = make_plan(settings, _machine(settings))
    run = RunDirectory(tmp_path / "a run")
    for request in commands.all_requests(run, settings, plan):
        request.attempt.mkdir(parents=True)
        SideScripts(launchers.command(request), request.attempt).write()
    done = subprocess.run(["shellcheck", *map(str, _scripts(run.path))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _shown(script: Path, bin_directory: Path) -> list[list[str]]:
    """The argv of every program that the script starts, in order."""
    environment = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}", "PYTHON": "python-shown"}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment, cwd="/", check=True)
    return [json.loads(line.removeprefix("ARGV ")) for line in done.stdout.splitlines() if line.startswith("ARGV ")]


@pytest.mark.parametrize(
    ("name", "build"),
    [("run.sh", local.command), ("docker.sh", container.command), ("apptainer.sh", images.apptainer),
     ("enroot.sh", images.enroot)],
)  # fmt: skip
def test_a_moved_script_starts_exactly_what_the_launcher_would(name, build, tmp_path):
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    for program in ("docker", "apptainer", "enroot", "python-shown"):
        (bin_directory / program).write_text(SHOW)
        (bin_directory / program).chmod(0o755)
    # enroot cannot mount a path with a space, the others can.
    space = "-" if name == "enroot.sh" else " "
    _export(tmp_path / "here" / "mine", "rehearsal")
    moved = RunDirectory(tmp_path / f"moved{space}there" / "mine")
    shutil.move(tmp_path / "here", tmp_path / f"moved{space}there")

    settings = presets.find("rehearsal").settings.with_values(
        {"launch.python": "python-shown", "launch.runtime": "docker",
         "launch.launcher": "local" if build is local.command else "container"}
    )  # fmt: skip
    plan = moved.read_plan()
    port = int(re.search(r"MASTER_PORT=(\d+)", moved.environment.read_text())[1])
    values = commands.environment_values(settings, plan, port)
    requests = [replace(one, by_hand=True) for one in commands.all_requests(moved, settings, plan)]
    expected = [build(request).expanded(values) for request in requests]
    shown = [argv for argv in _shown(moved.path / name, bin_directory) if argv[1] not in ("list", "import", "create")]
    assert [[Path(argv[0]).name, *argv[1:]] for argv in shown] == [list(argv) for argv in expected]


def test_steps_can_be_chosen(tmp_path):
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    (bin_directory / "python-shown").write_text(SHOW)
    (bin_directory / "python-shown").chmod(0o755)
    run = _export(tmp_path / "made", "rehearsal")
    environment = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}", "PYTHON": "python-shown"}
    done = subprocess.run(["bash", str(run.path / "run.sh"), "export"], capture_output=True, text=True, env=environment)
    assert done.stdout.count("ARGV") == 1 and "engine.workers.export" in done.stdout


def test_a_line_break_in_a_name_is_no_command(tmp_path):
    run = _export(tmp_path / "made\ntouch pwned #", "rehearsal", **{"launch.python": "true"})
    for script in _scripts(run.path):
        # sbatch's programs are not here; what stands before them is carried out.
        subprocess.run(["bash", str(script)], capture_output=True, cwd=tmp_path)
    assert not list(tmp_path.rglob("pwned"))
    assert subprocess.run(["bash", str(run.path / "run.sh")], cwd=tmp_path).returncode == 0


def test_no_script_at_all_is_no_success(tmp_path, capsys):
    from gptoss_tui.__main__ import main

    directory = tmp_path / "made"
    assert main(["export-scripts", "--preset", "tutorial", "--output", str(directory)]) == 2
    told = capsys.readouterr().err
    assert "no script can start this run" in told and "--set launch.megatron_lm=DIR" in told
    assert list(directory.iterdir()) == []


@pytest.fixture
def made(tmp_path):
    """Exported scripts whose Python fails in the step that $FAIL names; and how to run them."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    program = bin_directory / "python-shown"
    program.write_text('#!/bin/sh\ncase "$*" in *"engine.workers.$FAIL"*) exit 7 ;; esac\n')
    program.chmod(0o755)
    run = _export(tmp_path / "made", "rehearsal")

    def start(*arguments: str, script: str = "run.sh", **environment: str) -> subprocess.CompletedProcess[str]:
        chosen = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}", "PYTHON": "python-shown", "FAIL": "-"}
        for name in ("MASTER_PORT", "SLURM_SUBMIT_DIR"):
            chosen.pop(name, None)
        return subprocess.run(
            ["bash", str(run.path / script), *arguments],
            capture_output=True, text=True, env=chosen | environment, cwd="/",
        )  # fmt: skip

    return run, start


def test_a_script_that_ends_early_names_the_step(made):
    run, start = made
    assert start().returncode == 0
    for number, step in enumerate(("prepare", "convert", "train", "export", "verify"), start=1):
        done = start(FAIL=step)
        assert done.returncode == 7
        assert (
            f"run.sh: {step} ended with exit code 7; its logs are in {run.path}/attempts/0{number}-{step}"
            in done.stderr
        )


def test_a_step_that_there_is_not_is_no_success(made):
    _, start = made
    done = start("train", "exprot")
    assert done.returncode == 2
    assert "there is no step 'exprot' here; there are: prepare convert train export verify" in done.stderr


def test_what_is_missing_is_named(made):
    run, start = made
    assert "python-nowhere" in (done := start(PYTHON="python-nowhere")).stderr
    assert done.returncode == 127 and "run.sh: prepare ended" in done.stderr
    text = run.environment.read_text()
    run.environment.write_text("\n".join(line for line in text.splitlines() if "MASTER_PORT" not in line))
    done = start("train")
    assert done.returncode != 0
    assert "MASTER_PORT: unbound variable" in done.stderr and "run.sh: train ended" in done.stderr
    run.environment.unlink()
    done = start("train")
    assert done.returncode != 0
    assert "distributed_config.env" in done.stderr and "run.sh: the set-up ended" in done.stderr


def test_a_node_that_takes_part_in_the_training_alone_says_so(tmp_path):
    values = {"machine.nodes": 2, "machine.cpu_ranks": 1, "launch.master_addr": "node01", "launch.python": "true"}
    run = _export(tmp_path / "made", "rehearsal", **values)
    script = run.path / "nodes" / "node-1" / "run.sh"
    done = subprocess.run(["bash", str(script), "export"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no step 'export' here; there are: train" in done.stderr
    assert subprocess.run(["bash", str(script), "train"]).returncode == 0


@pytest.fixture
def queue(made, tmp_path):
    """job.sbatch as Slurm starts it, with programs that stand in for Slurm's."""
    run, start = made
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit ${CODE:-0}\n")
    (tmp_path / "bin" / "scontrol").write_text(
        '#!/bin/sh\ncase "$*" in *hostnames*) echo n1 ;; *node*) echo "$NODE" ;; esac\n'
    )
    for name in ("srun", "scontrol"):
        (tmp_path / "bin" / name).chmod(0o755)

    def submit(**environment: str) -> subprocess.CompletedProcess[str]:
        chosen = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "5", "NODE": "NodeAddr=10.0.0.1 x",
                  "SLURM_SUBMIT_DIR": str(run.path), **environment}  # fmt: skip
        return start(script="job.sbatch", **chosen)

    return run, submit


def test_a_batch_job_names_what_ended_it(queue, tmp_path):
    run, submit = queue
    assert submit().returncode == 0
    assert "MASTER_ADDR=10.0.0.1\n" in (run.path / "attempts" / "03-train" / "job.env").read_text()
    done = submit(CODE="9")
    assert done.returncode == 9
    assert f"job.sbatch: 01-prepare ended with exit code 9; its logs are in {run.path}/attempts/" in done.stderr
    done = submit(SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and "is no run directory: submit from there" in done.stderr
    done = submit(NODE="nothing known")
    assert done.returncode == 1 and "the address of the first node is not known" in done.stderr
    shutil.rmtree(run.path / "attempts" / "02-convert")
    done = submit()
    assert done.returncode == 2 and "02-convert is missing" in done.stderr
    done = submit(SLURM_SUBMIT_DIR="")
    assert done.returncode != 0 and "submit this script with sbatch" in done.stderr


def test_several_nodes_get_a_script_each_that_differs_in_the_rank_alone(tmp_path):
    run = _export(
        tmp_path / "made", "rehearsal", **{"machine.nodes": 2, "machine.cpu_ranks": 1, "launch.master_addr": "node01"}
    )
    files = [(run.path / "nodes" / f"node-{rank}" / "distributed_config.env").read_text() for rank in (0, 1)]
    assert files[0].replace("NODE_RANK=0", "NODE_RANK=1") == files[1]
    assert "NUM_NODES=2\nMASTER_ADDR=node01\n" in files[0]
    scripts = [(run.path / "nodes" / f"node-{rank}" / "run.sh").read_text() for rank in (0, 1)]
    assert "engine.workers.prepare" in scripts[0] and "engine.workers.prepare" not in scripts[1]
    assert "engine.workers.train" in scripts[0] and "engine.workers.train" in scripts[1]


def test_an_address_that_no_other_node_reaches_is_told(tmp_path):
    settings = presets.find("rehearsal").settings.with_values({"machine.nodes": 2, "machine.cpu_ranks": 1})
    notes = exported.export(settings, make_plan(settings, _machine(settings)), tmp_path / "made")[1]
    assert len(notes) == 1 and "--set launch.master_addr=NAME" in notes[0]


def test_a_token_in_the_environment_is_in_no_exported_file(tmp_path, monkeypatch):
    canary = "hf_canary0123456789"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, canary)
    run = _export(tmp_path / "made", "rehearsal")
    assert "HF_TOKEN" in (run.path / "docker.sh").read_text()
    assert not [path for path in run.path.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


def test_a_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(RunError, match="is not empty"):
        _export(tmp_path, "rehearsal")


def _stable(text: str, run: RunDirectory) -> str:
    text = text.replace(str(run.path), "/RUN").replace(str(Path.home()), "/HOME")
    text = re.sub(r"--user \d+:\d+", "--user 1000:1000", text)
    return text


def test_the_scripts_read_as_they_were_reviewed(exported_preset, request):
    """After a wanted change: pytest tests/launch/test_scripts.py --snapshot-update, and read the diff."""
    preset, run = exported_preset
    texts = {
        str(path.relative_to(run.path)).replace("/", "_"): _stable(path.read_text(), run) for path in _typical(run)
    }
    golden = GOLDEN / preset
    if request.config.getoption("update_snapshots"):
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir(parents=True)
        for name, text in texts.items():
            (golden / name).write_text(text)
    assert texts == {path.name: path.read_text() for path in golden.iterdir()}


def test_every_golden_script_is_of_a_preset():
    assert {path.name for path in GOLDEN.iterdir()} == {p.name for p in presets.all_presets() if not p.is_user}


def test_the_verb_says_what_is_missing_and_what_it_wrote(tmp_path, capsys):
    from gptoss_tui.__main__ import main

    assert main(["export-scripts", "--no-input"]) == 2
    assert "--preset NAME is missing" in capsys.readouterr().err
    directory = tmp_path / "made"
    assert main(["export-scripts", "--preset", "rehearsal", "--output", str(directory), "--json", "--no-input"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert str(directory / "run.sh") in facts["files"] and facts["notes"] == []
