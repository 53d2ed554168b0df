"""`run_config.yaml`, by which Bridge builds a checkpoint's model again. Needs PyYAML, which Bridge needs too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.paths import file_text

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
