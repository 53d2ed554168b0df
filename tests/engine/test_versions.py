"""Package versions: read without importing anything, judged against the matrix, mended by one command."""

from __future__ import annotations

import shlex
import stat
import sys
from pathlib import Path

import pytest

from engine import versions
from engine.versions import Installed, check_driver, check_versions, is_within, mend_command, numbers, read_versions

GOOD = {
    "torch": "2.13.0", "megatron-core": "0.19.2", "megatron-bridge": "0.6.2", "transformers": "5.12.1",
    "datasets": "5.2.0", "einops": "0.8.2", "omegaconf": "2.3.1", "pillow": "12.3.0", "psutil": "7.2.0",
    "tensorboard": "2.21.0",
}  # fmt: skip
CONTAINER = GOOD | {
    "torch": "2.13.0a0+git1234", "transformer-engine": "2.16.0+abc", "nvidia-modelopt": "0.42.0",
    "megatron-energon": "7.1", "nvidia-resiliency-ext": "0.6.0",
}  # fmt: skip


def python_with(packages: dict[str, str], **facts: str) -> Installed:
    base = {"python": "3.12.1", "torch_cuda": "13.0", "system_cudnn": "9.21.1"}
    return Installed(executable="/env/bin/python", packages=packages, **(base | facts))  # type: ignore[arg-type]


def keys(installed: Installed, device: str = "cpu") -> list[str]:
    return [finding.key for finding in check_versions(installed, device)]


def test_a_good_set_has_no_findings() -> None:
    assert keys(python_with(GOOD)) == []
    assert keys(python_with(CONTAINER), "gpu") == []


@pytest.mark.parametrize(
    ("changes", "facts", "device", "expected"),
    [
        ({"megatron-core": "0.13.1"}, {}, "cpu", ["packages.pair"]),
        ({"megatron-core": "0.18.0", "megatron-bridge": "0.5.1"}, {}, "cpu", ["packages.untried", "packages.untried"]),
        ({"megatron-core": ""}, {}, "cpu", ["packages.missing"]),
        ({"torch": "2.5.1"}, {}, "cpu", ["packages.old"]),
        ({"torch": "2.14.0"}, {}, "cpu", ["packages.untried"]),
        ({"transformers": "4.51.3"}, {}, "cpu", ["packages.old"]),
        ({"transformers": "5.12.2"}, {}, "cpu", ["packages.untried"]),
        ({"pillow": "", "einops": ""}, {}, "cpu", ["packages.missing"]),
        ({}, {"python": "3.13.0"}, "cpu", ["packages.python-version"]),
        ({"transformer-engine": "2.7.0"}, {}, "gpu", ["packages.old"]),
        ({"transformer-engine": ""}, {}, "gpu", ["packages.missing-gpu"]),
        ({"nvidia-resiliency-ext": "0.4.1"}, {}, "gpu", ["packages.old"]),
        ({"nvidia-resiliency-ext": "0.4.1"}, {}, "cpu", []),
        ({}, {"system_cudnn": "9.12.0"}, "gpu", ["packages.cudnn"]),
        ({}, {"system_cudnn": ""}, "gpu", ["packages.cudnn"]),
        ({"nvidia-cudnn-cu13": "9.20.0.48"}, {"system_cudnn": "8.9.0"}, "gpu", []),
    ],
)
def test_the_matrix(changes: dict[str, str], facts: dict[str, str], device: str, expected: list[str]) -> None:
    packages = {name: version for name, version in (CONTAINER | changes).items() if version}
    found = check_versions(python_with(packages, **facts), device)
    assert [finding.key for finding in found] == expected
    assert all(finding.fix or finding.severity == "info" for finding in found)


def test_a_plain_pip_install_is_explained() -> None:
    (finding,) = check_versions(python_with(GOOD | {"megatron-core": "0.13.1"}), "cpu")
    assert finding.what == "megatron-core 0.13.1 does not go with megatron-bridge 0.6.2, which needs 0.19"
    assert "pip install megatron-bridge" in finding.why
    assert not finding.ignorable


def test_nothing_installed_gives_one_command_for_everything() -> None:
    installed = python_with({"pip": "25.0"})
    (finding,) = check_versions(installed, "cpu")
    assert finding.fix == mend_command(installed)
    first, second = finding.fix.split(" && ")
    assert shlex.split(first)[:4] == ["/env/bin/python", "-m", "pip", "install"]
    assert "torch>=2.13,<2.14" in shlex.split(first)
    assert shlex.split(second)[4:] == ["--no-deps", "megatron-core>=0.19.2,<0.20", "megatron-bridge>=0.6.2,<0.7"]


def test_without_pip_the_command_uses_uv() -> None:
    assert mend_command(python_with({})).startswith("uv pip install --python /env/bin/python ")


@pytest.mark.parametrize(
    ("cuda", "driver", "expected"),
    [
        ("13.0", (13, 0), []),
        ("13.2", (13, 0), []),
        ("12.8", (13, 0), []),
        ("13.0", (12, 8), ["packages.driver"]),
        ("", (13, 0), ["packages.torch-cpu"]),
        ("13.0", None, []),
    ],
)
def test_the_driver_and_torch(cuda: str, driver: tuple[int, int] | None, expected: list[str]) -> None:
    assert [finding.key for finding in check_driver(python_with(GOOD, torch_cuda=cuda), driver)] == expected


@pytest.mark.parametrize(
    ("version", "limits", "expected"),
    [
        ("2.13.0", ">=2.13,<2.14", True),
        ("2.13", ">=2.13.0,<2.14", True),
        ("2.13.0a0+git", ">=2.13,<2.14", True),
        ("2.14", ">=2.13,<2.14", False),
        ("2.9.1", ">=2.13", False),
        ("5.12.1", "<=5.12.1", True),
        ("5.12.1.post1", "<=5.12.1", True),
        ("5.12.2", "<=5.12.1", False),
        ("5.12", "<=5.12.1", True),
        ("1", "", True),
    ],
)
def test_ranges(version: str, limits: str, expected: bool) -> None:
    assert is_within(version, limits) is expected


def test_numbers() -> None:
    assert numbers("2.9.0a0+145a3a7") == (2, 9, 0)
    assert numbers("unknown") == ()


def test_this_interpreter_and_the_same_one_asked_from_outside_agree(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    link.chmod(link.stat().st_mode | stat.S_IXUSR)
    here = read_versions()
    assert here.python == ".".join(map(str, sys.version_info[:3]))
    assert read_versions(str(link)) == here
    assert read_versions(sys.executable) == here


@pytest.mark.parametrize("body", ["#!/bin/sh\necho broken >&2; exit 3\n", "#!/bin/sh\necho '[]'\n", "no program"])
def test_an_interpreter_that_cannot_be_asked(tmp_path: Path, body: str) -> None:
    program = tmp_path / "python"
    program.write_text(body)
    program.chmod(0o755)
    installed = read_versions(str(program))
    assert installed.problem
    (finding,) = check_versions(installed, "cpu")
    assert finding.key == "packages.python"
    assert str(program) in finding.what


def test_a_missing_interpreter() -> None:
    assert "No such file" in read_versions("/nowhere/python").problem


def test_check_reads_and_judges() -> None:
    (finding,) = versions.check("/nowhere/python", "gpu", (13, 0))
    assert finding.key == "packages.python"
