"""The program behind one browser window of `gptoss serve`: python -m gptoss_tui.served watch|all [RUN]."""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Show the runs, or the named one, until the window is closed."""
    from engine.run.directory import RunDirectory
    from gptoss_tui.app import run_app

    run = RunDirectory(Path(arguments[1])) if len(arguments) > 1 else None
    start = "monitor" if run is not None else "home" if arguments[0] == "all" else "runs"
    return run_app(start, run=run, is_watching=arguments[0] != "all")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
