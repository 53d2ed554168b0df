"""Streaming conversion against Megatron-Bridge's own, and against a plain copy of the bytes.

    python -m bench.convert --scratch DIR [--sizes 0.2 1 4] [--forms bf16 mxfp4] [--bridge-up-to 2] [--verify]

Every contender runs in a process of its own, one after the other, on the same checkpoint; its
start and imports count. Memory is that of the whole process tree, sampled: what is private or
shared (what must fit into RAM), and everything resident (mapped files too). With --verify the checkpoint
is compared with its origin as well: the values, and then values and logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.models import GPT_OSS_20B, Model

ROOT = Path(__file__).parent.parent
_SAMPLE_S = 0.05
_KIB = 1 << 10

SIZES: dict[str, Model] = {
    # By the size of the BF16 checkpoint in GB; shapes as in the released models where they fit.
    "0.2": dataclasses.replace(GPT_OSS_20B, layers=4, hidden=1024, ffn=1024, experts=6, vocab=8_192, published=""),
    "1": dataclasses.replace(GPT_OSS_20B, layers=4, hidden=1920, ffn=1920, experts=8, vocab=32_768, published=""),
    "2": dataclasses.replace(GPT_OSS_20B, layers=1, experts=16, vocab=100_096, published=""),
    "4": dataclasses.replace(GPT_OSS_20B, layers=1, published=""),
    "8": dataclasses.replace(GPT_OSS_20B, layers=3, published=""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One contender on one checkpoint."""

    size: str
    form: str
    way: str
    contender: str
    written_gb: float
    seconds: float
    cpu_s: float
    """Processor time of the tree."""
    needed_gib: float
    """Peak of private and shared memory."""
    resident_gib: float
    """Peak of everything resident."""
    load: float
    """Load average when it began: above the number of cores others were at work too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty directory on the disk to measure")
    parser.add_argument("--sizes", nargs="+", default=["0.2", "1", "4"], choices=list(SIZES))
    parser.add_argument("--forms", nargs="+", default=["bf16", "mxfp4"], choices=("bf16", "mxfp4"))
    parser.add_argument("--bridge-up-to", type=float, default=2.0, help="GB up to which Bridge runs: it needs 2 to 4 x")
    parser.add_argument("--verify", action="store_true", help="measure the comparison with the origin, too")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the fastest counts")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for size in options.sizes:
        for form in options.forms:
            results += measure(options, size, form)
            print(table(results), flush=True)
    (options.scratch / "results.json").write_text(json.dumps([dataclasses.asdict(one) for one in results], indent=1))


def measure(options: argparse.Namespace, size: str, form: str) -> list[Result]:
    """All contenders, import and export, on one checkpoint."""
    from bench.synthetic import make

    source, scratch = options.scratch / f"hf-{size}-{form}", options.scratch
    shutil.rmtree(source, ignore_errors=True)
    make(source, SIZES[size], form)
    has_bridge = float(size) <= options.bridge_up_to
    ours, bridges, exported = scratch / "ours", scratch / "bridge", scratch / "exported"
    python = [sys.executable, "-W", "ignore"]
    stream = [*python, "-m", "engine.workers.stream"]
    job = {"dtype": "bf16", "threads": 0}
    convert = json.dumps({**job, "job": "convert", "source": str(source), "out": str(ours)})
    paths = {"source": str(ours), "out": str(exported), "reference": str(source), "base": "", "origin": ""}
    export = json.dumps({**job, "job": "export", **paths})
    bridge = [*python, "-m", "bench.bridge"]
    found = []

    def run(way: str, contender: str, argv: Sequence[str], out: Path, *, is_made: bool = True) -> None:
        best = min((_run(argv, out if is_made else None) for _ in range(options.repeat)), key=lambda one: one[0])
        size_gb = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e9
        found.append(Result(size=size, form=form, way=way, contender=contender, written_gb=size_gb,
                            seconds=best[0], cpu_s=best[1], needed_gib=best[2], resident_gib=best[3],
                            load=best[4]))  # fmt: skip

    run("import", "streaming", [*stream, convert], ours)
    if has_bridge:
        run("import", "Bridge", [*bridge, "import", str(source), str(bridges)], bridges)
        shutil.rmtree(bridges)
    copy = scratch / "copy"
    run("import", "copy", [sys.executable, "-S", "-m", "bench.byte_copy", str(ours), str(copy)], copy)
    shutil.rmtree(copy)
    against = {"job": "verify", "source": str(ours), "against": str(source), "base": "", "threads": 0}
    for contender, with_logits in (("values", False), ("and logits", True)) if options.verify else ():
        run("verify", contender, [*stream, json.dumps({**against, "with_logits": with_logits})], ours, is_made=False)
    run("export", "streaming", [*stream, export], exported)
    if has_bridge:
        # A reference of 4-bit blocks makes Bridge write no experts: it gets our BF16 export.
        run("export", "Bridge", [*bridge, "export", str(exported), str(ours), str(bridges)], bridges)
        shutil.rmtree(bridges)
    run("export", "copy", [sys.executable, "-S", "-m", "bench.byte_copy", str(exported), str(copy)], copy)
    for path in (copy, ours, exported, source):
        shutil.rmtree(path)
    return found


def _run(argv: Sequence[str], out: Path | None) -> tuple[float, float, float, float, float]:
    """Seconds, processor seconds, peak memory needed, peak resident, load before; `out` is made anew."""
    if out:
        shutil.rmtree(out, ignore_errors=True)
    os.sync()
    load = os.getloadavg()[0]
    peak = [0, 0]
    started, before = time.monotonic(), os.times()
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
        watcher.start()
        errors = process.communicate()[1]
        done.set()
        watcher.join()
    seconds, after = time.monotonic() - started, os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)}\n{errors[-2000:]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, cpu, peak[0] / 2**30, peak[1] / 2**30, load


def _watch(pid: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(_SAMPLE_S):
        needed = resident = 0
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            private, shared, mapped = _memory(process.pid)
            needed += private
            # Pages shared with the parent count once.
            needed += shared if process.pid == pid else 0
            resident += private + (shared + mapped if process.pid == pid else 0)
        peak[0], peak[1] = max(peak[0], needed), max(peak[1], resident)


def _memory(pid: int) -> tuple[int, int, int]:
    found = {"RssAnon": 0, "RssShmem": 0, "RssFile": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * _KIB
    except OSError:
        pass
    return found["RssAnon"], found["RssShmem"], found["RssFile"]


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, each with its ratio to Bridge and to the copy."""
    lines = [
        "| model | way | contender | written GB | s | of Bridge's time | of the copy's speed | CPU s | needs GiB "
        "| resident GiB | load |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        peers = {x.contender: x for x in results if (x.size, x.form, x.way) == (one.size, one.form, one.way)}
        bridge = f"{one.seconds / peers['Bridge'].seconds:.2f}" if "Bridge" in peers else ""
        speed = one.written_gb / one.seconds
        of_copy = f"{speed * peers['copy'].seconds / peers['copy'].written_gb:.2f}" if "copy" in peers else ""
        lines.append(
            f"| {one.size} GB {one.form} | {one.way} | {one.contender} | {one.written_gb:.2f} | {one.seconds:.1f} "
            f"| {bridge} | {of_copy} | {one.cpu_s:.1f} | {one.needed_gib:.2f} | {one.resident_gib:.2f} "
            f"| {one.load:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
