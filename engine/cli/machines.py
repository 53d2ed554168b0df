"""Which machine a verb is about: this one, or one described in a file."""

from __future__ import annotations

import argparse

from engine import machine_file
from engine.machine import Machine, detect
from engine.paths import expanded


def machine_of(arguments: argparse.Namespace) -> Machine:
    """The machine that `--machine FILE` describes, or this one. Raises SettingsError, NotFoundError."""
    described = getattr(arguments, "machine", "")
    return machine_file.load(expanded(described)) if described else detect()
