"""Experiment trackers: what Bridge's own loggers are told of W&B and MLflow, and a logger of ours for Trackio."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from typing import Any

from engine.run.directory import RunDirectory
from engine.settings import OPTIONS, Settings

_TRACKIO_PLACES = ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


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


class Trackio:
    """The metrics of a run for Trackio, which Bridge has no logger for. On one rank only."""

    def __init__(self, settings: Settings, run: RunDirectory) -> None:
        """Begin, or go on after a resume; into the run's directory unless the environment names another place."""
        if not any(os.environ.get(name) for name in _TRACKIO_PLACES):
            # Trackio reads it when it is imported.
            os.environ["TRACKIO_DIR"] = str(run.path / "trackio")
        import trackio

        self._trackio = trackio
        chosen = {key: settings.value(key) for key in OPTIONS}
        # It ends the run itself when the process ends, after a stop too.
        trackio.init(project=settings.output.tracker_project, name=run.name, config=chosen, resume="allow", embed=False)

    def log(self, iteration: int, values: Mapping[str, float | None]) -> None:
        """Hand over what was measured; Trackio writes in a thread of its own."""
        self._trackio.log({name: value for name, value in values.items() if value is not None}, step=iteration)


def tell_bridge(state: Any, iteration: int, values: Mapping[str, float]) -> None:
    """Metrics that Bridge does not know, through its loggers, which are there on the last rank."""
    if state.tensorboard_logger is not None:
        for name, value in values.items():
            state.tensorboard_logger.add_scalar(name, value, iteration)
    if state.wandb_logger is not None:
        state.wandb_logger.log(dict(values), iteration)
    if state.mlflow_logger is not None:
        state.mlflow_logger.log_metrics(dict(values), step=iteration)


def open_tracker(settings: Settings, run: RunDirectory) -> Trackio | None:
    """The tracker that Bridge knows no logger for, if it was chosen."""
    return Trackio(settings, run) if settings.output.tracker == "trackio" else None


def _can_upload() -> bool:
    """True when wandb will find a key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
