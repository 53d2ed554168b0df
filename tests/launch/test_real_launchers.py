"""The launchers against the real Slurm, podman and sshd, with a FakePython as the worker."""

from __future__ import annotations

import os
import signal

import pytest

from engine.run import start
from engine.run.directory import read_records
from engine.run.state import Status
from tests.launch.support import is_training, messages, sh, until
from tests.limits import LIMIT_S


@pytest.mark.slurm
def test_slurm_a_step_is_submitted_followed_and_finished(make_run, slurm):
    run = make_run(["finish"], **{"launch.launcher": "slurm"})
    start.launch(run)
    assert start.wait(run, LIMIT_S).status is Status.FINISHED
    told = " ".join(messages(run, "queue"))
    assert "submitted" in told and "completed" in told


@pytest.mark.slurm
def test_slurm_a_stop_reaches_the_ranks_and_resuming_finishes(make_run, slurm):
    run = make_run(["hang", "finish"], **{"launch.launcher": "slurm"})
    start.launch(run)
    until(lambda: is_training(run))
    start.stop(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.STOPPED
    assert state.results == {} and "stopped during train" in state.message
    start.resume(run)
    assert start.wait(run, LIMIT_S).status is Status.FINISHED


@pytest.mark.slurm
def test_slurm_a_stop_takes_a_waiting_job_out_of_the_queue(make_run, slurm):
    run = make_run(["finish"], **{"launch.launcher": "slurm", "launch.slurm_options": "--begin=now+1hour"})
    start.launch(run)
    until(lambda: any("waiting in the queue" in text for text in messages(run, "queue")))
    start.stop(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED
    assert sh("squeue", "--noheader").stdout.strip() == ""


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"launch.partition": "nowhere"}, "Slurm has no such partition"),
        ({"launch.slurm_options": "--nodes=9"}, "not so many"),
        ({"launch.time_limit": "03:00:00"}, "launch.time_limit is longer than the partition allows"),
        ({"launch.slurm_options": "--mem=900G"}, "no node of the partition has what the job asks for"),
    ],
)
def test_slurm_a_refusal_is_told_in_words_and_not_tried_again(make_run, slurm, values, words):
    run = make_run(["finish"], **{"launch.launcher": "slurm"}, **values)
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FAILED
    assert words in state.message
    assert messages(run, "restart") == []


@pytest.mark.slurm
def test_slurm_a_job_cancelled_by_others_is_told(make_run, slurm):
    run = make_run(["hang"], **{"launch.launcher": "slurm", "launch.restarts": 0})
    start.launch(run)
    until(lambda: is_training(run))
    number = (run.attempt(1, "train") / "slurm.job").read_text().strip()
    sh("scancel", number)
    state = start.wait(run, LIMIT_S)
    assert state.status in (Status.FAILED, Status.STOPPED)
    assert any("cancelled" in text or "completed" in text for text in messages(run, "queue"))


@pytest.mark.slurm
def test_slurm_a_lost_supervisor_costs_nothing_the_job_is_followed_again(make_run, slurm):
    run = make_run(["hang"], **{"launch.launcher": "slurm"})
    start.launch(run)
    until(lambda: is_training(run))
    first = (run.attempt(1, "train") / "slurm.job").read_text()
    supervisor = run.read_state().supervisor
    supervisor.send(signal.SIGKILL)
    until(lambda: not supervisor.is_alive())
    start.resume(run)
    until(lambda: (run.attempt(2, "train") / "slurm.job").exists())
    assert (run.attempt(2, "train") / "slurm.job").read_text() == first
    assert "still there" in messages(run, "note")[0]
    start.stop(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED


@pytest.mark.slurm
def test_slurm_kill_ends_the_job(make_run, slurm):
    run = make_run(["ignore-sigterm"], **{"launch.launcher": "slurm"})
    start.launch(run)
    until(lambda: any("running" in text for text in messages(run, "queue")))
    start.kill(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED
    until(lambda: sh("squeue", "--noheader").stdout.strip() == "")


@pytest.mark.podman
def test_podman_a_step_finishes_and_the_files_are_the_person_s(make_run, podman_image, monkeypatch):
    for name, value in podman_image.environment.items():
        monkeypatch.setenv(name, value)
    run = make_run(["finish"], **podman_image.settings)
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED, (run.attempt(1, "train") / "launcher.log").read_text()
    assert (run.attempt(state.attempt, "train") / "rank-0.json").stat().st_uid == os.getuid()


@pytest.mark.podman
def test_podman_an_image_that_is_not_there_is_named_and_not_tried_again(make_run, podman_image, monkeypatch):
    for name, value in podman_image.environment.items():
        monkeypatch.setenv(name, value)
    options = f"{podman_image.settings['launch.container_options']} --pull=never"
    missing = {"launch.image": "registry.invalid/nemo:1", "launch.container_options": options}
    run = make_run(["finish"], **{**podman_image.settings, **missing})
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert (state.status, state.attempt) == (Status.FAILED, 1)
    assert "the image registry.invalid/nemo:1 was not found" in state.message


@pytest.mark.podman
def test_podman_a_stop_reaches_the_rank_inside(make_run, podman_image, monkeypatch):
    for name, value in podman_image.environment.items():
        monkeypatch.setenv(name, value)
    run = make_run(["hang"], **podman_image.settings)
    start.launch(run)
    until(lambda: is_training(run))
    start.stop(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED
    assert '"stopped"' in (run.attempt(1, "train") / "rank-0.json").read_text()


@pytest.mark.podman
def test_podman_kill_leaves_no_container(make_run, podman_image, monkeypatch):
    for name, value in podman_image.environment.items():
        monkeypatch.setenv(name, value)
    run = make_run(["ignore-sigterm"], **podman_image.settings)
    start.launch(run)
    until(lambda: (run.attempt(1, "train") / "rank-0.json").exists())
    start.kill(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED
    assert "gptoss-mine" not in sh("podman", "ps", "--all").stdout


@pytest.fixture
def ssh_settings(two_hosts, monkeypatch):
    monkeypatch.setenv("PATH", f"{two_hosts.bin}:{os.environ['PATH']}")
    return {"launch.launcher": "ssh", "machine.hosts": ",".join(two_hosts.addresses), "machine.nodes": 2}


@pytest.mark.netns
def test_ssh_every_node_starts_with_its_own_rank(make_run, ssh_settings):
    run = make_run(["finish-as-node"], nodes=2, **ssh_settings)
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED, (run.attempt(1, "train") / "launcher.log").read_text()
    seen = {record["node"]: record["address"] for record in read_records(run.path / "nodes.jsonl")}
    assert set(seen) == {"0", "1"}
    assert seen["0"] != seen["1"]


@pytest.mark.netns
def test_ssh_a_stop_reaches_all_nodes(make_run, ssh_settings):
    run = make_run(["hang-as-node"], nodes=2, **ssh_settings)
    start.launch(run)
    until(lambda: len(list(run.attempt(1, "train").glob("rank-*.json"))) == 2)
    start.stop(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED
    for rank in (0, 1):
        assert '"stopped"' in (run.attempt(1, "train") / f"rank-{rank}.json").read_text()


@pytest.mark.netns
def test_ssh_a_node_that_dies_ends_the_others_and_the_step_is_tried_again(make_run, ssh_settings):
    run = make_run(["die-on-node-1", "finish-as-node"], nodes=2, **ssh_settings)
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED
    assert len(messages(run, "restart")) == 1


@pytest.mark.netns
def test_ssh_what_is_wrong_with_the_nodes_is_found_before_the_start(make_run, ssh_settings, tmp_path):
    from engine.run import launch_checks
    from engine.settings import Settings

    run = make_run(["finish"], nodes=2, **ssh_settings)
    plan = run.read_plan()
    values = {"model.name": "tiny", **ssh_settings, "output.directory": str(tmp_path / "shared")}
    good = launch_checks.check(Settings().with_values(values), plan)
    assert [finding for finding in good if finding.severity == "error"] == []
    bad = Settings().with_values({**values, "machine.hosts": "10.213.7.1,10.213.7.77"})
    assert "10.213.7.77 cannot be reached" in launch_checks.check(bad, plan)[0].what
    unshared = Settings().with_values({**values, "launch.master_addr": "10.213.7.99"})
    assert any("cannot reach 10.213.7.99" in finding.what for finding in launch_checks.check(unshared, plan))
