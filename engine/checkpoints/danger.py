"""What unpickling a checkpoint would call, told without unpickling anything.

Megatron loads `.metadata` and the `.pt` files of a checkpoint with pickle, which calls whatever they name.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from engine.checkpoints import torch_dist
from engine.errors import EngineError

_NAMES = {
    "torch": r"Size|device|[A-Z]\w*Storage|(b?float|float8_e)\w+|u?int\d+|bool|strided|contiguous_format|Tensor",
    "torch._utils": r"_rebuild_\w+",
    "torch.nn.parameter": "Parameter",
    "torch.storage": r"_?\w*Storage",  # not _load_from_bytes: it unpickles what it is given
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": r"[A-Z]\w+|_MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.planner": r"[A-Z]\w+",
    "collections": "OrderedDict|defaultdict|deque",
    "builtins": "set|frozenset|dict|list|tuple|int|float|bool|str|bytes|bytearray|complex|slice|range|object",
    "argparse": "Namespace",
    "pathlib": r"\w*Path",
    "numpy": "ndarray|dtype",
    "numpy.core.multiarray": "_reconstruct|scalar",
    "numpy._core.multiarray": "_reconstruct|scalar",
    "_codecs": "encode",
    "signal": "Signals",
}
"""What the checkpoints of Megatron name, by module: a whole match of the pattern."""
MAX_BYTES = 1_000_000_000


def foreign_names(checkpoint: Path) -> list[str]:
    """The names in the pickles of a checkpoint that no training writes, as `file: module.name`; sorted."""
    found: set[str] = set()
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and (path.name == ".metadata" or path.suffix == ".pt"):
            label = str(path.relative_to(checkpoint))
            found |= {f"{label}: {name}" for data in _pickles(path) for name in _foreign(data)}
    return sorted(found | {f"{label}: {name}" for label, data in _objects(checkpoint) for name in _foreign(data)})


def _pickles(path: Path) -> Iterator[bytes]:
    """The pickles in a file: itself, or those in the zip archive that `torch.save` writes."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return
        if not zipfile.is_zipfile(path):
            yield path.read_bytes()
            return
        yield from _unzipped(path)
    except OSError:
        return  # gone, or not ours to read


def _unzipped(file: Path | io.BytesIO) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size <= MAX_BYTES:
                    yield archive.read(entry)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return  # damaged: it will not be loaded


def _objects(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    """The pickles of what is no tensor in the `.distcp` files: random states and the like."""
    for iteration in {path.parent for path in checkpoint.rglob(torch_dist.METADATA)}:
        try:
            chunks = torch_dist.read(iteration).objects.values()
        except EngineError:
            continue  # damaged or foreign, which `.metadata` itself tells
        for chunk in chunks:
            try:
                with (iteration / chunk.file).open("rb") as file:
                    file.seek(chunk.start)
                    data = file.read(min(chunk.length, MAX_BYTES))
            except OSError:
                continue
            yield from ((chunk.file, pickle) for pickle in _unzipped(io.BytesIO(data)))


def _foreign(data: bytes) -> Iterator[str]:
    """What a pickle names beyond the harmless, as far as it can be read."""
    memo: dict[int, str | None] = {}
    pushed: list[str | None] = ["?", "?"]
    try:
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "GLOBAL" | "INST":
                    module, _, name = str(argument).partition(" ")
                case "STACK_GLOBAL":
                    module, name = (text or "?" for text in pushed[-2:])
                case "MEMOIZE" | "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[len(memo) if argument is None else int(argument)] = pushed[-1]
                    continue
                case "GET" | "BINGET" | "LONG_BINGET":
                    pushed.append(memo.get(int(argument or 0)))
                    continue
                case _:
                    pushed.append(argument if isinstance(argument, str) else None)
                    continue
            pushed.append(None)
            if not _is_harmless(module, name):
                yield f"{module}.{name}"
    except Exception:  # noqa: BLE001 whatever genops says of nonsense: the nonsense will not load either
        return


def _is_harmless(module: str, name: str) -> bool:
    if module.startswith("megatron.core."):
        return name[:1].isupper()  # its enumerations and records; a function would be called
    pattern = _NAMES.get(module.replace("__builtin__", "builtins"))
    return pattern is not None and re.fullmatch(pattern, name) is not None
