"""Any text that `env_file` accepts does to bash exactly what it says, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import env_file, imports
from engine.errors import SettingsError

# What a file may contain, weighted towards what has fooled other parsers.
KEY = st.sampled_from(
    ["A", "NCCL_DEBUG", "NODE_RANK", "_x", "UID", "RANDOM", "IFS", "PATH", "LC_ALL", "a1", "PS4", "SECONDS", "LINENO",
     "BASH_ENV", "PYTHONPATH", "OPTIND", "HOSTNAME", "COLUMNS", "TERM", "NCCL_SOCKET_IFNAME", "1A", "A-B", "A[0]", "é"]
)  # fmt: skip
VALUE = st.text(
    st.sampled_from(list("abc019._:/@%+,-=~$(){}[]`'\"\\;&|<>*?!# \t\r\x0b\x0c\x1c\x85\u2028\xa0^")), max_size=8
)
LINE = st.one_of(
    st.builds("{}={}".format, KEY, VALUE),
    st.builds("{}{}={}".format, st.sampled_from([" ", "\t", "\xa0", "\ufeff", "export ", "\\\n"]), KEY, VALUE),
    VALUE,
    st.builds("#{}".format, VALUE),
)
TEXT = st.builds("".join, st.lists(st.builds("{}{}".format, LINE, st.sampled_from(["\n", "\r\n", "\r", "\x0c", ""]))))
SHOW = r"""
set -euo pipefail
shopt -s extglob
before="$(compgen -v | sort)"
source "$1" >"$1.out" 2>&1
after="$(compgen -v | sort)"
shift
for key in "$@"; do printf '%s\0' "${!key}"; done
printf 'NEW:%s\0' "$(comm -13 <(echo "$before") <(echo "$after") | grep -vxE 'before|PIPESTATUS|_' | tr '\n' ' ')"
"""


def _source(path: Path, keys: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", SHOW, "bash", str(path), *keys],
        capture_output=True, cwd=path.parent, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def _check(text: str, directory: Path) -> bool:
    """True when the text was accepted and bash agrees."""
    try:
        values = env_file.parse(text)
    except SettingsError:
        return False
    path = directory / "file.env"
    path.write_bytes(text.encode())
    done = _source(path, list(values))
    assert done.returncode == 0, done.stderr
    *seen, new = done.stdout.decode().split("\0")[:-1]
    assert seen == list(values.values())
    assert set(new.removeprefix("NEW:").split()) <= set(values)
    assert (directory / "file.env.out").read_bytes() == b""
    assert {entry.name for entry in directory.iterdir()} == {"file.env", "file.env.out"}
    return True


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
def test_what_is_accepted_is_what_bash_reads(tmp_path, text):
    _check(text, tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "B1", "NCCL_DEBUG", "NODE_RANK"]), st.from_regex(r"[0-9]{1,3}", fullmatch=True))
    )
)
def test_plain_files_are_accepted(tmp_path, pairs):
    text = "# a comment\n\n" + "".join(f"  {key}={int(value)}\n" for key, value in pairs)
    assert _check(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["A=1\x0bB=2", "A=1\x0cB=2\n", "A=1\u2028B=2\n", "\xa0A=1\n", "A=1\r\n", "\ufeffA=1\n", "A=1;touch hit\n",
     "export A=1\n", "A=~\n", "A+=1\n", "A=(1)\n", "A=1 touch hit\n", "A=$(touch hit)\n", "A=`touch hit`\n",
     "PATH=/tmp\n", "LD_PRELOAD=x\n", "UID=0\n", "RANDOM=1\n", "BASH_ENV=/tmp/x\n", "A=1\0\n",
     "MASTER_PORT=6000 \nB = 2\n", "A=\\\nB\n"],
)  # fmt: skip
def test_what_bash_reads_otherwise_is_refused(text):
    with pytest.raises(SettingsError):
        env_file.parse(text)


def test_an_existing_file_becomes_settings_and_comes_back(tmp_path):
    text = (
        "# rack 7\nNCCL_IB_HCA=mlx5\nGPUS_PER_NODE=4\nNUM_NODES=2\nMASTER_ADDR=node01\nMASTER_PORT=6000\nNODE_RANK=1\n"
    )
    path = tmp_path / "mine.env"
    path.write_text(text)
    assert imports.read([path]).values == {
        "machine.gpus_per_node": 4, "machine.nodes": 2, "launch.master_addr": "node01", "launch.master_port": 6000,
        "launch.node_rank": 1, "launch.env_file": str(path),
    }  # fmt: skip
    assert env_file.render({"NODE_RANK": 0}, text) == text.replace("NODE_RANK=1", "NODE_RANK=0")


def test_a_key_that_stands_twice_is_written_once(tmp_path):
    assert env_file.render({"NODE_RANK": 2}, "NODE_RANK=0\nA=1\nNODE_RANK=1\n") == "NODE_RANK=2\nA=1\n"


def test_a_run_keeps_the_file_it_was_given(make_run, tmp_path):
    path = tmp_path / "cluster.env"
    path.write_text("# rack 7\nNCCL_DEBUG=INFO\nMASTER_PORT=6000\n")
    run = make_run(["finish"], **{"launch.env_file": str(path)})
    kept = run.environment.read_text()
    assert kept.startswith("# rack 7\nNCCL_DEBUG=INFO\nMASTER_PORT=29500\n")
    assert env_file.parse(kept)["NODE_RANK"] == "0"
