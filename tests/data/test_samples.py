"""Samples without an index: any number of them at once, and chats one in a row or in Bridge's own packed rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.data.conftest import write_lines
from tests.data.test_chats import _chats, _prepare, _samples

SCRIPT = """
import json, resource, sys
from engine.workers import cpu
cpu.prepare_environment()
cpu.install()
from megatron.bridge.data.base import DatasetBuildContext
from megatron.bridge.data.utils import get_dataset_provider
from engine.workers.finetune_data import ChatRows
from engine.workers.samples import MockSamples, packed_chats

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mock = MockSamples(seq_length=64, vocabulary_size=512)
train, validation, test = get_dataset_provider(mock)([1_953_125_000, 1000, 0], mock)
first, again, last = train[0], train[0], train[1_953_124_999]
grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10

directory, end = sys.argv[1], int(sys.argv[2])
chats = ChatRows(seq_length=512, directory=directory + "/single")
rows, _, _ = get_dataset_provider(chats)([60, 10, 0], chats)
answers = [sample["labels"][sample["loss_mask"] > 0].tolist() for sample in map(rows.__getitem__, range(60))]

facts = json.load(open(directory + "/packed/manifest.json"))["packing"]
packed = packed_chats(directory + "/packed", facts, {"num_workers": 0})
packed.finalize()

class FakeTokenizer:
    eos_id = eod = end

built = get_dataset_provider(packed)([0, 0, 0], packed, FakeTokenizer())
batch = built[0].collate_fn([built[0][0]])
print(json.dumps({
    "sizes": [len(train), len(validation), test is None], "grown_mib": grown_mib,
    "same": first["tokens"].equal(again["tokens"]), "other": not first["tokens"].equal(last["tokens"]),
    "shifted": first["labels"][:-1].equal(first["tokens"][1:]), "shape": list(first["tokens"].shape),
    "answers": answers, "packed_rows": [len(built[0]), len(built[1])], "packed_shape": list(batch["tokens"].shape),
}))
"""


@pytest.mark.engine
def test_samples_through_bridges_own_door(tokenizer, tmp_path):
    pytest.importorskip("torch")
    from engine.data import vocabulary

    end = vocabulary.read(tokenizer).end_of_answer
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in _chats(40)])
    _prepare(path, tokenizer, tmp_path / "single", is_packed=False)
    packed = _prepare(path, tokenizer, tmp_path / "packed")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(end)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["sizes"] == [1_953_125_000, 1000, True]
    assert found["grown_mib"] < 50
    assert found["same"] and found["other"] and found["shifted"] and found["shape"] == [64]
    rows = _samples(tmp_path / "single" / "train.idx.parquet")
    wanted = sorted([token for token, counts in zip(ids[1:], mask, strict=False) if counts] for ids, mask in rows)
    # An epoch holds every chat once, and the next one in another order.
    size = len(rows)
    assert sorted(found["answers"][:size]) == wanted
    assert found["answers"][size:] != found["answers"][: 60 - size]
    assert found["packed_rows"] == [packed.packing[side]["rows"] for side in ("train", "validation")]
    assert found["packed_shape"] == [1, 512]
