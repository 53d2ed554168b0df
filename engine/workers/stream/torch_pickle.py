"""Pickles that name torch's classes and functions, made without importing torch.

Only names are written; who reads the pickle has what they name.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Global:
    """Something that lies in a module, by name."""

    module: str
    name: str

    def __call__(self, *_: Any) -> Any:
        """Never called, but pickle asks whether what makes a thing could be."""
        raise NotImplementedError(f"{self.module}.{self.name} stands for a name")


@dataclass(frozen=True, slots=True)
class Call:
    """What a function of torch returns when the pickle is read."""

    function: Global
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Global, tuple[Any, ...]]:
        return self.function, self.arguments


def dumps(thing: Any, protocol: int, persistent: Callable[[Any], Any] = lambda _: None) -> bytes:
    """The pickle of `thing`; what `persistent` answers for a part, unless None, stands for that part."""
    stream = io.BytesIO()
    _Pickler(stream, protocol, persistent).dump(thing)
    return stream.getvalue()


_InPython: Any = pickle._Pickler
"""The pickler in C looks for what a name names. Its types are not declared."""


class _Pickler(_InPython):
    def __init__(self, stream: io.BytesIO, protocol: int, persistent: Callable[[Any], Any]) -> None:
        super().__init__(stream, protocol)
        self.persistent_id = persistent
        self._globals: dict[tuple[str, str], Any] = {}

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, Global):
            module, name = obj.module, obj.name
        else:
            module, name = obj.__module__, obj.__qualname__
        # One object for each name: pickle knows again what it wrote by its identity.
        known = self._globals.setdefault((module, name), obj)
        if (place := self.memo.get(id(known))) is not None:
            self.write(self.get(place[0]))
            return
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(known)

    dispatch: ClassVar[dict[type, Any]] = {**_InPython.dispatch, Global: save_global}
