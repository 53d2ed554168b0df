"""Cores beside a GPU: a described machine, a driver that is compiled here, and a process that really is pinned."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.workers import affinity

ADDRESS = "0000:1b:00.0"

# Stands in for libcuda.so.1: two devices, the second at ADDRESS, and an error for any other.
FAKE_CUDA = r"""
#include <string.h>
int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return number > 1 ? 101 : 0; }
int cuDeviceGetPCIBusId(char *text, int length, int device) {
  if (length < 13) return 1;
  strcpy(text, device == 41 ? "0000:1B:00.0" : "0000:18:00.0");
  return 0;
}
"""


def _machine(root: Path, *, nodes: str = "0-1", node: str = "1", cores: str = "0-127") -> Path:
    """sysfs of a machine with two sockets and a GPU at ADDRESS."""
    for path, text in (
        (f"sys/bus/pci/devices/{ADDRESS}/numa_node", node),
        ("sys/devices/system/node/online", nodes),
        ("sys/devices/system/node/node1/cpulist", cores),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return root


def test_the_cores_of_the_gpu_s_node_are_found(tmp_path):
    root = _machine(tmp_path, cores="32-63,96-127")
    assert affinity.cores_beside(ADDRESS, root) == (1, frozenset([*range(32, 64), *range(96, 128)]))


@pytest.mark.parametrize(
    "facts", [{"node": "-1"}, {"nodes": "0"}, {"node": "x"}, {"cores": ""}, {"cores": "a-b"}, {"node": "7"}]
)
def test_a_machine_that_does_not_say_pins_nothing(tmp_path, facts):
    assert affinity.cores_beside(ADDRESS, _machine(tmp_path, **facts))[1] == frozenset()
    assert affinity.cores_beside("0000:ff:00.0", tmp_path)[1] == frozenset()


def test_the_driver_is_asked_where_a_device_is(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler to make a driver with")
    (tmp_path / "cuda.c").write_text(FAKE_CUDA)
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, str(tmp_path / "cuda.c")], check=True)
    assert affinity.pci_address(1, library) == ADDRESS
    assert affinity.pci_address(2, library) == ""
    assert affinity.pci_address(0, str(tmp_path / "absent.so")) == ""


def test_a_rank_and_its_threads_are_pinned(tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    root = _machine(tmp_path, cores=f"{allowed[0]},4000")  # one of them is not ours to use
    code = f"""
import os, threading
from pathlib import Path
from engine.workers import affinity
print(affinity.pin("auto", "gpu", lambda number: {ADDRESS!r} if number == 1 else "", Path({str(root)!r})))
threading.Thread(target=lambda: print(sorted(os.sched_getaffinity(0)))).start()
"""
    environment = {**os.environ, "LOCAL_RANK": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == [
        f"pinned to 1 cores of NUMA node 1, beside the GPU at {ADDRESS}",
        str([allowed[0]]),
    ]


@pytest.mark.parametrize(
    ("chosen", "device", "rank"), [("off", "gpu", "0"), ("auto", "cpu", "0"), ("auto", "gpu", None)]
)
def test_nothing_is_done_where_nothing_is_asked_for(chosen, device, rank, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    before = os.sched_getaffinity(0)
    assert affinity.pin(chosen, device, lambda number: pytest.fail("the driver was asked")) == ""
    assert os.sched_getaffinity(0) == before


def test_what_cannot_be_known_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    before = os.sched_getaffinity(0)
    assert affinity.pin("auto", "gpu", lambda number: "", tmp_path).startswith("not pinned: the machine does not say")
    assert os.sched_getaffinity(0) == before
