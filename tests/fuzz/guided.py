"""`python -m tests.fuzz.guided HARNESS SECONDS`: atheris looks for inputs that reach new code of the engine.

Begun by `python -m tests.fuzz.run --atheris`; apart from it, for what is imported before atheris is not measured.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["engine", "tomllib", "shlex"]):
    from tests.fuzz.harnesses import BY_NAME, WORDS
    from tests.fuzz.run import limited


def _dictionary() -> str:
    """The readers' own words, as libFuzzer takes them."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word[:60]) + '"\n' for word in WORDS)


def main() -> None:
    """Ends the process: with 0 after the time, otherwise with the traceback of a case, which is kept as `crash-*`."""
    harness, seconds = BY_NAME[sys.argv[1]], float(sys.argv[2])
    place = Path(tempfile.gettempdir(), "gptoss-fuzz-corpus", harness.name)
    shutil.rmtree(place, ignore_errors=True)
    (place / "found").mkdir(parents=True)
    for number, seed in enumerate(harness.seeds()):
        (place / "found" / f"seed-{number}").write_bytes(seed)
    (place / "words").write_text(_dictionary(), encoding="ascii")
    limits = [f"-max_total_time={seconds:.0f}", "-timeout=60", "-print_final_stats=1", "-max_len=16384"]
    files = [f"-dict={place / 'words'}", f"-artifact_prefix=fuzz-{harness.name}-", str(place / "found")]
    atheris.Setup([sys.argv[0], *limits, *files], lambda data: limited(harness, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
