"""distributed_config.env: bash reads back what was written, or it was refused."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import env_file
from engine.errors import SettingsError

FIVE = {"GPUS_PER_NODE": 8, "NUM_NODES": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 6000, "NODE_RANK": 0}


def test_the_file_is_the_tutorial_s():
    assert env_file.render(FIVE) == (
        "GPUS_PER_NODE=8\nNUM_NODES=1\nMASTER_ADDR=localhost\nMASTER_PORT=6000\nNODE_RANK=0\n"
    )


def test_comments_order_and_unknown_keys_stay(tmp_path):
    path = tmp_path / "distributed_config.env"
    path.write_text("# my cluster\nNCCL_DEBUG=INFO\nNODE_RANK=3\n")
    env_file.write(path, FIVE)
    assert path.read_text() == (
        "# my cluster\nNCCL_DEBUG=INFO\nNODE_RANK=0\n"
        "GPUS_PER_NODE=8\nNUM_NODES=1\nMASTER_ADDR=localhost\nMASTER_PORT=6000\n"
    )
    assert env_file.parse(path.read_text())["NCCL_DEBUG"] == "INFO"


@pytest.mark.parametrize(
    "value", ["$(id)", "`id`", "a b", "a;b", "a\nb", "a'b", 'a"b', "a&b", "a|b", "~", "a\\b", "*", ""]
)
def test_what_bash_would_act_on_is_refused(value):
    with pytest.raises(SettingsError, match="MASTER_ADDR"):
        env_file.render({**FIVE, "MASTER_ADDR": value})


@pytest.mark.parametrize("value", ["-1", "08", "1.5", "", "1e3", "99999999999"])
def test_the_counts_are_whole_numbers(value):
    with pytest.raises(SettingsError, match="not a whole number"):
        env_file.render({**FIVE, "NUM_NODES": value})


def test_a_file_that_does_more_than_assign_is_refused(tmp_path):
    path = tmp_path / "distributed_config.env"
    path.write_text("NUM_NODES=1\nrm -rf /\n")
    with pytest.raises(SettingsError, match="line 2"):
        env_file.write(path, FIVE)
    assert path.read_text() == "NUM_NODES=1\nrm -rf /\n"


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_bash_reads_back_what_was_written(tmp_path_factory, value):
    try:
        text = env_file.render({"EXTRA": value})
    except SettingsError:
        return
    path = tmp_path_factory.mktemp("env") / "file.env"
    path.write_text(text)
    seen = subprocess.run(
        ["bash", "-c", 'set -euo pipefail; source "$1"; printf %s "$EXTRA"', "bash", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout == value
