"""Why no rank of an attempt started, from what torchrun, ssh and the container's program left in its logs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 65_536
_LOGS = ("launcher.log", "node-*.log", "slurm-*.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What kept the ranks from starting."""

    message: str
    hint: str
    is_curable: bool
    """True when it may have passed by the next try."""


@dataclass(frozen=True, slots=True)
class _Sign:
    pattern: str
    message: str
    hint: str
    is_curable: bool = False


_SIGNS = (
    # torch 2.13 (c10d/TCPStore.cpp, socket.cpp), unchanged since 2.3.
    _Sign(
        r"network addresses of \(([^,]+), \d+\) cannot be retrieved \(gai error",
        "the name {} of the first node is not known on a node",
        "set launch.master_addr to a name or address that every node can look up",
        is_curable=True,
    ),
    _Sign(
        r"Timed out after \d+ seconds waiting for clients\. (\d+)/(\d+) clients joined",
        "only {} of {} nodes came to the rendezvous",
        "look at the other nodes' logs, and whether they reach launch.master_addr",
        is_curable=True,
    ),
    _Sign(
        r"client socket has timed out after \d+ ?ms while trying to connect to \(([^,]+), (\d+)\)",
        "a node did not reach the rendezvous at {}:{}",
        "set launch.master_addr to an address of the first node that every node reaches, and open its ports",
        is_curable=True,
    ),
    _Sign(
        r"EADDRINUSE|[Aa]ddress already in use",
        "the port of the rendezvous is taken on the first node",
        "--set launch.master_port=N with a free one",
        is_curable=True,
    ),
    # OpenSSH.
    _Sign(
        r"ssh: Could not resolve hostname ([^:\s]+)",
        "the host {} is not known here",
        "correct machine.hosts, or use addresses",
    ),
    # docker 27 and podman 4.
    _Sign(
        r"could not select device driver|unresolvable CDI devices|[Ff]ailed to inject devices",
        "the container's program cannot hand GPUs on",
        "install nvidia-container-toolkit; for podman also: nvidia-ctk cdi generate",
    ),
    _Sign(
        r"(?:bind source path does not exist: |(?:statfs|stat) )(/[^\s:]+)",
        "{} does not exist and cannot be mounted",
        "correct the path in the settings",
    ),
    _Sign(
        r"initializing source docker://(\S+?): pinging container registry .*"
        r"(?:no such host|connection refused|i/o timeout|unreachable)",
        "the registry of the image {} does not answer",
        "correct launch.image, or fetch the image where there is a network and load it here",
        is_curable=True,
    ),
    _Sign(
        r"(?:manifest for |pull access denied for |initializing source docker://)(\S+?)(?: not found|, repository|: )",
        "the image {} was not found",
        "correct launch.image; one that needs a login: docker login nvcr.io",
    ),
    _Sign(
        r"short-name \"([^\"]+)\" did not resolve|Error: (\S+): image not known",
        "the image {} was not found",
        "write launch.image with its registry, as nvcr.io/nvidia/nemo:26.08",
    ),
    # apptainer 1.3, pyxis 0.20.
    _Sign(
        r"FATAL:\s+(?:[Cc]ould not open image|[Uu]nable to handle) ([^\s:]+)",
        "the image {} was not found",
        "correct launch.image: a .sif file, or a name with its registry",
    ),
    _Sign(
        r"pyxis: failed to import docker image",
        "the image was not found",
        "correct launch.image: a .sqsh file, or a name with its registry",
    ),
)


def reason(attempt: Path) -> Reason | None:
    """What kept the ranks from starting, and the next thing to try; None when nothing says so."""
    texts = [_end_of(path) for pattern in _LOGS for path in sorted(attempt.glob(pattern))]
    for sign in _SIGNS:
        for text in texts:
            if found := re.search(sign.pattern, text):
                message = sign.message.format(*(group for group in found.groups() if group))
                return Reason(message=message, hint=sign.hint, is_curable=sign.is_curable)
    return None


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
