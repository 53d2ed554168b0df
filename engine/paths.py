"""Where things live: XDG directories, and files replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

_DEVICES = re.compile(r"/(dev|proc)/(?!shm/)")


def expanded(path: str | Path) -> Path:
    """`path` with the home directory for `~`; as a shell does, `~name` of a user that there is not stays as it is."""
    return Path(os.path.expanduser(path))


def runs_root() -> Path:
    """Where runs are listed: $GPTOSS_RUNS, or `gptoss/runs` under the XDG data directory."""
    if chosen := os.environ.get("GPTOSS_RUNS"):
        return expanded(chosen).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "gptoss" / "runs"


def config_root() -> Path:
    """Where user presets and the key map live: `gptoss` under the XDG configuration directory."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "gptoss"


def state_root() -> Path:
    """Where drafts and calibrations live: `gptoss` under the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gptoss"


def open_file(path: Path) -> BinaryIO:
    """The file `path`, to be read. Raises OSError, also for a pipe or a device, which might be waited for for ever."""
    _refuse_other_than_file(os.stat(path).st_mode, path)
    # It may have become a pipe meanwhile: opening one without this waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_other_than_file(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_other_than_file(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))


def file_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises as `open_file` does, and UnicodeDecodeError."""
    with open_file(path) as file:
        return file.read().decode("utf-8")


def make_own(directory: Path) -> None:
    """Make a directory of this person's own, with those above it, as XDG wants it. Raises OSError.

    Where the umask lets a group write, it could otherwise put a command there that gptoss carries out.
    """
    for missing in reversed([one for one in (directory, *directory.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def write_atomic(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replace `path` with `content`; a reader sees the old file or the new one, never a part.

    Raises OSError, and then leaves the old file as it was.
    """
    if _DEVICES.match(str(path.absolute())):
        raise OSError(errno.EINVAL, "a device cannot be replaced", str(path))
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
    except OSError as error:
        # People know the file by its own name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
