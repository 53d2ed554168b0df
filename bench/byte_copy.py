"""Copy a directory and bring every file to the disk, as a conversion does: the limit that it can reach."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader, copy.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 16 << 20)
            writer.flush()
            os.fsync(writer.fileno())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
