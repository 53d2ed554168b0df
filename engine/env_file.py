"""`distributed_config.env`: exactly what the tutorial's training script sources.

The file is sourced by bash, so a value that bash would do anything with is refused, not quoted:
the tutorial's own script does not expect quotes either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from engine.errors import SettingsError
from engine.paths import write_atomic

KEYS = ("GPUS_PER_NODE", "NUM_NODES", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
"""The five keys, in the tutorial's order."""

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_PLAIN = re.compile(r"[A-Za-z0-9._:/@%+,-]*")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
# No ':' here: torchrun takes an address with a colon for address and port.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


def check_value(key: str, value: str) -> str:
    """`value` when bash reads it as itself. Raises SettingsError otherwise."""
    if not _PLAIN.fullmatch(value):
        raise SettingsError(
            f"{key}={value!r} cannot stand in distributed_config.env: bash would not read it as it is",
            "use letters, digits and . _ : / @ % + , - only",
        )
    if key == "MASTER_ADDR" and not _HOST.fullmatch(value):
        raise SettingsError(f"MASTER_ADDR={value!r} is no host name or IPv4 address", "for example MASTER_ADDR=node01")
    if key in KEYS and key != "MASTER_ADDR" and not _NUMBER.fullmatch(value):
        raise SettingsError(f"{key}={value!r} is not a whole number", f"for example {key}=1")
    return value


def parse(text: str) -> dict[str, str]:
    """The assignments of a file's text, unknown keys too. Raises SettingsError for any other line."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(bare)
        if not match:
            raise SettingsError(f"line {number} of the env file is not KEY=VALUE: {bare[:60]!r}", "no spaces around =")
        values[match[1]] = check_value(match[1], match[2])
    return values


def render(values: Mapping[str, str | int], old: str = "") -> str:
    """The file's text: `old` with its comments, order and unknown keys, the values replaced."""
    left = {key: check_value(key, str(value)) for key, value in values.items()}
    lines = []
    for line in old.splitlines():
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match and match[1] in left:
            line = f"{match[1]}={left.pop(match[1])}"
        lines.append(line)
    lines += [f"{key}={value}" for key, value in left.items()]
    return "\n".join(lines) + "\n"


def write(path: Path, values: Mapping[str, str | int]) -> None:
    """Write `values` atomically, keeping what else an existing file holds.

    Raises SettingsError for a value bash would not read as it is, OSError.
    """
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    parse(old)
    write_atomic(path, render(values, old))
