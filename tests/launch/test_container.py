"""The container command, and its life with a FakeDocker (podman has a test with real containers)."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from engine.errors import SettingsError
from engine.launch import container
from engine.launch_settings import LaunchSettings
from engine.processes import ProcessId
from engine.run import start
from engine.run.state import Status
from tests.launch.support import FAKES, is_training, request_of, until


def _argv(**changes):
    values = {"launch.launcher": "container", **changes.pop("values", {})}
    return container.command(request_of(values=values, **changes)).expanded()


def test_the_command_has_what_the_tutorial_s_has_and_what_it_lacks():
    argv = _argv()
    text = " ".join(argv)
    assert argv[:2] == ("docker", "run")
    for part in ("--rm", "--gpus all", "--ipc=host", "--ulimit memlock=-1", "--user 1000:1000", "--init",
                 "--detach-keys ctrl-@,ctrl-@", "--mount type=bind,source=/runs/mine,target=/runs/mine",
                 "--workdir /runs/mine", "--env HF_TOKEN ", "nvcr.io/nvidia/nemo:26.08 /opt/python -m"):  # fmt: skip
        assert part in text


def test_podman_is_told_in_its_own_words():
    text = " ".join(_argv(runtime="podman"))
    assert "--device nvidia.com/gpu=all" in text and "--userns=keep-id" in text and "--ulimit=host" in text
    assert "--gpus" not in text and "--user " not in text


def test_the_cpu_asks_for_no_gpu():
    assert "--gpus" not in _argv(device="cpu")


@pytest.mark.parametrize(
    ("path", "mounted"), [("/data/web/*/a.jsonl", ["/data/web"]), ("/data/a.jsonl", ["/data/a.jsonl"]), ("hf:a/b", [])]
)
def test_of_a_pattern_its_directory_is_mounted_and_of_a_dataset_on_the_hub_nothing(path, mounted):
    argv = _argv(values={"data.source": "text", "data.path": path})
    mounts = [argv[i + 1] for i, word in enumerate(argv) if word == "--mount"]
    assert [mount.split(",")[1].removeprefix("source=") for mount in mounts] == ["/runs/mine", *mounted]


def test_everything_that_the_step_reads_is_mounted_once():
    values = {
        "model.path": "/models/20b",
        "data.source": "prefix",
        "data.path": "/data/web/text_document",
        "data.tokenizer": "/models/20b/tokenizer",
        "launch.mounts": "/scratch:/scratch, /ro:/inside:ro",
    }
    argv = _argv(values=values, caches=(Path("/home/me/.cache/huggingface"),))
    mounts = [argv[i + 1] for i, word in enumerate(argv) if word == "--mount"]
    assert mounts == [
        "type=bind,source=/runs/mine,target=/runs/mine",
        "type=bind,source=/home/me/.cache/huggingface,target=/home/me/.cache/huggingface",
        "type=bind,source=/models/20b,target=/models/20b",
        "type=bind,source=/data/web,target=/data/web",
        "type=bind,source=/scratch,target=/scratch",
        "type=bind,source=/ro,target=/inside,readonly",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"launch.image": "--privileged"}, "does not name an image"),
        ({"launch.image": "a b"}, "does not name an image"),
        ({"launch.mounts": "/only-one"}, "is not SOURCE:TARGET"),
        ({"launch.mounts": "/a:relative"}, "is not SOURCE:TARGET"),
        ({"launch.mounts": "/a:/b:rx"}, "is not SOURCE:TARGET"),
        ({"model.path": "/a,b"}, "cannot be mounted"),
        ({"model.path": "/a:b"}, "cannot be mounted"),
        ({"launch.container_options": "rm -rf /"}, "is no option"),
        ({"launch.container_options": "--label 'open"}, "No closing quotation"),
    ],
)
def test_what_a_container_cannot_be_started_with_is_refused(values, words):
    with pytest.raises(SettingsError, match=words):
        _argv(values=values)


def test_every_attempt_has_a_name_of_its_own():
    names = {request_of(attempt=Path(f"/runs/mine/attempts/0{n}-train")).name for n in (1, 2)}
    assert names == {"gptoss-mine-01-train", "gptoss-mine-02-train"}
    assert request_of(run=Path("/runs/my run")).name == "gptoss-my-run-03-train"


def test_images_are_those_of_the_route():
    assert container.image_for(LaunchSettings()) == "nvcr.io/nvidia/nemo:26.08"
    assert container.image_for(LaunchSettings(route="tutorial")) == "nvcr.io/nvidia/pytorch:25.12-py3"


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A FakeDocker on PATH; its log."""
    directory = tmp_path / "docker"
    directory.mkdir()
    client = directory / "docker"
    client.write_text(f"#!{sys.executable}\n" + (FAKES / "fake_docker.py").read_text())
    client.chmod(0o755)
    log = directory / "log.jsonl"
    log.write_text("")
    monkeypatch.setenv("FAKE_DOCKER_LOG", str(log))
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return log


def _calls(log: Path) -> list[str]:
    return [json.loads(line)[0] for line in log.read_text().splitlines()]


CONTAINER = {"launch.launcher": "container", "launch.runtime": "docker"}


def test_a_run_finishes_in_a_container_that_sees_no_more_than_it_should(make_run, docker, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "canary")
    run = make_run(["finish"], **CONTAINER)
    start.launch(run)
    assert start.wait(run, 60).status is Status.FINISHED
    assert _calls(docker) == ["run"]
    assert (run.path / "source" / "engine" / "workers" / "train.py").is_file()
    assert not (run.path / "source" / "engine").is_symlink()


def test_a_stop_goes_through_docker_to_the_rank(make_run, docker):
    run = make_run(["hang"], **CONTAINER)
    start.launch(run)
    until(lambda: is_training(run))
    start.stop(run)
    assert start.wait(run, 60).status is Status.STOPPED
    assert _calls(docker)[:2] == ["run", "exec"]
    assert '"stopped"' in (run.attempt(1, "train") / "rank-0.json").read_text()


def test_kill_removes_the_container(make_run, docker):
    run = make_run(["ignore-sigterm"], **CONTAINER)
    start.launch(run)
    until(lambda: (run.attempt(1, "train") / "rank-0.json").exists())
    start.kill(run)
    assert start.wait(run, 60).status is Status.STOPPED
    assert "rm" in _calls(docker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_run_whose_share_is_gone_ends_its_container(number, make_run, docker):
    run = make_run(["ignore-sigterm"], **CONTAINER, **{"launch.grace_s": 1})
    start.launch(run)
    report = run.attempt(1, "train") / "rank-0.json"
    until(report.exists)
    rank = ProcessId.from_json(json.loads(report.read_text())["process"])
    supervisor = run.read_state().supervisor
    away = run.path.with_name("away")
    run.path.rename(away)
    supervisor.send(number)
    until(lambda: not rank.is_alive())
    until(lambda: not supervisor.is_alive())
    assert "rm" in _calls(docker)


def test_kill_does_not_need_the_record_of_the_run(make_run, docker, monkeypatch):
    run = make_run(["ignore-sigterm"], **CONTAINER)
    start.launch(run)
    report = run.attempt(1, "train") / "rank-0.json"
    until(report.exists)
    rank = ProcessId.from_json(json.loads(report.read_text())["process"])
    real = Path.read_text

    def read_text(path: Path, *arguments: object, **named: object) -> str:
        if path == run.state:
            raise OSError(116, "Stale file handle")
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read_text)
        assert start.find("mine").path == run.path
        start.kill(run)
    until(lambda: not rank.is_alive())
    assert start.wait(run, 60).status is Status.STOPPED


def test_a_token_reaches_the_container_and_no_file_and_no_argv(make_run, docker, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789")
    run = make_run(["finish"], **CONTAINER)
    start.launch(run)
    assert start.wait(run, 60).status is Status.FINISHED
    assert "hf_canary" not in docker.read_text()
    assert not [path for path in run.path.rglob("*") if path.is_file() and b"hf_canary" in path.read_bytes()]
