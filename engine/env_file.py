"""`distributed_config.env`: exactly what the tutorial's training script sources.

The file is sourced by bash, so a value that bash would do anything with is refused, not quoted:
the tutorial's own script does not expect quotes either. Lines and blanks are bash's, not
Python's: a form feed or a no-break space is part of a word to bash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from engine.errors import NotFoundError, SettingsError
from engine.paths import write_atomic

KEYS = ("GPUS_PER_NODE", "NUM_NODES", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
"""The five keys, in the tutorial's order."""

NAMES = dict(
    zip(
        KEYS,
        ("machine.gpus_per_node", "machine.nodes", "launch.master_addr", "launch.master_port", "launch.node_rank"),
        strict=True,
    )
)
"""The settings that the keys are: the way of an existing file into gptoss."""

MAX_BYTES = 100_000

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9._:/@%+,-]*")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
# No ':' here: torchrun takes an address with a colon for address and port.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

# bash refuses to set these, answers something else when they are read, or acts on them.
_BASHS_OWN = frozenset(
    "_ IFS PATH ENV PS4 CDPATH HOME PWD OLDPWD UID EUID PPID GROUPS DIRSTACK FUNCNAME RANDOM SRANDOM SECONDS LINENO "
    "EPOCHSECONDS EPOCHREALTIME POSIXLY_CORRECT SHELLOPTS BASHOPTS FUNCNEST TMOUT LC_ALL LC_CTYPE LANG HISTCMD "
    "OPTIND OPTARG OPTERR COMP_WORDBREAKS".split()
)
_ACTED_ON = ("BASH", "LD_", "GLIBC_", "PYTHON", "HIST")


def check_key(key: str) -> str:
    """`key` when setting it does no more than that. Raises SettingsError otherwise."""
    if key in _BASHS_OWN or key.startswith(_ACTED_ON):
        raise SettingsError(
            f"{key} cannot be set in distributed_config.env: it changes what bash or the programs it starts do",
            "set it in your shell, if you must",
        )
    return key


def check_value(key: str, value: str) -> str:
    """`value` when bash reads it as itself. Raises SettingsError otherwise."""
    if not _PLAIN.fullmatch(value):
        hint = "use letters, digits and . _ : / @ % + , - only"
        if value.endswith("\r"):
            hint = "the file has Windows line ends: dos2unix distributed_config.env"
        raise SettingsError(
            f"{key}={value[:60]!r} cannot stand in distributed_config.env: bash would not read it as it is", hint
        )
    if key == "MASTER_ADDR" and not _HOST.fullmatch(value):
        raise SettingsError(f"MASTER_ADDR={value!r} is no host name or IPv4 address", "for example MASTER_ADDR=node01")
    if key in KEYS and key != "MASTER_ADDR" and not _NUMBER.fullmatch(value):
        raise SettingsError(f"{key}={value!r} is not a whole number", f"for example {key}=1")
    return value


def parse(text: str) -> dict[str, str]:
    """The assignments of a file's text, unknown keys too. Raises SettingsError for any other line."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        bare = line.strip(" \t")
        if "\0" in line:
            raise SettingsError(f"line {number} of the env file holds a zero byte", "give a text file")
        if not bare or bare.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(bare)
        if not match:
            raise SettingsError(f"line {number} of the env file is not KEY=VALUE: {bare[:60]!r}", "no spaces around =")
        values[check_key(match[1])] = check_value(match[1], match[2])
    return values


def render(values: Mapping[str, str | int], old: str = "") -> str:
    """The file's text: `old` with its comments, order and unknown keys, the values replaced."""
    left = {check_key(key): check_value(key, str(value)) for key, value in values.items()}
    new = dict(left)
    lines = []
    for line in old.removesuffix("\n").split("\n") if old else []:
        match = _ASSIGNMENT.fullmatch(line.strip(" \t"))
        if match and match[1] in new:
            # A key that stands twice keeps its first place only: bash would take the last.
            if match[1] not in left:
                continue
            line = f"{match[1]}={left.pop(match[1])}"
        lines.append(line)
    lines += [f"{key}={value}" for key, value in left.items()]
    return "\n".join(lines) + "\n"


def read_text(path: Path) -> str:
    """The text of an existing env file, checked. Raises NotFoundError or SettingsError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path} is larger than {MAX_BYTES:,} bytes", "give a distributed_config.env")
        text = path.read_bytes().decode("utf-8")  # as it is: read_text would translate line ends
        parse(text)
    except FileNotFoundError:
        raise NotFoundError(f"there is no env file {path}", "leave launch.env_file empty to have one made") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "give a readable text file") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.message}", error.hint) from error
    return text


def write(path: Path, values: Mapping[str, str | int]) -> None:
    """Write `values` atomically, keeping what else an existing file holds.

    Raises SettingsError for a value bash would not read as it is, OSError.
    """
    old = read_text(path) if path.exists() else ""
    write_atomic(path, render(values, old), mode=0o600)  # a cluster's own keys may be among them
