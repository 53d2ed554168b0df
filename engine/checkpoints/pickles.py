"""Read the pickles that torch writes without torch and without running anything they name.

`load` makes a class of torch or Megatron a record with its attributes and no behaviour, and refuses
a pickle that names anything else. `rehearse` goes through a pickle with the interpreter's own
unpickler, as torch would, and says what it names. So a checkpoint from the internet cannot do harm.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import resource
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from engine.errors import CheckpointError


class _Sealed(type):
    """A class whose attributes a pickle cannot set: for a class, BUILD means `setattr`."""

    @property
    def __setstate__(cls) -> Any:
        raise pickle.UnpicklingError(f"it changes the class {cls.__name__}")


class Record(metaclass=_Sealed):
    """Stands for an object of torch: its attributes, or the state it was pickled with."""

    state: Any = None
    _is_built = False

    def __new__(cls, *arguments: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = arguments
        return record

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]

    def __setstate__(self, state: Any) -> None:
        if self._is_built:
            # No pickler does, and the second state could set what this class does not know of.
            raise pickle.UnpicklingError("it sets the state of an object twice")
        self._is_built = True
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


_DTYPES = (
    "bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool",
    "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_STORAGES = {
    "BFloat16Storage": "bfloat16", "HalfStorage": "float16", "FloatStorage": "float32", "DoubleStorage": "float64",
    "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32",
    "LongStorage": "int64", "BoolStorage": "bool",
}  # fmt: skip
SPARE_BYTES, BYTES_PER_BYTE = 128 << 20, 200
"""What unpickling may take: a byte of a pickle becomes some tens of bytes of Python objects."""
STACK_BYTES, SHALLOW, MAX_DEPTH = 128, 20_000, 10_000_000
"""What hashing a tuple takes of the C stack; how many within one another any thread has room for; and the most."""
_TUPLES = (b"\x85", b"\x86", b"\x87", b"t")
"""The opcodes that make them."""
_one_at_a_time = threading.Lock()
MAX_NAMES = 10_000
"""Different ones in one pickle; a checkpoint has some tens, and to make a class takes long."""
_INERT = ("torch", "megatron", "pathlib")
"""Packages whose classes may be named; none of them is imported."""


def load(data: bytes, origin: str) -> Any:
    """The object in `data`, its torch classes as records. Raises CheckpointError naming `origin`."""
    try:
        depth = _depth(io.BytesIO(data), len(data))
        with _bounded_memory(SPARE_BYTES + BYTES_PER_BYTE * len(data) + STACK_BYTES * depth):
            return _on_a_stack_for(depth, _Unpickler(io.BytesIO(data)).load)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error.message}", error.hint) from error
    except Exception as error:  # noqa: BLE001 damaged bytes make the unpickler raise anything
        raise CheckpointError(f"{origin} is damaged: {error}", "use another checkpoint") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What came of going through one pickle."""

    value: Any
    """Plain values as they are; what would have been made by a call is a `StandIn`."""
    names: frozenset[tuple[str, str]]
    """Module and name of all that it would import."""
    nested: tuple[bytes, ...]
    """What is unpickled in its turn: by `torch.storage._load_from_bytes`, or from a BytesIO."""


def rehearse(file: BinaryIO, limit_bytes: int) -> Rehearsal:
    """Go through the pickle at the position of `file`, and leave the position behind it.

    Raises CheckpointError when it cannot be followed to its end, or wants the memory of a pickle
    longer than `limit_bytes`.
    """
    witness = _Witness(file, encoding="utf-8")  # as torch.load asks for it
    try:
        depth = _depth(file, limit_bytes)
        with _bounded_memory(SPARE_BYTES + BYTES_PER_BYTE * limit_bytes + STACK_BYTES * depth):
            value = _on_a_stack_for(depth, witness.load)
    except Exception as error:  # noqa: BLE001 damaged bytes make the unpickler raise anything
        raise CheckpointError(f"its pickle cannot be followed: {error}", "use another checkpoint") from error
    return Rehearsal(value=value, names=frozenset(witness.names), nested=tuple(witness.nested))


def _depth(file: BinaryIO, limit_bytes: int) -> int:
    """How many tuples within one another the rest of `file` could make at most; 0 when that is harmless.

    Raises CheckpointError when it is more than any stack has room for.
    """
    start, found = file.tell(), 0
    while limit_bytes > 0 and (piece := file.read(min(limit_bytes, 1 << 20))):
        found += sum(map(piece.count, _TUPLES))
        limit_bytes -= len(piece)
    file.seek(start)
    if found > MAX_DEPTH:
        raise CheckpointError(f"it may hold {found:,} values within one another", "use another checkpoint")
    return found if found > SHALLOW else 0


def _on_a_stack_for(depth: int, load: Callable[[], Any]) -> Any:
    """What `load` gives: CPython hashes tuples within tuples without a limit, and dies where its stack ends."""
    if not depth:
        return load()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(load())
        except BaseException as error:  # noqa: BLE001 raised below
            errors.append(error)

    before = threading.stack_size((1 << 20) + STACK_BYTES * depth)
    try:
        thread = threading.Thread(target=run, name="unpickling", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Let this process grow by no more than `more` bytes: one opcode can ask the unpickler for 32 GB."""
    with _one_at_a_time:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm", "rb", buffering=0) as file:
            pages = int(file.read(64).split()[0])
        limit = pages * resource.getpagesize() + more
        hook = sys.excepthook
        sys.excepthook = _but_for_system_errors(hook)
        try:
            if soft == resource.RLIM_INFINITY or limit < soft:
                resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            sys.excepthook = hook


def _but_for_system_errors(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` for all others: a bytearray for which there is no memory makes CPython 3.12 print one, besides raising."""

    def printed(kind: type[BaseException], *more: Any) -> None:
        if not issubclass(kind, SystemError):
            hook(kind, *more)

    return printed


class _Classes(dict[tuple[str, str], type]):
    """A class without behaviour for each module and name."""

    def __init__(self, base: type) -> None:
        self._base = base

    def __missing__(self, key: tuple[str, str]) -> type:
        if len(self) >= MAX_NAMES:
            raise pickle.UnpicklingError(f"it names more than {MAX_NAMES:,} things")
        self[key] = type(key[1], (self._base,), {})
        return self[key]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._classes = _Classes(Record)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.partition(".")[0] in _INERT:
            return self._classes[module, name]
        raise CheckpointError(
            f"it names {module}.{name}, which this version does not know", "a newer Megatron wrote it? upgrade gptoss"
        )

    def persistent_load(self, pid: Any) -> Any:
        """A tensor's storage: ("storage", type, record name, device, number of values)."""
        return pid


class StandIn(metaclass=_Sealed):
    """What a pickle would have imported, or got from calling it; takes everything and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Witness(pickle.Unpickler):
    """Notes what is imported. The opcodes, the stack and the memo are those of the real unpickler."""

    def __init__(self, file: BinaryIO, *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.names: set[tuple[str, str]] = set()
        self._classes = _Classes(StandIn)
        self.nested: list[bytes] = []

    def find_class(self, module: str, name: str) -> Any:
        self.names.add((module, name))
        match module, name:
            case "torch.storage", "_load_from_bytes":
                return self._nesting("_load_from_bytes")
            case "_io", "BytesIO":
                return self._nesting("BytesIO")
            case "_codecs", "encode":
                return _Encode
            case (("builtins" | "__builtin__"), "bytes"):
                return _Bytes
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and pid and isinstance(pid[0], str) and pid[0] == "storage"):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return StandIn()

    def _nesting(self, name: str) -> type[StandIn]:
        """A stand-in that keeps the bytes which it is made from."""
        keep = self._keep

        class Nesting(StandIn):
            def __new__(cls, *arguments: Any, **named: Any) -> Any:
                if arguments or named:
                    keep(arguments, named)
                return super().__new__(cls)

            def __setstate__(self, state: Any) -> None:
                keep(state[:1], state[2])

        Nesting.__name__ = name
        return Nesting

    def _keep(self, arguments: Any, named: Any) -> None:
        if named or len(arguments) != 1 or type(arguments[0]) is not bytes:
            raise pickle.UnpicklingError("it unpickles what cannot be known")
        self.nested.append(arguments[0])


class _Encode(StandIn):
    """`_codecs.encode`: how bytes are written in protocols that have no opcode for them."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it encodes with {encoding!r}")
        return str.encode(text, "latin-1")


class _Bytes(StandIn):
    """`bytes`: what empty bytes are in the same protocols."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return super().__new__(cls) if arguments or named else b""
