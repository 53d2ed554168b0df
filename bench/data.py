"""Data preparation against Megatron-LM's own tools, on the same JSON lines with the same tokenizer.

    python bench/data.py --megatron-lm DIR --tokenizer DIR --input FILE.jsonl [--megabytes 100 1000]

DIR is a checkout of NVIDIA/Megatron-LM beside this project; the Python that runs this needs gigatoken, torch and
Megatron. Prints one JSON line for each run and a Markdown table at the end. Times are wall times of whole commands,
start-up included; cpu_s is what all their processes used; peak memory is the largest sum over the process tree
(proportional set size, so that shared pages count once).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
CEILING = """
import sys, gigatoken
source = gigatoken.JsonlFileSource([sys.argv[2]], field="text")
encoded = gigatoken.Tokenizer(sys.argv[1]).encode_files(source, parallel=True)
print(len(encoded))
"""


@dataclass
class Measurement:
    """One command on one input."""

    name: str
    megabytes: int
    documents: int
    wall_s: float
    cpu_s: float
    peak_mib: int
    digest: str = ""
    """Of the .bin and the .idx together."""
    load: float = 0.0
    """The machine's load average when it started."""

    @property
    def documents_per_s(self) -> float:
        return self.documents / self.wall_s


def main() -> int:
    arguments = _parser().parse_args()
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for megabytes in arguments.megabytes:
            path, documents = _cut(arguments.input, megabytes, Path(scratch))
            for name, command, prefix, environment in _contenders(arguments, path, Path(scratch)):
                if name in arguments.skip or (name == "preprocess_data.py" and megabytes > arguments.slow_limit):
                    continue
                one = _measure(command, environment)
                one.name, one.megabytes, one.documents = name, megabytes, documents
                one.digest = _digest(prefix) if prefix else ""
                found.append(one)
                facts = {**asdict(one), "documents_per_s": round(one.documents_per_s)}
                print(json.dumps(facts), flush=True)
                _clean(Path(scratch), path)
    print(_table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron-lm", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--slow-limit", type=int, default=100, help="largest input for preprocess_data.py, in MB")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--scratch", type=Path, default=None)
    return parser


def _contenders(arguments: argparse.Namespace, path: Path, scratch: Path):
    """Name, command, prefix of the result, environment."""
    python, tokenizer, workers = sys.executable, str(arguments.tokenizer), str(arguments.workers)
    end = json.loads((arguments.tokenizer / "tokenizer_config.json").read_text())["eos_token"]
    ours = {"PYTHONPATH": str(ROOT)}
    theirs = {"PYTHONPATH": str(arguments.megatron_lm)}
    yield (
        "gigatoken alone (ceiling)",
        [python, "-c", CEILING, tokenizer, str(path)],
        None,
        {"RAYON_NUM_THREADS": workers},
    )
    yield (
        "gptoss data prepare",
        [python, "-m", "gptoss_tui", "data", "prepare", str(path), "-o", str(scratch / "ours"),
         "--tokenizer", tokenizer, "--end-of-document", end, "--validation-percent", "0", "--quick", "--force",
         "--workers", workers, "--json"],
        scratch / "ours" / "train",
        ours,
    )  # fmt: skip
    common = ["--input", str(path), "--output-prefix", str(scratch / "theirs"), "--append-eod",
              "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer]  # fmt: skip
    tools = arguments.megatron_lm / "tools"
    prefix = scratch / "theirs_text_document"
    fast = [python, str(tools / "preprocess_data_fast.py"), *common, "--use-gigatoken"]
    yield "preprocess_data_fast.py", fast, prefix, {**theirs, "RAYON_NUM_THREADS": workers}
    slow = [python, str(tools / "preprocess_data.py"), *common, "--workers", workers]
    yield "preprocess_data.py", slow, prefix, theirs


def _measure(command: list[str], environment: dict[str, str]) -> Measurement:
    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)
        memory = _Memory(process.pid)
        code = process.wait()
        wall = time.monotonic() - started
        peak = memory.stop()
        if code:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode()[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(
        name="",
        megabytes=0,
        documents=0,
        wall_s=round(wall, 2),
        cpu_s=round(cpu, 2),
        peak_mib=peak,
        load=round(load, 2),
    )


class _Memory:
    """Samples the memory of a process tree."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """The largest sum seen, in MiB."""
        self._done.set()
        self._thread.join()
        return self._peak >> 20

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            total = 0
            try:
                tree = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in tree:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self._peak = max(self._peak, total)


def _cut(source: Path, megabytes: int, scratch: Path) -> tuple[Path, int]:
    """The first `megabytes` of `source`, repeated with a running number where it is shorter."""
    target, written, documents, turn = scratch / "input.jsonl", 0, 0, 0
    with target.open("wb") as out:
        while written < megabytes * 1_000_000:
            with source.open("rb") as lines:
                for line in lines:
                    # What is repeated differs in its first word, as texts do.
                    text = line.replace(b'"text": "', b'"text": "%d ' % turn, 1) if turn else line
                    written += out.write(text)
                    documents += 1
                    if written >= megabytes * 1_000_000:
                        break
            turn += 1
    return target, documents


def _digest(prefix: Path) -> str:
    digest = hashlib.sha256()
    for ending in ("bin", "idx"):
        with open(f"{prefix}.{ending}", "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _clean(scratch: Path, keep: Path) -> None:
    for path in scratch.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != keep:
            path.unlink()


def _table(found: list[Measurement]) -> str:
    lines = [
        "| MB | what | documents/s | MB/s | wall s | CPU s | peak MiB | .bin/.idx |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        speed = f"{one.documents_per_s:,.0f} | {one.megabytes / one.wall_s:.1f}"
        cost = f"{one.wall_s:.1f} | {one.cpu_s:.1f} | {one.peak_mib:,}"
        lines.append(f"| {one.megabytes:,} | {one.name} | {speed} | {cost} | {one.digest or '-'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
