"""Two hosts as network namespaces joined by a bridge, each with its own address and sshd."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.support import need, sh, until

NET = "10.213.7"
ADDRESSES = (f"{NET}.1", f"{NET}.2")


@dataclass(frozen=True)
class Hosts:
    """The hosts' addresses, and a directory for PATH with an ssh that has their keys."""

    addresses: tuple[str, ...]
    bin: Path
    namespaces: tuple[str, ...]


@contextmanager
def hosts(root: Path) -> Iterator[Hosts]:
    """Make the namespaces and start sshd in each. Skips where the kernel or the user forbids it."""
    need("ip", "ssh", "ssh-keygen")
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists():
        pytest.skip("sshd is not installed")
    if os.getuid() != 0:
        pytest.skip("network namespaces need root")
    bridge, names = f"gpt{os.getpid() % 100000}", tuple(f"gptoss-{os.getpid()}-{n}" for n in (1, 2))
    pids: list[Path] = []
    try:
        _network(bridge, names)
        wrapper = _keys(root)
        for name in names:
            pids.append(_sshd(root, sshd, name))
        made = Hosts(addresses=ADDRESSES, bin=wrapper.parent, namespaces=names)
        for address in ADDRESSES:
            until(lambda address=address: sh(str(wrapper), address, "true").returncode == 0, what="for sshd")
        yield made
    finally:
        for pid in pids:
            with suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGTERM)
        for name in names:
            sh("ip", "netns", "delete", name)
        sh("ip", "link", "delete", bridge)


def _network(bridge: str, names: tuple[str, ...]) -> None:
    for left in Path("/sys/class/net").glob("gpt[0-9]*"):
        if left.name.removeprefix("gpt").isdecimal() and not Path("/proc", left.name.removeprefix("gpt")).exists():
            sh("ip", "link", "delete", left.name)  # of a test run that was killed; it has our addresses
    commands = [f"link add {bridge} type bridge", f"addr add {NET}.254/24 dev {bridge}", f"link set {bridge} up"]
    for number, name in enumerate(names, start=1):
        outer = f"{bridge}v{number}"
        commands += [
            f"netns add {name}",
            f"link add {outer} type veth peer name eth0 netns {name}",
            f"link set {outer} master {bridge}",
            f"link set {outer} up",
            f"-n {name} addr add {NET}.{number}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ]
    for command in commands:
        result = sh("ip", *command.split())
        if result.returncode:
            pytest.skip(f"no network namespaces here: ip {command}: {result.stderr.strip()}")


def _keys(root: Path) -> Path:
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "key"))
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "host_key"))
    (root / "authorized_keys").write_text((root / "key.pub").read_text())
    (root / "authorized_keys").chmod(0o600)
    configuration = root / "ssh_config"
    configuration.write_text(
        f"Host *\n  IdentityFile {root / 'key'}\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    wrapper = root / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {configuration} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def _sshd(root: Path, sshd: str, name: str) -> Path:
    Path("/run/sshd").mkdir(exist_ok=True)
    pid, configuration = root / f"{name}.pid", root / f"{name}.conf"
    configuration.write_text(
        f"Port 22\nHostKey {root / 'host_key'}\nPidFile {pid}\nAuthorizedKeysFile {root / 'authorized_keys'}\n"
        "PasswordAuthentication no\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
    )
    result = sh("ip", "netns", "exec", name, sshd, "-f", str(configuration))
    if result.returncode:
        pytest.skip(f"sshd does not start here: {result.stderr.strip()}")
    return pid
