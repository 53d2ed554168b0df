"""Which machine a verb is about: this one, or one described in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import machine_file
from engine.machine import Machine, detect


def machine_of(arguments: argparse.Namespace) -> Machine:
    """The machine that `--machine FILE` describes, or this one. Raises SettingsError, NotFoundError."""
    described = getattr(arguments, "machine", "")
    return machine_file.load(Path(described).expanduser()) if described else detect()
