"""What the workers' Python has, whether it fits together, and the command that mends it.

Nothing heavy is imported, here or there: `versions_probe.py` reads package metadata.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.findings import Finding, error, info, warning
from engine.paths import expanded

PROBE_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What one interpreter has."""

    executable: str
    python: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions by package name; absent packages are left out."""
    torch_cuda: str = ""
    """The CUDA that torch was built for; empty for a CPU build."""
    system_cudnn: str = ""
    glibc: str = ""
    problem: str = ""
    """Why the interpreter could not be asked."""

    @property
    def cudnn(self) -> str:
        return self.packages.get("nvidia-cudnn-cu13") or self.packages.get("nvidia-cudnn-cu12") or self.system_cudnn


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One row of the matrix."""

    package: str
    tried: str
    """The range that our tests run with, in pip's words; empty: any version."""
    oldest: tuple[int, ...] = ()
    """Below this it cannot work."""
    why: str = ""
    gpu_only: bool = False


MATRIX = (
    Requirement(package="torch", tried=">=2.13,<2.14", oldest=(2, 6), why="Megatron-Bridge 0.6 declares 2.6"),
    Requirement(package="transformers", tried=">=5.8,<=5.12.1", oldest=(4, 55), why="4.55 brought gpt-oss"),
    Requirement(
        package="megatron-core", tried=">=0.19.2,<0.20", oldest=(0, 15), why="0.15 goes with the first usable Bridge"
    ),
    Requirement(
        package="megatron-bridge",
        tried=">=0.6.2,<0.7",
        oldest=(0, 2),
        why="NVIDIA's container 25.11 is the first that holds gpt-oss",
    ),
    Requirement(package="datasets", tried=">=2.20", why="Megatron-Bridge imports it"),
    Requirement(package="einops", tried="", why="Megatron-Core imports it"),
    Requirement(package="omegaconf", tried=">=2.3", why="Megatron-Bridge imports it"),
    Requirement(package="pillow", tried=">=11,<13", why="Megatron-Bridge imports it and does not declare it"),
    Requirement(package="psutil", tried=">=7,<8", why="Megatron-Core saves no checkpoint without it"),
    Requirement(package="tensorboard", tried=">=2.19,<3", why="Megatron-Bridge imports it"),
    Requirement(
        package="transformer-engine",
        tried=">=2.8",
        oldest=(2, 8),
        why="attention sinks need 2.8 (megatron/core/extensions/transformer_engine.py:1913)",
        gpu_only=True,
    ),
    Requirement(package="nvidia-modelopt", tried="", why="training/train.py:65 imports it", gpu_only=True),
    Requirement(package="megatron-energon", tried="", why="training/config.py imports it", gpu_only=True),
    Requirement(
        package="nvidia-resiliency-ext",
        tried=">=0.5",
        oldest=(0, 5),
        why="training/pretrain.py:19 imports it; Megatron-Core fails on 0.4, which has no __version__",
        gpu_only=True,
    ),
)
_WITHOUT_DEPENDENCIES = ("megatron-core", "megatron-bridge")
CONTAINER = "nvcr.io/nvidia/nemo:26.08"
_SINKS_CUDNN = (9, 13, 1)  # TransformerEngine, fused_attn.cpp


def read_versions(python: str = "") -> Installed:
    """Ask the interpreter at `python` (empty: this one). Never raises: see `Installed.problem`."""
    if not python or _is_this(python):
        from engine import versions_probe

        return _parse(versions_probe.facts())
    source = (Path(__file__).parent / "versions_probe.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run(
            [python, "-c", source], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, cwd="/", check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return Installed(executable=python, problem=str(problem))
    try:
        return _parse(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return Installed(executable=python, problem=f"exit code {done.returncode}: {' '.join(said)}")


def check(python: str = "", device: str = "cpu", driver_cuda: tuple[int, int] | None = None) -> tuple[Finding, ...]:
    """Ask the interpreter of the workers and say what is wrong. `driver_cuda` as in `Machine.cuda_version`."""
    installed = read_versions(python)
    findings = check_versions(installed, device)
    return (*findings, *check_driver(installed, driver_cuda)) if device == "gpu" else findings


def check_versions(installed: Installed, device: str) -> tuple[Finding, ...]:
    """What is missing or does not fit for `device` (`gpu` or `cpu`)."""
    if installed.problem:
        what = f"the Python of the workers cannot be asked: {installed.executable} ({installed.problem})"
        fix = "set launch.python to a Python 3.12 with torch and Megatron, or leave it empty"
        return (error("packages.python", what, "no step can start", fix),)
    misfit = list(_pair(installed))
    # A core that does not go with Bridge needs no second finding about its version.
    rows = [row for row in MATRIX if not (misfit and row.package in _WITHOUT_DEPENDENCIES)]
    findings = [*_python(installed), *misfit, *_rows(installed, device, rows)]
    if device == "gpu":
        findings += _cudnn(installed)
    return tuple(findings)


def check_driver(installed: Installed, driver_cuda: tuple[int, int] | None) -> tuple[Finding, ...]:
    """Whether the driver is new enough for the CUDA that torch was built for."""
    torch = installed.packages.get("torch")
    if not torch:
        return ()
    if not installed.torch_cuda:
        what = f"torch {torch} is built for the CPU"
        return (error("packages.torch-cpu", what, "it sees no GPU", mend_command(installed)),)
    built = numbers(installed.torch_cuda)[:2]
    if driver_cuda is None or built[0] <= driver_cuda[0]:
        return ()  # within one major version newer minors run on older drivers
    what = f"torch {torch} needs CUDA {installed.torch_cuda}, the driver supports {driver_cuda[0]}.{driver_cuda[1]}"
    fix = f"update the NVIDIA driver, or use a container that holds CUDA {driver_cuda[0]}"
    return (error("packages.driver", what, "torch will not see the GPUs", fix),)


def mend_command(installed: Installed) -> str:
    """The command that gives this interpreter a set that works on the CPU.

    Megatron goes without its dependencies: what Bridge 0.6.2 declares resolves to
    megatron-core 0.13.1, or to nothing at all where glibc is older than 2.39.
    """
    base = [f"{row.package}{row.tried}" for row in MATRIX if not row.gpu_only]
    alone = [word for word in base if word.startswith(_WITHOUT_DEPENDENCIES)]
    others = [word for word in base if word not in alone]
    if "pip" in installed.packages:
        install = [installed.executable, "-m", "pip", "install"]
    else:
        install = ["uv", "pip", "install", "--python", installed.executable]
    return f"{shlex.join([*install, *others])} && {shlex.join([*install, '--no-deps', *alone])}"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.9.0a0+git` is (2, 9, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def is_within(version: str, limits: str) -> bool:
    """Whether `version` keeps every limit of `>=2.13,<2.14`."""
    found = numbers(version)
    for limit in filter(None, limits.split(",")):
        operator, bound = limit[:2].rstrip("0123456789"), numbers(limit.lstrip("<>="))
        padded = found + (0,) * (len(bound) - len(found))
        if operator == ">=" and padded < bound:
            return False
        if operator == "<" and padded >= bound:
            return False
        if operator == "<=" and padded[: len(bound)] > bound:
            return False
    return True


def _is_this(python: str) -> bool:
    # Not the resolved file: a virtual environment's python is a link to the one it was made from.
    return expanded(python).absolute() == Path(sys.executable).absolute()


def _parse(facts: Mapping[str, Any]) -> Installed:
    return Installed(
        executable=str(facts["executable"]),
        python=str(facts["python"]),
        packages=dict(facts["packages"]),
        torch_cuda=str(facts["torch_cuda"]),
        system_cudnn=str(facts["system_cudnn"]),
        glibc=str(facts["glibc"] or ""),
    )


def _python(installed: Installed) -> Iterator[Finding]:
    if numbers(installed.python)[:2] != (3, 12):
        what = f"the workers' Python is {installed.python}; Megatron-Bridge 0.6 takes 3.12 only"
        yield error(
            "packages.python-version", what, "it cannot be installed there", "uv venv --python 3.12", ignorable=True
        )


def _pair(installed: Installed) -> Iterator[Finding]:
    """Bridge 0.N is written for core 0.(N+13); NVIDIA's containers 25.11 to 26.08 all hold such pairs."""
    core, bridge = (installed.packages.get(name, "") for name in _WITHOUT_DEPENDENCIES)
    if not core or not bridge or numbers(bridge)[:1] != (0,):
        return
    wanted = (0, numbers(bridge)[1] + 13)
    if numbers(core)[:2] != wanted:
        what = f"megatron-core {core} does not go with megatron-bridge {bridge}, which needs 0.{wanted[1]}"
        why = "plain `pip install megatron-bridge` resolves to a core that is years old; importing it fails"
        yield error("packages.pair", what, why, mend_command(installed))


def _rows(installed: Installed, device: str, matrix: Sequence[Requirement]) -> Iterator[Finding]:
    rows = [row for row in matrix if device == "gpu" or not row.gpu_only]
    yield from _missing(installed, [row for row in rows if not _version(installed, row)])
    for row in rows:
        version = _version(installed, row)
        if not version:
            continue
        fix = _gpu_fix(installed) if row.gpu_only else mend_command(installed)
        if row.oldest and numbers(version) < row.oldest:
            what = f"{row.package} {version} is too old; it takes {'.'.join(map(str, row.oldest))} or newer"
            yield error("packages.old", what, row.why, fix)
        elif not is_within(version, row.tried):
            what = f"{row.package} {version} is outside of what was tried: {row.tried}"
            yield warning("packages.untried", what, "it may work; nobody has checked", fix)


def _missing(installed: Installed, rows: list[Requirement]) -> Iterator[Finding]:
    base = [row.package for row in rows if not row.gpu_only]
    if base:
        what = f"{installed.executable} lacks {', '.join(base)}"
        why = "the steps run in that Python" + ("" if len(base) > 1 else f": {rows[0].why}")
        yield error("packages.missing", what, why, mend_command(installed))
    gpu = [row.package for row in rows if row.gpu_only]
    if gpu:
        what = f"{installed.executable} lacks {', '.join(gpu)}, needed for training on GPUs"
        why = "; ".join(row.why for row in rows if row.gpu_only)
        yield error("packages.missing-gpu", what, why, _gpu_fix(installed))


def _gpu_fix(installed: Installed) -> str:
    """GPU packages: compiled ones, so NVIDIA's container first."""
    old = numbers(installed.glibc.rpartition(" ")[2])[:2] < (2, 39)
    note = "; nvidia-resiliency-ext has wheels for glibc 2.39 or newer only, here it is older" if old else ""
    return f"use NVIDIA's container ({CONTAINER}), which holds them all{note}"


def _version(installed: Installed, row: Requirement) -> str:
    if row.package == "transformer-engine":
        found = installed.packages.get("transformer-engine") or installed.packages.get("transformer-engine-torch")
        return found or ""
    return installed.packages.get(row.package, "")


def _cudnn(installed: Installed) -> Iterator[Finding]:
    if not installed.cudnn:
        what = "the version of cuDNN is not known"
        yield info("packages.cudnn", what, "attention sinks need 9.13.1 for the fast kernels")
    elif numbers(installed.cudnn) < _SINKS_CUDNN:
        what = f"cuDNN {installed.cudnn} is too old for attention sinks; the fused kernels need 9.13.1"
        why = "attention falls back to the slow kernel, which keeps every score in memory"
        yield warning("packages.cudnn", what, why, f"use NVIDIA's container ({CONTAINER})")
