"""What is fuzzed: each harness takes bytes, as a hostile file would hold them, and may raise EngineError only.

`seeds` are real inputs from which mutations start.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import pickle
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine import env_file, imports, machine_file, presets, secrets, settings_file
from engine.checkpoints import danger, inspect, manifest, safetensors_file
from engine.cli import output
from engine.errors import EngineError
from engine.monitor import diagnose, history, report, tensorboard
from engine.monitor.alert import Facts
from engine.monitor.alerts import AlertWatch
from engine.monitor.metrics import LogReader, Record
from engine.monitor.record import parse_record
from engine.monitor.sources import parse_json
from engine.monitor.tensorboard import EventFile
from engine.monitor.wandb_file import WandbFile
from engine.plan.plan import Plan
from engine.run.state import State
from engine.settings import Settings
from tests.security import hostile

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Harness:
    """One reader of foreign bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]

    def __call__(self, data: bytes) -> None:
        """Raises whatever the reader raises beyond the errors that it may raise."""
        try:
            self.run(data)
        except EngineError as error:
            assert error.message


@cache
def _place() -> Path:
    """A directory in memory where there is one: the harnesses write millions of files."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="gptoss-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@cache
def _path(name: str) -> Path:
    path = _place() / name
    path.parent.mkdir(exist_ok=True)
    return path


def _file(name: str, data: bytes) -> Path:
    path = _path(name)
    with open(path, "wb", buffering=0) as file:
        file.write(data)
    return path


def _settings(data: bytes) -> None:
    settings = settings_file.load(_file("gptoss.toml", data))
    if secrets.find(data.decode("utf-8", "replace"), {}):
        return
    # What was understood survives a round trip.
    again = settings_file.load(_file("again.toml", settings_file.dumps(settings).encode()))
    assert again == settings


def _preset(data: bytes) -> None:
    preset = presets.load(_file("mine.toml", data))
    assert preset.settings


def _env(data: bytes) -> None:
    values = env_file.parse(env_file.read_text(_file("some.env", data)))
    env_file.render(values, data.decode())


def _machine(data: bytes) -> None:
    machine_file.load(_file("machine.toml", data))


def _log(data: bytes) -> None:
    """The lines of a foreign log, through everything that judges them."""
    reader, watch = LogReader(), AlertWatch(Facts(iterations=100))
    for line in data.split(b"\n"):
        for record in reader.read(line.decode("utf-8", "replace"), 1_700_000_000.0):
            watch.feed(record)


def _records(data: bytes) -> None:
    watch = AlertWatch(Facts(iterations=100, checkpoint_interval=5))
    for line in data.split(b"\n"):
        for record in (parse_record(line), parse_json(line)):
            if record is not None:
                watch.feed(record, 1_700_000_000.0)
    watch.tick(1_700_000_100.0)


def _state(data: bytes) -> None:
    State.from_json(data.decode("utf-8", "replace"))


def _plan(data: bytes) -> None:
    Plan.from_json(data.decode("utf-8", "replace"))


def _metadata(data: bytes) -> None:
    """The index of a Megatron checkpoint: a hostile pickle carries nothing out."""
    iteration = _file("iter_0000001/.metadata", data).parent
    danger.find(iteration)
    inspect.inspect(iteration)


def _manifest(data: bytes) -> None:
    """The sums that lie beside a converted checkpoint, compared with its files."""
    root = _file(f"converted/{manifest.NAME}", data).parent
    _file("converted/a.distcp", b"some weights")
    if (listed := manifest.read(root)) is not None:
        manifest.differences(root, listed)


def _torch_file(data: bytes) -> None:
    """A file that torch would load."""
    danger.find(_file("torch/x.pt", data).parent)


def _event_file(data: bytes) -> None:
    """TensorBoard's records: their sums are made right, so that what they hold is read."""
    _watched(EventFile(_file("events.out.tfevents.1.host", _with_event_sums(data))).read())


def _wandb(data: bytes) -> None:
    _watched(WandbFile(_file("run-x.wandb", _with_piece_sums(data))).read())


def _watched(records: list[Record]) -> None:
    watch = AlertWatch(Facts(iterations=100))
    for record in records:
        watch.feed(record, 1_700_000_000.0)


def _report(data: bytes) -> None:
    """The page and the table of a run whose records came from elsewhere."""
    read = [record for line in data.split(b"\n") if (record := parse_record(line)) is not None]
    known = [record for record in read if isinstance(record.get("t"), (int, float))]
    records = tuple(sorted(known, key=lambda record: record["t"]))
    run = history.RunRecord(name="x", settings=Settings(), records=records)
    page = report.to_html(run)
    assert "<script" not in page and "\x1b" not in page + report.to_markdown(run)
    history.to_csv(run)
    history.compare([run, run], "loss", "time")


def _diagnosis(data: bytes) -> None:
    """The logs and reports of a failed attempt."""
    attempt = _file("attempt/rank-0.log", data).parent
    _file("attempt/error-rank-0.json", data[:2000])
    diagnose.diagnose(attempt, Settings())


def _script(data: bytes) -> None:
    """A launch script of somebody else, taken over."""
    imports.read([_file("train.sh", data)])


def _safetensors(data: bytes) -> None:
    safetensors_file.read_header(_file("model.safetensors", data))


def _terminal(data: bytes) -> None:
    shown = output.clean(data.decode("utf-8", "replace"))
    assert not any(ord(letter) < 32 and letter not in "\n\t" or 127 <= ord(letter) < 160 for letter in shown)


def _shipped(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(ROOT.glob(pattern))]


def _settings_seeds() -> list[bytes]:
    return [settings_file.dumps(each).encode() for each in (Settings(), *(p.settings for p in presets.all_presets()))]


def _env_seeds() -> list[bytes]:
    values: dict[str, str | int] = {"GPUS_PER_NODE": 8, "NUM_NODES": 2, "MASTER_ADDR": "node01", "NCCL_DEBUG": "INFO"}
    return [env_file.render(values).encode()]


def _machine_seeds() -> list[bytes]:
    gpu = b'[gpu]\nname = "NVIDIA H200"\ncount = 8\nmemory_gib = 140.4\n'
    return [gpu, b"[cluster]\nnodes = 2\n" + gpu, b"[host]\nram_gib = 2000\n" + gpu]


def _log_seeds() -> list[bytes]:
    return [path.read_bytes()[-4000:] for path in sorted((ROOT / "tests/captured").rglob("*.log"))][:40]


def _failure_seeds() -> list[bytes]:
    """Logs, and what a rank reports of the exception that ended it."""
    told = {"error": "LaunchError", "message": "port 29500 is taken", "hint": "set launch.master_port=29501",
            "traceback": "Traceback (most recent call last):\nengine.errors.LaunchError: port 29500 is taken\n",
            "rank": 0, "t": 1_700_000_000.5}  # fmt: skip
    return [*_log_seeds(), json.dumps(told).encode()]


def _record_seeds() -> list[bytes]:
    lines = (ROOT / "tests/captured/rehearsal/metrics.jsonl").read_bytes().splitlines(keepends=True)
    events = (ROOT / "tests/captured/rehearsal/events.jsonl").read_bytes().splitlines(keepends=True)
    return [b"".join(lines[:8]), b"".join(lines[:2]), b"".join(events[:12]), b"".join(events[-6:])]


def _metadata_seeds() -> list[bytes]:
    """Plain pickles, one that calls, and whole indexes: of an object, and of a tensor."""
    named = b"cos\nsystem\n(S'touch /tmp/hit'\ntR."
    plain = [pickle.dumps({"a": [1, 2.5, "x", None]}, protocol) for protocol in range(6)]
    return [*plain, named, hostile.indexed("a.distcp", 9), hostile.indexed("a.distcp", 9, entry={"a": 1}), _index()]


def _index() -> bytes:
    """The index of one tensor in two chunks, as torch writes it but for what is not read."""
    made, name, where = hostile.Made, hostile.Name, hostile.METADATA
    boxes = [{"offsets": (at,), "sizes": (2,)} for at in (0, 2)]
    properties = made(name(where, "TensorProperties"), (name("torch", "bfloat16"), None, False, None, False))
    entry = {"properties": properties, "size": (4,),
             "chunks": tuple(made(name(where, "ChunkStorageMetadata"), box) for box in boxes)}  # fmt: skip
    places = [
        (made(hostile.INDEX, {"fqn": "w", "offset": box["offsets"], "index": number}),
         made(hostile.PLACE, {"relative_path": "a.distcp", "offset": 400 * number, "length": 400}))
        for number, box in enumerate(boxes)
    ]  # fmt: skip
    state = {"state_dict_metadata": {"w": made(name(where, "TensorStorageMetadata"), entry)}, "storage_data": places}
    return b"\x80\x04" + hostile.emit(made(name(where, "Metadata"), state)) + b"."


def _manifest_seeds() -> list[bytes]:
    sums = {"bytes": 12, "sha256": hashlib.sha256(b"some weights").hexdigest()}
    return [json.dumps({"version": 1, "files": {"a.distcp": sums, "b.distcp": {**sums, "bytes": 0}}}).encode()]


def _torch_seeds() -> list[bytes]:
    harmless = pickle.dumps({"a": [1, 2.5, "x", None]}, 2)
    return [hostile.zipped(harmless), hostile.legacy(at=3, evil=harmless), *hostile.files(Path("/x")).values()]


def _with_event_sums(data: bytes) -> bytes:
    """An event file with its sums made right, as far as its lengths make sense."""
    parts, at = [], 0
    while at + 12 <= len(data):
        head, length = data[at : at + 8], struct.unpack_from("<Q", data, at)[0]
        parts += [head, struct.pack("<I", tensorboard.masked_crc(head)), data[at + 12 : at + 16 + length]]
        at += 16 + length
    return b"".join(parts)


def _with_piece_sums(data: bytes) -> bytes:
    """The same for the first block of a W&B file."""
    parts, at = [data[:7]], 7
    while at + 7 <= len(data):
        length, body = struct.unpack_from("<H", data, at + 4)[0], data[at + 6 :][:1]
        body += data[at + 7 : at + 7 + length]
        parts += [struct.pack("<I", zlib.crc32(body)), data[at + 4 : at + 6], body]
        at += 7 + length
    return b"".join(parts)


def _event_seeds() -> list[bytes]:
    """Its first 29 events, and the first five."""
    [path] = (ROOT / "tests/captured/rehearsal").glob("events.out.tfevents*")
    data = path.read_bytes()
    return [data[:1419], data[:249]]


def _wandb_seeds() -> list[bytes]:
    """A whole file, and its head with the first steps of the history alone."""
    [whole] = _shipped("tests/captured/wandb/*.wandb")
    return [whole, whole[:670], whole[:7] + whole[409:670], whole[:7] + whole[409:1247]]


def _script_seeds() -> list[bytes]:
    torchrun = (
        b"export A=1\nARGS=(--num-layers 24 --lr 1e-4)\nif [ x ]; then B=2; fi\ntorchrun pretrain_gpt.py ${ARGS[@]}\n"
    )
    return [torchrun, b"#!/bin/bash\n#SBATCH --nodes=2\nsrun python pretrain_gpt.py --seq-length $((2 * 4))\n"]


def _safetensors_seeds() -> list[bytes]:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    return [struct.pack("<Q", len(header)) + header + bytes(12)]


ALL = (
    Harness("settings", _settings, _settings_seeds),
    Harness("preset", _preset, lambda: _shipped("presets/*.toml")),
    Harness("env-file", _env, _env_seeds),
    Harness("machine-file", _machine, _machine_seeds),
    Harness("log", _log, _log_seeds),
    Harness("records", _records, _record_seeds),
    Harness("state", _state, lambda: _shipped("tests/captured/versions/*/state.json")),
    Harness("plan", _plan, lambda: _shipped("tests/captured/versions/*/plan.json")),
    Harness("metadata", _metadata, _metadata_seeds),
    Harness("manifest", _manifest, _manifest_seeds),
    Harness("torch-file", _torch_file, _torch_seeds),
    Harness("event-file", _event_file, _event_seeds),
    Harness("wandb", _wandb, _wandb_seeds),
    Harness("report", _report, _record_seeds),
    Harness("diagnosis", _diagnosis, _failure_seeds),
    Harness("script", _script, _script_seeds),
    Harness("safetensors", _safetensors, _safetensors_seeds),
    Harness("terminal", _terminal, lambda: [b"\x1b]0;title\x07\x1b[2J\x9b31m\xe2\x80\xae text\r\n\t"]),
)
BY_NAME = {harness.name: harness for harness in ALL}

# The readers' own words, for mutations that get past the first brace.
WORDS = (
    b"version", b"= ", b"[model]", b"[training]", b"iterations", b"null", b"true", b"-1", b"1e999", b"nan", b"NaN",
    b"inf", b"0", b"999999999999999999999", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\x00",
    b"\xff", b"\x1b[2J", b"$(touch hit)", b"`", b";", b"\\", b"iteration", b"lm loss:", b"| ", b"kind", b"t", b"loss",
    b"[[[[[[[[", b'{"a":' * 20, b"\xe2\x80\xae", b"MASTER_ADDR=", b"PATH=", b"cos\nsystem\n", b"(", b"R.",
)  # fmt: skip
