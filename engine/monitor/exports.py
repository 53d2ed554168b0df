"""Metrics and pictures of runs as files. Libraries for single formats are used where they are installed."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType

from engine.errors import SettingsError
from engine.monitor.history import RunRecord, metric_columns, to_csv
from engine.paths import write_atomic


def write(path: Path, data: str | bytes) -> None:
    """Replace `path` with `data`. Raises SettingsError when the file cannot be written, and leaves the old one then."""
    try:
        write_atomic(path, data, mode=0o666 & ~_umask())
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}", "choose another file, or - for standard output"
        ) from error


def _umask() -> int:
    """What a new file of this process is not given; asked without changing it for the other threads."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:"))
    except (OSError, StopIteration):
        return 0o077


def write_metrics(run: RunRecord, path: Path) -> None:
    """One row an iteration, as Parquet or CSV by the ending. Raises SettingsError for another one."""
    if path.suffix.lower() == ".csv":
        write(path, to_csv(run))
        return
    if path.suffix.lower() != ".parquet":
        raise SettingsError(f"{path} names no kind of table", "let it end in .csv or .parquet")
    pyarrow = _optional("pyarrow", path, "a .csv file needs nothing")
    parquet = _optional("pyarrow.parquet", path, "a .csv file needs nothing")
    names, rows = metric_columns(run)
    try:
        made = io.BytesIO()
        parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), made)
    except (OSError, pyarrow.ArrowException) as error:
        raise SettingsError(f"{path} cannot be written: {error}", "write a .csv file instead") from error
    write(path, made.getvalue())


def write_picture(svg: str, path: Path) -> None:
    """An SVG as it is, or as PNG for that ending. Raises SettingsError."""
    if path.suffix.lower() == ".png":
        cairosvg = _optional("cairosvg", path, "a .svg file needs nothing")
        write(path, cairosvg.svg2png(bytestring=svg.encode(), scale=2))
    elif path.suffix.lower() == ".svg":
        write(path, svg)
    else:
        raise SettingsError(f"{path} names no kind of picture", "let it end in .svg or .png")


def _optional(module: str, path: Path, instead: str) -> ModuleType:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # a system library that is missing shows as OSError
        raise SettingsError(
            f"{path} needs {package}, which cannot be used here: {error}", f"pip install {package}; {instead}"
        ) from error
