"""podman with an image of empty directories: what runs in it is this machine's own software, mounted."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.support import FAKES, need, sh

NAME = "localhost/gptoss-test:1"


@dataclass(frozen=True)
class Image:
    """The image, and the settings with which it works here."""

    name: str
    settings: dict[str, object]
    environment: dict[str, str]


@contextmanager
def image(root: Path) -> Iterator[Image]:
    """Import the image and try it. Skips where podman cannot start a container."""
    need("podman", "runc")
    configuration = root / "containers.conf"
    configuration.write_text('[engine]\nruntime = "runc"\n')
    environment = {"CONTAINERS_CONF": str(configuration)}
    archive = root / "empty.tar"
    _make_archive(archive)
    imported = sh("env", f"CONTAINERS_CONF={configuration}", "podman", "import", str(archive), NAME)
    if imported.returncode:
        pytest.skip(f"podman cannot import an image here: {imported.stderr.strip()[-200:]}")
    mounts = ["/usr", "/etc", str(FAKES), sys.prefix, sys.base_prefix]
    # Without CAP_SYS_RESOURCE no limit may rise above the caller's.
    limits = "--ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --ulimit memlock=65536 --ulimit stack=8388608"
    made = Image(
        name=NAME,
        settings={
            "launch.launcher": "container",
            "launch.runtime": "podman",
            "launch.image": NAME,
            "launch.mounts": ",".join(f"{path}:{path}:ro" for path in dict.fromkeys(mounts)),
            "launch.container_options": limits,
        },
        environment=environment,
    )
    tried = sh("env", f"CONTAINERS_CONF={configuration}", "podman", "run", "--rm", "--network=host", *limits.split(),
               "--mount", "type=bind,source=/usr,target=/usr", NAME, "true")  # fmt: skip
    if tried.returncode:
        pytest.skip(f"podman cannot start a container here: {tried.stderr.strip()[-200:]}")
    yield made
    sh("podman", "image", "rm", "--force", NAME)


def _make_archive(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "root"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name in ("bin", "lib", "lib64", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
