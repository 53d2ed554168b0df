"""What runs measured of themselves on this machine, kept for the plans of later ones.

They lie in `calibration.json` in the state directory, the newest of each kind of job.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from engine.errors import RunError
from engine.paths import make_own, state_root, write_atomic

FILE_NAME = "calibration.json"
VERSION = 2
MAX_KEPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How fast one kind of job ran, how much memory it took, and how the planner's formulas compare."""

    device: str
    """The family of the GPU; for a CPU `cpu of HOST`, as several machines may share a home."""
    world_size: int
    model: str
    goal: str
    layout: str
    job: str
    """What else decides about speed and memory: `plan.job.Job.kind`."""
    tokens_per_s_per_gpu: float | None
    memory_gib: float | None
    speed_ratio: float | None
    """Measured over the formula's tokens/s per GPU; None where there is no formula."""
    memory_ratio: float | None
    """Measured over the formula's peak memory."""
    t: float
    """When it was measured, unix seconds."""

    @property
    def key(self) -> tuple[str, int, str, str, str, str]:
        """What must be the same for a measurement to be the prediction."""
        return (self.device, self.world_size, self.model, self.goal, self.layout, self.job)


def remember(measurement: Measurement, path: Path | None = None) -> None:
    """Keep a measurement, in place of an older one of the same kind. Raises RunError when it cannot be written."""
    path = path or state_root() / FILE_NAME
    others = [one for one in recall(path) if one.key != measurement.key]
    kept = sorted([*others, measurement], key=lambda one: one.t)[-MAX_KEPT:]
    text = json.dumps({"version": VERSION, "measured": [asdict(one) for one in kept]}, indent=1) + "\n"
    try:
        make_own(path.parent)
        write_atomic(path, text)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}", "free some space, or set XDG_STATE_HOME"
        ) from error


def recall(path: Path | None = None) -> tuple[Measurement, ...]:
    """Every measurement that is kept; none from a missing, older, newer or damaged file."""
    path = path or state_root() / FILE_NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["version"] != VERSION:
            return ()
        found = tuple(Measurement(**item) for item in value["measured"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(one for one in found if _is_whole(one))


def _is_whole(one: Measurement) -> bool:
    """Numbers are numbers and texts are texts: a file edited by hand must not end a plan."""
    for field in fields(one):
        value = getattr(one, field.name)
        if field.type == "str":
            good = isinstance(value, str)
        elif value is None:
            good = "None" in str(field.type)
        else:
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e15
        if not good:
            return False
    return True
