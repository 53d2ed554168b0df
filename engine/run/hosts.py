"""The nodes of `machine.hosts`: a list in the setting, or a file with one a line."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import NotFoundError, SettingsError
from engine.paths import expanded

MAX_BYTES = 1_000_000
# No leading dash: ssh would take it for an option.
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,63}@)?[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


def read(text: str) -> tuple[str, ...]:
    """The hosts that `machine.hosts` names, in order.

    Raises SettingsError for a name that is no host, for one named twice or for none at all,
    NotFoundError for a file that is not there.
    """
    if not text:
        raise SettingsError("the ssh launcher has no hosts", "--set machine.hosts=node01,node02 or a file of them")
    names = _lines(expanded(text)) if "/" in text else text.split(",")
    hosts = tuple(name.strip() for name in names if name.strip())
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise SettingsError(f"{host!r} in machine.hosts is no host name", "write node01 or user@node01")
        if hosts.count(host) > 1:
            raise SettingsError(f"{host} stands twice in machine.hosts", "name each node once")
    if not hosts:
        raise SettingsError(f"{text} names no host", "write one host a line")
    return hosts


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path} is larger than {MAX_BYTES:,} bytes", "give a file with one host a line")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no hosts file {path}", "write one host a line into it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the hosts file {path} cannot be read: {error}", "give a readable text file") from error
    # What follows the name, `slots=8` for example, belongs to other programs' hosts files.
    return [line.partition("#")[0].split()[0] for line in text.splitlines() if line.partition("#")[0].split()]
