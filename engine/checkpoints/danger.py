"""What unpickling a checkpoint would call, told without unpickling anything.

Megatron loads `.metadata`, the `.pt` files and the objects among the tensors of a checkpoint with pickle,
which calls whatever they name. What cannot be looked through is no better than what is known to be bad.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.checkpoints import torch_dist, torch_files
from engine.checkpoints.pickles import Rehearsal
from engine.errors import CheckpointError, EngineError
from engine.paths import open_file

_NAMES = {
    "torch": r"Size|device|[A-Z]\w*Storage|b?float\d\w+|u?int\d+|bool|strided|contiguous_format|Tensor",
    "torch._C": "Generator",
    "torch._utils": r"_rebuild_\w+",
    "torch._tensor": "_rebuild_from_type_v2",
    "torch.nn.parameter": "Parameter",
    "torch.storage": r"_?\w*Storage|_load_from_bytes",  # the last unpickles bytes, which are looked through as well
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": r"\w+Metadata|Metadata(Index)?|StorageMeta|TensorProperties"
    "|_MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.planner": r"(Save|Load)Plan|(Write|Read|Load)Item(Type)?|\w+WriteData",
    # What megatron-core itself registers with torch as safe (megatron/core/safe_globals.py, 0.19).
    "megatron.core.enums": "ModelType",
    "megatron.core.optimizer": "OptimizerConfig",
    "megatron.core.optimizer.optimizer_config": "OptimizerConfig",
    "megatron.core.rerun_state_machine": "Rerun(Diagnostic|Mode|State)",
    "megatron.core.transformer.enums": "AttnBackend|(Inference)?CudaGraph(Module|Scope)",
    "megatron.core.extensions.transformer_engine": "TEDelayedScaling",
    "megatron.core.safe_globals": "safe_load_from_bytes",
    "transformer_engine.common.recipe": r"\w+Scaling|Format|_FormatHelper|MMParams|QParams",
    "types": "SimpleNamespace",
    "_io": "BytesIO",
    "collections": "OrderedDict|defaultdict|deque",
    "builtins": "set|frozenset|dict|list|tuple|int|float|bool|str|bytes|bytearray|complex|slice|range|object",
    "argparse": "Namespace",
    "pathlib": r"\w*Path",
    "numpy": "ndarray|dtype",
    "numpy.core.multiarray": "_reconstruct|scalar",
    "numpy._core.multiarray": "_reconstruct|scalar",
    "numpy.dtypes": r"[A-Z]\w+DType",
    "_codecs": "encode",
    "signal": "Signals",
}
"""What the checkpoints of Megatron name, by module: a whole match of the pattern."""
MAX_OBJECT_BYTES = 256_000_000


def find(checkpoint: Path) -> list[str]:
    """What is wrong with the pickles of a checkpoint, each as `file: module.name` or as a sentence; sorted.

    Names that no training writes are wrong, and whatever torch might read otherwise than it is read here.
    """
    found: set[str] = set()
    for path in _files(checkpoint, found):
        label = str(path).removeprefix(f"{checkpoint}/")
        if path.name == torch_dist.METADATA:
            found |= _judged(label, _read_index(path)) | _objects(label, path)
        elif path.name.endswith(torch_dist.METADATA):
            found.add(f"{label} is the index of one rank, which Megatron does not write")
        elif path.suffix in (".pt", ".pth"):
            found |= _judged(label, _read_file(path))
    return sorted(found)


def _files(checkpoint: Path, problems: set[str]) -> Iterator[Path]:
    """All below `checkpoint`, through links too, for torch follows them; each directory once."""
    seen: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            problems.add(f"{error.filename} cannot be read: {error.strerror}")

    for directory, names, files in os.walk(checkpoint, followlinks=True, onerror=note):
        try:
            status = os.stat(directory)
        except OSError as error:
            note(error)
            names.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(directory, name) for name in files)


def _judged(label: str, rehearsals: Iterator[Rehearsal]) -> set[str]:
    found: set[str] = set()
    try:
        for rehearsal in rehearsals:
            found |= {f"{label}: {module}.{name}" for module, name in rehearsal.names if not is_harmless(module, name)}
    except FileNotFoundError:
        pass  # a link to nothing
    except OSError as error:
        found.add(f"{label} cannot be read: {error.strerror}")
    except CheckpointError as error:
        found.add(f"{label} cannot be looked through: {error.message}")
    return found


def _read_index(path: Path) -> Iterator[Rehearsal]:
    with _open(path) as file:
        yield from torch_files.rehearse_pickle(file, torch_dist.MAX_METADATA_BYTES)


def _read_file(path: Path) -> Iterator[Rehearsal]:
    with _open(path) as file:
        yield from torch_files.rehearse(file)


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise CheckpointError("it is a pipe or a device", "use another checkpoint")  # opening one could wait for ever
    return open_file(path)


def _objects(label: str, index: Path) -> set[str]:
    """The same of what is no tensor in the `.distcp` files: random states and the like."""
    try:
        objects = torch_dist.read(index.parent).objects
    except EngineError as error:
        return {f"{label} cannot be looked through: {error.message}"}
    found: set[str] = set()
    for key, chunk in objects.items():
        found |= _judged(str(Path(label).with_name(chunk.file)), _read_object(index.parent / chunk.file, key, chunk))
    return found


def _read_object(path: Path, key: str, chunk: torch_dist.Chunk) -> Iterator[Rehearsal]:
    if chunk.length > MAX_OBJECT_BYTES:
        raise CheckpointError(f"{key} is larger than {MAX_OBJECT_BYTES:,} bytes", "use another checkpoint")
    with _open(path) as file:
        file.seek(chunk.start)
        data = io.BytesIO(file.read(chunk.length))
    # Transformer Engine keeps a pickle in the values of a tensor of bytes.
    yield from torch_files.rehearse(data, with_storages="_extra_state" in key)


def is_harmless(module: str, name: str) -> bool:
    """True for what the checkpoints of Megatron name."""
    pattern = _NAMES.get("builtins" if module == "__builtin__" else module)
    return pattern is not None and re.fullmatch(pattern, name) is not None
