"""What is found before the start when a launcher cannot work here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.findings import Finding
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import launch_checks
from engine.settings import Settings


def _check(nodes: int = 1, **values: object) -> tuple[Finding, ...]:
    steps = tuple(PlannedStep(name=name, ranks_per_node=1, why="test") for name in ("prepare", "train"))
    plan = Plan(device="cpu", layout=Layout(dp=nodes), ranks_per_node=1, nodes=nodes, steps=steps)
    return launch_checks.check(Settings().with_values({"model.name": "tiny", **values}), plan)


def _program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The only directory on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    return directory


def test_the_local_launcher_needs_nothing(programs):
    assert _check() == ()


def test_settings_that_make_no_command_are_one_error(programs):
    (found,) = _check(nodes=2)
    assert found.key == "launch.settings" and "slurm or ssh" in found.fix and not found.ignorable


@pytest.mark.parametrize(
    ("launcher", "key"), [("container", "container.runtime"), ("slurm", "slurm.sbatch"), ("ssh", "ssh.reach")]
)
def test_a_program_that_is_not_there_is_named(programs, launcher, key):
    values = {"launch.launcher": launcher, "launch.runtime": "auto", "machine.hosts": "node01"}
    found = _check(**values)
    assert [finding.key for finding in found] == [key]
    assert found[0].severity == "error" and found[0].fix


def test_an_engine_that_does_not_answer_is_told_with_its_own_words(programs):
    _program(programs, "docker", "sys.exit('Cannot connect to the Docker daemon')")
    (found,) = _check(**{"launch.launcher": "container"})
    assert found.key == "container.engine" and "Cannot connect to the Docker daemon" in found.what


def test_an_image_that_must_be_fetched_is_a_warning(programs):
    _program(programs, "docker", "sys.exit(sys.argv[1] == 'image')")
    (found,) = _check(**{"launch.launcher": "container"})
    assert found.key == "container.image" and "docker pull nvcr.io/nvidia/nemo" in found.fix


def test_a_mount_that_is_not_there_is_an_error(programs, tmp_path):
    _program(programs, "docker", "sys.exit(0)")
    (found,) = _check(**{"launch.launcher": "container", "data.tokenizer": str(tmp_path / "gone")})
    assert found.key == "container.mount" and "gone" in found.what


def test_slurm_is_asked_about_the_very_job(programs, tmp_path):
    seen = tmp_path / "seen"
    _program(programs, "sbatch", f"open({str(seen)!r}, 'w').write(open(sys.argv[-1]).read())\n"
             "sys.exit('sbatch: error: Invalid account or account/partition')")  # fmt: skip
    (found,) = _check(**{"launch.launcher": "slurm", "launch.account": "lab-7"})
    assert found.key == "slurm.refused" and "Slurm refuses this account" in found.what
    assert "#SBATCH --account=lab-7" in seen.read_text() and "03-train" not in seen.read_text()


def test_a_probe_leaves_nothing_behind(programs, tmp_path):
    _check(**{"launch.launcher": "ssh", "machine.hosts": "node01"})
    assert list((tmp_path / "runs").iterdir()) == []
