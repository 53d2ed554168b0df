"""Packages that only some inputs need: imported when they are, with the command that installs them."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from typing import Any

from engine.errors import SettingsError

REQUIREMENTS = {
    "gigatoken": "gigatoken>=0.10,<0.11",
    "numpy": "numpy>=2,<3",
    "pyarrow": "pyarrow>=18",
    "tokenizers": "tokenizers>=0.22,<0.23",
    "zstandard": "zstandard>=0.25,<1",
}
"""What to install for each package, by the name under which it is imported."""


def load(module: str, purpose: str) -> Any:
    """Import `module`. Raises SettingsError saying what it is needed for and how to install it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{purpose} needs {package}, which cannot be imported: {error}",
            f"install it with: uv pip install '{REQUIREMENTS.get(package, package)}'",
        ) from error


def fast_json(content: bytes) -> Any:
    """What JSON says; read by orjson where it is installed. Raises ValueError."""
    try:
        import orjson
    except ImportError:
        return json.loads(content)
    return orjson.loads(content)


def version(package: str) -> str:
    """The installed version of `package`, or an empty text."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
