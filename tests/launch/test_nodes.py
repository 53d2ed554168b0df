"""Hosts as people write them, and what their answers mean. Real hosts are in test_real_launchers.py."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from engine.errors import NotFoundError, SettingsError
from engine.launch import launchers, probe
from engine.launch.probe import Answer
from engine.run import hosts, reports
from tests.launch.support import request_of

GOOD = {"time": "1000.0", "gpus": "8", "shared": "token", "master": "free", "python": "3.12.1", "torch": "2.13.0"}


def test_hosts_from_a_list_or_a_file(tmp_path):
    assert hosts.read("node01, root@10.0.0.2") == ("node01", "root@10.0.0.2")
    path = tmp_path / "hosts"
    path.write_text("# rack 7\nnode01 slots=8\n\nnode02 # the new one\n")
    assert hosts.read(str(path)) == ("node01", "node02")


@pytest.mark.parametrize(
    "text", ["", ",", "-oProxyCommand=touch hit", "a b", "node01;id", "node01,node01", "$(id)", "a@b@c"]
)
def test_what_is_no_host_is_refused(text):
    with pytest.raises(SettingsError):
        hosts.read(text)


def test_a_missing_hosts_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="there is no hosts file"):
        hosts.read(str(tmp_path / "none"))


def _ssh(**changes):
    values = {"launch.launcher": "ssh"}
    return launchers.command(request_of(values=values, nodes=2, **{"hosts": ("node01", "me@node02"), **changes}))


def test_each_node_has_an_env_file_that_differs_in_the_rank_alone():
    files = _ssh().files
    assert files["node-0.env"].replace("NODE_RANK=0", "NODE_RANK=1") == files["node-1.env"]
    assert "node-1.env" in files["node-1.sh"]


def test_a_small_step_runs_on_the_first_node_alone():
    command = _ssh(step="convert", uses_all_ranks=False)
    assert sorted(command.files) == ["node-0.env", "node-0.sh"]
    assert "node02" not in "".join(command.before)


def test_hosts_and_plan_must_agree():
    with pytest.raises(SettingsError, match="names 1 hosts and the plan has 2 nodes"):
        _ssh(hosts=("node01",))


def _judge(*answers: Answer) -> list[str]:
    found = probe.judge(answers, token="token", gpus=8, address="node01", port=29500)
    return [finding.what for finding in found]


def _answer(host: str, **changes: str) -> Answer:
    return Answer(host=host, asked_at=1000.0, facts={**GOOD, **changes})


def test_nodes_that_agree_are_not_accused():
    assert _judge(_answer("node01"), _answer("node02")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared": ""}, "node02 does not see the run's directory"),
        ({"time": "1005.5"}, "the clocks of node01 and node02 are 5.5 s apart"),
        ({"gpus": "4"}, "node02 has 4 GPUs and the plan uses 8 a node"),
        ({"torch": "2.9.0"}, "torch is 2.13.0 on most nodes, but 2.9.0 on node02"),
        ({"python": "/x cannot be started"}, "/x cannot be started on node02"),
        ({"master": "open"}, "port 29500 of node01 is taken"),
        ({"master": "No route to host"}, "node02 cannot reach node01, the first node's address: No route to host"),
    ],
)
def test_what_differs_is_named(changes, words):
    assert any(words in what for what in _judge(_answer("node01"), _answer("node02", **changes)))


@pytest.mark.parametrize(
    ("failure", "fix"),
    [
        ("root@node02: Permission denied (publickey).", "ssh-copy-id node02"),
        ("ssh: Could not resolve hostname node02: Name or service not known", "machine.hosts"),
        ("ssh: connect to host node02 port 22: Connection refused", "ssh -o BatchMode=yes node02 true"),
    ],
)
def test_a_node_that_cannot_be_asked_is_named_with_its_cure(failure, fix):
    found = probe.judge(
        [_answer("node01"), Answer(host="node02", failure=failure)], token="t", gpus=0, address="a", port=1
    )
    assert len(found) == 1 and failure in found[0].what and fix in found[0].fix


def test_a_login_banner_is_passed_over():
    assert probe.parse("Welcome = to node01\ntime=5.0\ngpus= 8 \nnonsense\n") == {"time": "5.0", "gpus": "8"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        # torch 2.13.0
        ("launcher.log", "DistStoreError: Timed out after 301 seconds waiting for clients. 1/2 clients joined.",
         "only 1 of 2 nodes came to the rendezvous"),
        ("node-1.log", "DistNetworkError: The client socket has timed out after 300000ms while trying to connect to "
         "(10.0.0.1, 28124).", "a node did not reach the rendezvous at 10.0.0.1:28124"),
        ("slurm-7.log", "RuntimeError: The server socket has failed to listen on any local network address. "
         "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use", "is taken on the first node"),
        ("node-1.log", "[W socket.cpp:764] [c10d] The IPv6 network addresses of (node09.invalid, 29555) cannot be "
         "retrieved (gai error: -2 - Name or service not known).\nDistNetworkError: The client socket "
         "has timed out after 12000ms while trying to connect to (node09.invalid, 29555).",
         "the name node09.invalid of the first node is not known on a node"),
        ("node-1.log", "ssh: Could not resolve hostname node09: Name or service not known",
         "the host node09 is not known here"),
        ("launcher.log", 'docker: Error response from daemon: could not select device driver "" with capabilities: '
         "[[gpu]].", "cannot hand GPUs on"),
        ("launcher.log", "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all",
         "cannot hand GPUs on"),
        ("launcher.log", 'docker: Error response from daemon: invalid mount config for type "bind": bind source path '
         "does not exist: /data/gone", "/data/gone does not exist and cannot be mounted"),
        ("launcher.log", "Error: statfs /data/gone: no such file or directory", "/data/gone does not exist"),
        ("launcher.log", "docker: Error response from daemon: manifest for nvcr.io/nvidia/nemo:99 not found: manifest "
         "unknown", "the image nvcr.io/nvidia/nemo:99 was not found"),
        ("launcher.log", "docker: Error response from daemon: pull access denied for my/image, repository does not "
         "exist or may require 'docker login'", "the image my/image was not found"),
        ("launcher.log", "Error: initializing source docker://registry.invalid/foo:1: pinging container registry "
         'registry.invalid: Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid: no such host',
         "the registry of the image registry.invalid/foo:1 does not answer"),
        ("launcher.log", "Error: initializing source docker://quay.io/foo:1: reading manifest 1 in quay.io/foo: "
         "unauthorized: access to the requested resource is not authorized", "the image quay.io/foo:1 was not found"),
        ("launcher.log", 'Error: short-name "nemo:26" did not resolve to an alias', "the image nemo:26 was not found"),
        ("slurm-7.log", "FATAL:   could not open image /images/nemo.sif: failed to retrieve path: lstat: no such file",
         "the image /images/nemo.sif was not found"),
        ("slurm-7.log", "pyxis: failed to import docker image\nslurmstepd: error", "the image was not found"),
        ("launcher.log", "something else", "no rank started (return code 1)"),
    ],
)  # fmt: skip
def test_ranks_that_never_started_are_told_why(tmp_path, name, text, words):
    (tmp_path / name).write_text(f"Traceback (most recent call last):\n{text}\n")
    verdict = reports.judge(tmp_path, 2, 1)
    assert words in verdict.message and verdict.hint
    # What a person must correct is not tried again and again.
    assert verdict.is_curable is not any(
        word in verdict.message for word in ("was not found", "mounted", "GPUs", "here")
    )


FAKE_SSH = """\
#!/bin/bash
# As sshd does: joins the words and gives them to a shell.
while [ "$1" != -- ]; do shift; done
shift 2
exec sh -c "$*"
"""


def test_nodes_are_cleared_without_reading_the_share(tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text(FAKE_SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gone = tmp_path / "a run's share"
    request = request_of(run=gone, hosts=("n1", "n2"), nodes=2, values={"launch.launcher": "ssh"})
    command = launchers.command(request)
    rank = subprocess.Popen(["sleep", "600"], env={"GPTOSS_ATTEMPT": str(request.attempt)})
    other = subprocess.Popen(["sleep", "600"], env={"GPTOSS_ATTEMPT": f"{request.attempt}-other"})
    try:
        script = command.at_once(command.kill, gone)
        assert subprocess.run(["bash", "-c", script], timeout=60).returncode == 0
        assert rank.wait(60) == -signal.SIGKILL
        assert other.poll() is None
        assert subprocess.run(["bash", "-c", script], timeout=60).returncode == 1
    finally:
        for process in (rank, other):
            process.kill()
            process.wait()
