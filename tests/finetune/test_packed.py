"""What a GPU would be given: packed rows in which each chat, and only its answer, is as it was prepared alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engine.data.manifest import Manifest
from engine.run.directory import RunDirectory
from tests.end_to_end.harness import Zygote
from tests.finetune.conftest import MakeCase


def test_packed_rows_hold_the_chats(zygote: Zygote, prepared: RunDirectory, case: MakeCase) -> None:
    import pyarrow.parquet

    run = case({"training.micro_batch": 1, "training.sequence_length": 512})
    run.plan.write_text(run.plan.read_text().replace('"device": "cpu"', '"device": "gpu"'))
    result = zygote.run("prepare", run)
    assert result["packing_efficiency"] > 0.9
    script = Path(__file__).with_name("packed_rows.py")
    done = subprocess.run([sys.executable, str(script), str(run.path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert {tuple(row["shape"]) for row in seen["rows"]} == {(1, 512)}
    assert sum(row["counted"] for row in seen["rows"]) == Manifest.load(run.data).trained_tokens
    assert seen["validation"] >= 1
    alone = pyarrow.parquet.read_table(prepared.data / "train.idx.parquet").to_pylist()
    expected = sorted((row["input_ids"][:-1], row["input_ids"][1:], row["loss_mask"][:-1]) for row in alone)
    found = []
    for row in seen["rows"]:
        for tokens, labels, mask in row["chats"]:
            length = max(place for place, counts in enumerate(mask) if counts) + 1
            assert not any(tokens[length:])
            found.append((tokens[:length], labels[:length], [int(counts) for counts in mask[:length]]))
    assert sorted(found) == expected
