"""Checkpoint files that make a directory when torch unpickles them, each in a way of its own.

`python -m tests.security.hostile DIRECTORY` loads them as Megatron does, and prints which of them did.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
BENIGN = pickle.dumps({"a": 1}, 2)


class Name(NamedTuple):
    """Something to import."""

    module: str
    name: str


class Made(NamedTuple):
    """An object of a class, with its state."""

    kind: Name
    state: Any


def call(target: Path) -> bytes:
    """A pickle that makes the directory `target`."""
    return b"cposix\nmkdir\n(" + emit(str(target)) + b"tR."


def emit(value: Any) -> bytes:
    """The opcodes that push `value`; pickle itself would want to import its names."""
    match value:
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Made(kind, state):
            return emit(kind) + b")\x81" + emit(state) + b"b"
        case str():
            data = value.encode("utf-8", "surrogatepass")  # which the unpickler takes
            return b"X" + struct.pack("<I", len(data)) + data
        case dict():
            return emit(list(value.items()))
        case list():  # the pairs of a dictionary
            return b"}(" + b"".join(emit(key) + emit(one) for key, one in value) + b"u"
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
        case _:
            return pickle.dumps(value, 2)[2:-1]


def zipped(data: bytes, *more: tuple[str, bytes], name: str = "archive/data.pkl", method: int = 0) -> bytes:
    """An archive as torch.save writes it, with `data` for its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry, content in ((name, data), ("archive/version", b"3\n"), *more):
            archive.writestr(zipfile.ZipInfo(entry), content, method)
    return file.getvalue()


def legacy(*, at: int, evil: bytes) -> bytes:
    """What torch.save wrote before 1.6: five pickles, of which the one `at` is `evil`."""
    values: tuple[object, ...] = (MAGIC_NUMBER, PROTOCOL, {"little_endian": True}, {"a": 1}, [])
    parts = [pickle.dumps(value, 2) for value in values]
    parts[at] = evil
    return b"".join(parts)


def tar(evil: bytes) -> bytes:
    """What torch.save wrote before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("storages", pickle.dumps(0, 2) + pickle.dumps([], 2)), ("tensors", pickle.dumps(0, 2)),
                           ("pickle", evil)):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def two_directories(evil: bytes) -> bytes:
    """One archive behind another of the same lengths: each reader of zip files takes another directory."""
    assert len(evil) < 400
    hidden, shown = (zipped(data.ljust(400, b"\0")) for data in (evil, BENIGN))
    return hidden + shown


def nested(evil: bytes) -> bytes:
    """A tensor that was pickled by itself, inside an object."""
    inner = zipped(evil)
    return zipped(b"\x80\x04ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(inner)) + inner + b"tR.")


def files(target: Path) -> dict[str, bytes]:
    """Each file with its name; loaded by torch, it makes `target`/name."""
    ways: dict[str, Any] = {
        "plain": lambda evil: evil,
        "zip": zipped,
        "zip-deflated": lambda evil: zipped(evil, method=zipfile.ZIP_DEFLATED),
        "zip-upper-case": lambda evil: zipped(evil, name="archive/DATA.PKL"),
        "zip-with-a-false-end": lambda evil: zipped(evil) + b"PK\x05\x06",
        "zip-with-a-tail": lambda evil: zipped(evil) + b"tail",
        "zip-behind-a-zip": two_directories,
        "legacy-object": lambda evil: legacy(at=3, evil=evil),
        "legacy-system": lambda evil: legacy(at=2, evil=evil),
        "legacy-keys": lambda evil: legacy(at=4, evil=evil),
        "legacy-with-a-zip": lambda evil: legacy(at=3, evil=evil) + zipped(BENIGN),
        "tar": tar,
        "nested": nested,
        "number-in-hexadecimal": lambda evil: zipped(b"I0x10\n0" + evil),
        "name-beyond-ascii": lambda evil: zipped("Vä\n0".encode("raw-unicode-escape") + evil),
        "memo": lambda evil: zipped(_through_memo(evil)),
        "after-a-frame": lambda evil: zipped(b"\x80\x04\x95" + struct.pack("<Q", len(evil)) + evil),
    }  # fmt: skip
    return {f"{name}.pt": way(call(target / f"{name}.pt")) for name, way in ways.items()}


def _through_memo(evil: bytes) -> bytes:
    """The names from the memo, under other strings on the stack."""
    argument = evil.partition(b"(")[2]
    module, name = (b"\x8c" + bytes([len(word)]) + word.encode() for word in ("posix", "mkdir"))
    decoy = emit("collections") + emit("OrderedDict")
    return b"\x80\x04" + module + b"\x94" + name + b"\x94" + decoy + b"00h\x00h\x01" + b"\x93(" + argument


METADATA = "torch.distributed.checkpoint.metadata"
INDEX, BYTES = Name(METADATA, "MetadataIndex"), Name(METADATA, "BytesStorageMetadata")
PLACE = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")


def indexed(
    where: str, length: int, *, key: str = "thing", before: bytes = b"", entry: Any = None, **place: Any
) -> bytes:
    """A `.metadata` with one object, `length` bytes long, in the file `where`."""
    index = Made(INDEX, {"fqn": key, "offset": None, "index": None})
    info = Made(PLACE, {"relative_path": where, "offset": 0, "length": length, **place})
    state = {"state_dict_metadata": {key: Made(BYTES, entry or {})}, "storage_data": [(index, info)],
             "planner_data": {key: (key,)}, "storage_meta": None}  # fmt: skip
    return b"\x80\x04" + before + emit(Made(Name(METADATA, "Metadata"), state)) + b"."


def checkpoints(root: Path, target: Path) -> list[str]:
    """Write checkpoints of torch.distributed whose one object makes `target`/name; return their names."""
    ways: dict[str, Any] = {
        "index-plain": ("a.distcp", {}),
        "index-other-directory": ("sub/a.distcp", {}),
        "index-like-a-tensor": ("a.distcp", {"entry": {"chunks": (), "properties": None, "size": ()}}),
        "index-with-a-set": ("a.distcp", {"before": b"cbuiltins\nset\n(]tR0"}),
        "index-of-a-rank": ("a.distcp", {}),
    }
    for name, (where, how) in ways.items():
        data = zipped(call(target / name))
        file = root / name / where
        file.parent.mkdir(parents=True)
        index = "__0.metadata" if name == "index-of-a-rank" else ".metadata"
        (root / name / index).write_bytes(indexed(where, len(data), **how))
        file.write_bytes(data)
    return list(ways)


def main(root: Path) -> None:
    import torch
    from torch.distributed.checkpoint import FileSystemReader, state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner

    target = root / "made"
    target.mkdir()
    for name, data in files(target).items():
        (root / name).write_bytes(data)
        try:
            torch.load(root / name, weights_only=False)
        except Exception as error:
            print(f"{name}: {error}", file=sys.stderr)
    for name in checkpoints(root, target):
        try:
            state_dict_loader._load_state_dict(
                {}, storage_reader=FileSystemReader(root / name), planner=_EmptyStateDictLoadPlanner(), no_dist=True
            )
        except (Exception, CheckpointException) as error:
            print(f"{name}: {error}", file=sys.stderr)
    print("\n".join(sorted(path.name for path in target.iterdir())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
