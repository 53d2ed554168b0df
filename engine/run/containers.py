"""What this machine can start containers with, and what of it a container must see."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.launch_settings import LaunchSettings
from engine.paths import expanded
from engine.settings import Settings


def runtime_for(launch: LaunchSettings) -> str:
    """The container program to use; `docker` when none is found, for a script that runs elsewhere."""
    if launch.launcher == "slurm":
        return launch.runtime if launch.runtime in ("pyxis", "apptainer") else ""
    if launch.launcher != "container":
        return ""
    if launch.runtime != "auto":
        return launch.runtime
    if has_docker_engine():
        return "docker"
    return "podman" if shutil.which("podman") else "docker"


def has_docker_engine() -> bool:
    """True when docker is installed and its engine can be asked by this user."""
    if not shutil.which("docker"):
        return False
    if os.environ.get("DOCKER_HOST"):
        return True
    return os.access("/var/run/docker.sock", os.R_OK | os.W_OK)


def caches_for(settings: Settings) -> tuple[Path, ...]:
    """The Hugging Face cache, where a model or a tokenizer comes from the hub."""
    if settings.model.name == "tiny" or settings.model.path:
        return ()
    home = os.environ.get("HF_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (expanded(home) if home else cache / "huggingface",)
