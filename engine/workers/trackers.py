"""Experiment trackers: what Bridge's own loggers are told of W&B and MLflow."""

from __future__ import annotations

import netrc
import os
from typing import Any

from engine.run.directory import RunDirectory
from engine.settings import Settings


def logger_options(settings: Settings, run: RunDirectory) -> dict[str, Any]:
    """Fields of Bridge's LoggerConfig for the tracker that was chosen.

    Keys are left to the tracker, which takes them from the environment or its own file.
    """
    output = settings.output
    if output.tracker == "wandb":
        if not _can_upload():
            # Without a key wandb would ask for one, or end the training. `wandb sync` uploads it later.
            os.environ.setdefault("WANDB_MODE", "offline")
        return {
            "wandb_project": output.tracker_project,
            "wandb_exp_name": run.name,
            "wandb_save_dir": str(run.path),
        }
    if output.tracker == "mlflow":
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{run.path / 'mlflow.db'}"
        return {
            "mlflow_experiment": output.tracker_project,
            "mlflow_run_name": run.name,
            # Checkpoints are tens of gigabytes; the run directory holds them.
            "mlflow_log_artifacts": False,
        }
    return {}


def _can_upload() -> bool:
    """True when wandb will find a key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
