"""Hosts as people write them, and what their answers mean. Real hosts are in test_real_launchers.py."""

from __future__ import annotations

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
        ("launcher.log", "something else", "no rank started (return code 1)"),
    ],
)  # fmt: skip
def test_nodes_that_did_not_meet_are_told_so(tmp_path, name, text, words):
    (tmp_path / name).write_text(f"Traceback (most recent call last):\n{text}\n")
    verdict = reports.judge(tmp_path, 2, 1)
    assert words in verdict.message and verdict.hint
