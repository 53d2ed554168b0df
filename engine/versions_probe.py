"""Print, as JSON, which packages an interpreter has. Run by any Python 3.8 or later; imports none of them.

Standard library alone, and nothing of ours: `versions.py` hands this file's text to the
interpreter that will run the workers.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import sys
from importlib import metadata
from typing import Any

NAMES = (
    "torch", "megatron-core", "megatron-bridge", "transformers", "tokenizers", "safetensors", "datasets", "einops",
    "omegaconf", "pillow", "psutil", "tensorboard", "numpy", "transformer-engine", "transformer-engine-torch",
    "nvidia-modelopt", "megatron-energon", "nvidia-resiliency-ext", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12",
    "nvidia-nccl-cu13", "nvidia-nccl-cu12", "pip", "wandb", "mlflow", "trackio",
)  # fmt: skip


def installed() -> dict[str, str]:
    """Versions by package name; packages that are absent are left out."""
    found = {}
    for name in NAMES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version:  # None where an uninstall was interrupted
            found[name] = version
    return found


def torch_cuda() -> str:
    """The CUDA that torch was built for, empty for a CPU build; its version file says, unimported."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return ""
    if spec is None or not spec.origin:
        return ""
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as file:
            match = re.search(r"^cuda[^=\n]*= *'([^']+)'", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return match.group(1) if match else ""


def system_cudnn() -> str:
    """cuDNN of the operating system, as NVIDIA's containers have it; empty when there is none."""
    names = glob.glob("/usr/lib/*/libcudnn.so.*.*") + glob.glob("/usr/local/cuda/lib64/libcudnn.so.*.*")
    versions = [name.rpartition(".so.")[2] for name in names]
    return max(versions, key=lambda text: [int(part) for part in re.findall(r"\d+", text)], default="")


def facts() -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "executable": sys.executable,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "packages": installed(),
        "torch_cuda": torch_cuda(),
        "system_cudnn": system_cudnn(),
        "glibc": os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "",
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
