"""`run_config.yaml`, by which Bridge builds a checkpoint's model again. Needs PyYAML, which Bridge needs too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.models import Model
from engine.paths import file_text
from engine.workers.stream import bridge_files

NAME = "run_config.yaml"


def read(iteration: Path) -> dict[str, Any] | None:
    """Its content, None when there is none. Raises CheckpointError for a damaged one."""
    import yaml

    path = iteration / NAME
    # libyaml's loader, where PyYAML was built with it, takes a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(file_text(path), Loader=loader)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "convert again") from error
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise CheckpointError(f"{path} is damaged: it describes no model", "convert again")
    return found


def differences(iteration: Path, model: Model) -> list[str]:
    """What Bridge would build otherwise than `model` is, in words. Raises CheckpointError."""
    config = read(iteration)
    if config is None:
        return [f"{NAME} is missing: Bridge can neither train nor export from this checkpoint"]
    found = config["model"]
    expected = bridge_files.run_config(model, "bf16", "")["model"]
    return [
        f"run_config.yaml has {name} = {found[name]!r} and not {expected[name]!r}"
        for name in bridge_files.ARCHITECTURE
        if name in found and found[name] != expected[name]
    ]
