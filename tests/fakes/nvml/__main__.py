"""Run a command as if this were another machine: `python -m tests.fakes.nvml 8xh100 COMMAND …`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.nvml import MACHINES, FakeNvml, build


def main() -> int:
    if len(sys.argv) < 3:
        names = " ".join(sorted(path.stem for path in MACHINES.glob("*.toml")))
        print(f"{__doc__}\nmachines: {names}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fake-nvml-") as name:
        fake = FakeNvml(build(Path(name)), Path(name) / "state", sys.argv[1])
        return subprocess.run(sys.argv[2:], env={**os.environ, **fake.environment}, check=False).returncode


sys.exit(main())
