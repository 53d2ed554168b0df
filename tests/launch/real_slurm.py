"""A Slurm cluster of two nodes on this host, with every file of it in one directory."""

from __future__ import annotations

import os
import platform
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.launch.support import need, sh, until

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
SlurmUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
SlurmdTimeout=15
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=60 State=UP
PartitionName=closed Nodes=n[1-2] MaxTime=60 State=DOWN
"""


@contextmanager
def cluster(root: Path) -> Iterator[Path]:
    """Start munged, slurmctld and two slurmd; yield the configuration file. Skips where that cannot be."""
    need("sbatch", "slurmctld", "slurmd", "munged")
    if os.getuid() != 0:
        pytest.skip("slurmctld and slurmd need root")
    configuration = root / "slurm.conf"
    ports = _free_ports(3)
    configuration.write_text(_CONFIGURATION.format(host=platform.node().split(".")[0], root=root, ports=ports))
    for name in ("state", "n1", "n2", "munge"):
        (root / name).mkdir(mode=0o700)
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    try:
        _start_munge(root / "munge")
        sh("slurmctld", "-c", env=environment)
        sh("slurmd", "-N", "n1", env=environment)
        sh("slurmd", "-N", "n2", env=environment)

        def is_up() -> bool:
            return sh("sinfo", "-h", "-p", "debug", "-t", "idle", "-o", "%D", env=environment).stdout.strip() == "2"

        with suppress(AssertionError):
            until(is_up, what="for slurmctld")
        if not is_up():
            pytest.skip("Slurm does not come up here: " + sh("sinfo", env=environment).stdout.strip())
        yield configuration
    finally:
        for path in (root / "slurmctld.pid", root / "n1.pid", root / "n2.pid", root / "munge" / "pid"):
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def _start_munge(directory: Path) -> None:
    key = directory / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = [
        f"--{name}={directory / name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file")
    ]
    result = sh("munged", "--force", *files, f"--seed-file={directory / 'seed'}")
    if result.returncode:
        pytest.skip(f"munged does not start here: {result.stderr.strip()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
