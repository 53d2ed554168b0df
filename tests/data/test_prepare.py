"""Preparing: the same tokens whatever the format and the number of processes; killed ones go on; faults stop it."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.data import indexed, manifest, sources, splits, units, vocabulary
from engine.data.inspect import shape_of
from engine.data.prepare import prepare
from engine.data.request import Request
from engine.data.work import default_workers
from engine.errors import SettingsError, StepFailed
from tests.data.conftest import texts, write_lines

numpy = pytest.importorskip("numpy")
pytest.importorskip("tokenizers")


def _request(path, tokenizer, output, **changes):
    files = tuple(sources.find(str(path)))
    found = vocabulary.read(tokenizer)
    defaults = {"encoder": "tokenizers", "workers": 1, "reads_back": False, **changes}
    return Request(files=files, shape=shape_of(files), vocabulary=found, output=output, **defaults)


def _contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.*")) if path.suffix in (".bin", ".idx")}


def _documents(prefix):
    """The token lists of a pair, read with no code of ours."""
    ids = numpy.fromfile(f"{prefix}.bin", dtype=numpy.uint16).tolist()
    head = Path(f"{prefix}.idx").read_bytes()
    count = int.from_bytes(head[18:26], "little")
    lengths = numpy.frombuffer(head, dtype=numpy.int32, count=count, offset=34).tolist()
    starts = [sum(lengths[:i]) for i in range(count)]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(units, "_SMALLEST", 2000)
    monkeypatch.setattr(units, "_LARGEST", 2000)
    monkeypatch.setattr(units, "SPOOL_BYTES", 2500)


def test_tokens_are_those_of_the_tokenizer_with_an_end_behind_each_document(tokenizer, tmp_path):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(40)])
    made = prepare(_request(path, tokenizer, tmp_path / "out", validation_percent=0))
    wanted = [[*reference.encode(text, add_special_tokens=False).ids, 0] for text in texts(40)]
    assert _documents(tmp_path / "out" / "train") == wanted
    assert (made.documents, made.train_tokens) == (40, sum(map(len, wanted)))
    assert made.token_type == "uint16"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "tokenizer",
        "train.bin",
        "train.idx",
    ]
    assert manifest.Manifest.load(tmp_path / "out") == made


def test_formats_and_numbers_of_processes_do_not_matter(tokenizer, tmp_path, small_units):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    documents = texts(120)
    write_lines(tmp_path / "a.jsonl", [{"text": text} for text in documents])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(arrow.compress((tmp_path / "a.jsonl").read_bytes(), "zstd", asbytes=True))
    parquet.write_table(arrow.table({"text": documents}), tmp_path / "d.parquet", row_group_size=17)
    made = {}
    for name, workers in (
        ("a.jsonl", 1),
        ("a.jsonl", 3),
        ("b.jsonl.gz", 2),
        ("c.jsonl.zst", 1),
        ("d.parquet", 2),
    ):
        output = tmp_path / f"out-{name}-{workers}"
        facts = prepare(_request(tmp_path / name, tokenizer, output, workers=workers, validation_percent=20))
        made[output.name] = (_contents(output), facts.documents, facts.text_bytes)
    first = made["out-a.jsonl-1"]
    assert first[1] == 120
    assert all(one == first for one in made.values())


def test_a_document_stays_on_its_side_when_others_come(tokenizer, tmp_path):
    few = write_lines(tmp_path / "few.jsonl", [{"text": text} for text in texts(60)])
    many = write_lines(tmp_path / "many.jsonl", [{"text": text} for text in [*texts(60, seed=9), *texts(60)]])
    for path in (few, many):
        prepare(_request(path, tokenizer, tmp_path / path.stem, validation_percent=30))
    for side in ("train", "validation"):
        before = {tuple(ids) for ids in _documents(tmp_path / "few" / side)}
        assert before and before <= {tuple(ids) for ids in _documents(tmp_path / "many" / side)}


def test_so_few_documents_that_one_side_would_be_empty(tokenizer, tmp_path):
    two = write_lines(tmp_path / "two.jsonl", [{"text": "one"}, {"text": "two"}])
    one = tmp_path / "one.txt"
    one.write_text("naïve first line\nsecond line\nthird line\n", encoding="utf-8")
    same = write_lines(tmp_path / "same.jsonl", [{"text": "one"}] * 5)
    for path, sizes in ((two, (1, 1)), (one, (1, 1))):
        prepare(_request(path, tokenizer, tmp_path / path.stem, validation_percent=1))
        out = tmp_path / path.stem
        assert (len(_documents(out / "train")), len(_documents(out / "validation"))) == sizes
    with pytest.raises(SettingsError, match="all documents are the same"):
        prepare(_request(same, tokenizer, tmp_path / "same"))


def test_a_preparation_that_was_stopped_goes_on(tokenizer, tmp_path, small_units):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(300)])
    prepare(_request(path, tokenizer, tmp_path / "whole"))

    class Stop(Exception):
        pass

    def stop_half_way(status):
        if status.documents > 100:
            raise Stop

    monkey = pytest.MonkeyPatch()
    monkey.setattr("engine.data.merge.COMMIT_INTERVAL_S", 0.0)
    with pytest.raises(Stop):
        prepare(_request(path, tokenizer, tmp_path / "out"), stop_half_way)
    monkey.undo()
    work = tmp_path / ".out.partial"
    done = json.loads((work / "journal.jsonl").read_text().splitlines()[-1])["units"]
    assert done > 0
    # A kill may leave half a journal line and bytes that no line vouches for.
    with (work / "train.bin").open("ab") as file:
        file.write(b"garbage")
    with (work / "journal.jsonl").open("ab") as file:
        file.write(b'{"units": 99')
    made = prepare(_request(path, tokenizer, tmp_path / "out"))
    assert f"it went on after {done} parts that an earlier attempt had made" in made.notices
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")
    assert not work.exists()


def test_a_killed_process_leaves_what_it_had_done(tokenizer, tmp_path):
    """The real thing: SIGKILL, which no code can see coming."""
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(30_000, words=100)])
    options = "--force --rows 600 --workers 1 --encoder tokenizers --quick --json".split()
    command = [sys.executable, "-m", "gptoss_tui", "data", "prepare", str(path), *options]
    command += ["--tokenizer", str(tokenizer), "--output", str(tmp_path / "out")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    parts = tmp_path / ".out.partial" / "parts"
    deadline = time.monotonic() + 60
    while not list(parts.glob("*.json")) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    assert not (tmp_path / "out").exists()
    done = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.json")}
    assert done
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in done:
        os.link(parts / name, kept / name)
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    made = json.loads(out.splitlines()[-1])
    assert made["documents"] == 30_000
    # Finished parts were not written again.
    assert {file.name: file.stat().st_mtime_ns for file in kept.iterdir()} == done
    prepare(_request(path, tokenizer, tmp_path / "whole"))
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")


def test_changed_inputs_start_again_and_are_seen_later(tokenizer, tmp_path, small_units):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(80)])
    request = _request(path, tokenizer, tmp_path / "out")

    class Stop(Exception):
        pass

    def stop(status):
        if status.documents:
            raise Stop

    with pytest.raises(Stop):
        prepare(request, stop)
    write_lines(path, [{"text": text} for text in texts(80, seed=5)])
    made = prepare(_request(path, tokenizer, tmp_path / "out"))
    assert any("other inputs or settings was discarded" in notice for notice in made.notices)
    assert manifest.changed_sources(made) == []
    write_lines(path, [{"text": "new"}])
    assert "bytes; it had" in manifest.changed_sources(made)[0]
    path.unlink()
    assert "No such file" in manifest.changed_sources(made)[0]


def test_the_hash_of_a_source_is_that_of_its_documents(tokenizer, tmp_path):
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = write_lines(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts(30, seed)])
        hashes.append(prepare(_request(path, tokenizer, tmp_path / name)).sources[0].content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_bad_records_stop_it_or_are_listed(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    good = "".join(json.dumps({"text": text}) + "\n" for text in texts(20))
    path.write_text(good + '{"text": 3}\n' + '{"text": ""}\n' + '{"text"\n' + good)
    with pytest.raises(SettingsError) as caught:
        prepare(_request(path, tokenizer, tmp_path / "out"))
    assert f"{path}, line 21" in caught.value.message
    assert "--skip-bad" in caught.value.hint
    made = prepare(_request(path, tokenizer, tmp_path / "out", on_bad_record="skip"))
    assert (made.documents, made.rejected, made.empty) == (40, 2, 1)
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["where"] for line in listed] == [f"{path}, line 21", f"{path}, line 23"]
    assert "a number, not text" in listed[0]["why"]


def test_nothing_to_train_on_is_said(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": ""}] * 3)
    with pytest.raises(SettingsError, match="nothing to train on .* 3 empty"):
        prepare(_request(path, tokenizer, tmp_path / "out"))


def test_a_directory_of_something_else_is_not_replaced(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(10)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="is no prepared dataset"):
        prepare(_request(path, tokenizer, tmp_path / "out"))
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize("text", ['{"name": "my web site", "icons": []}', "no JSON", '{"version": 99}'])
def test_a_directory_with_somebody_else_s_manifest_is_not_replaced(text, tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(10)])
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(text)
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="out is not replaced"):
        prepare(_request(path, tokenizer, out))
    assert (out / "thesis.tex").exists()


def test_a_dataset_of_a_newer_gptoss_or_one_that_cannot_be_read_is_not_replaced(tokenizer, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(40)])
    out = tmp_path / "out"
    prepare(_request(path, tokenizer, out))
    written = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(json.dumps({**json.loads(written), "version": 99}))
    with pytest.raises(SettingsError, match="newer gptoss"):
        prepare(_request(path, tokenizer, out, validation_percent=20))
    (out / "manifest.json").write_text(written)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    asked = _request(path, tokenizer, out, validation_percent=20)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", fail)
        with pytest.raises(SettingsError, match="Input/output error"):
            prepare(asked)
    assert (out / "manifest.json").read_text() == written
    (out / "manifest.json").write_text("")  # a power cut
    assert prepare(_request(path, tokenizer, out)).documents == 40


def test_a_large_record_passes(tokenizer, tmp_path):
    text = " ".join(texts(20_000))
    path = write_lines(tmp_path / "a.jsonl", [{"text": text}, {"text": "short"}])
    made = prepare(_request(path, tokenizer, tmp_path / "out", validation_percent=0))
    assert made.documents == 2
    assert indexed.check(tmp_path / "out" / "train", 600).tokens == made.train_tokens


def test_only_the_beginning_is_read_when_a_limit_is_given(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(2000)])
    made = prepare(_request(path, tokenizer, tmp_path / "out", limit_bytes=20_000))
    assert 10_000 < made.text_bytes < 25_000


def test_control_tokens_in_a_text_are_counted(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "say <|end|> and <|start|>"}, *({"text": t} for t in texts(9))])
    assert prepare(_request(path, tokenizer, tmp_path / "out")).with_control_tokens == 1


def test_a_full_disk_is_named_and_the_work_kept(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(9000)])
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("making a small disk needs the right to mount one")
    try:
        request = _request(path, tokenizer, disk / "out")
        with pytest.raises(StepFailed, match=f"the disk of {disk} is full") as caught:
            prepare(request)
        assert "goes on where it was" in caught.value.hint
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert prepare(request).documents == 9000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_foreign_tokenizer_is_refused_unless_forced(tokenizer):
    found = vocabulary.read(tokenizer)
    assert found.end_of_document == 0
    with pytest.raises(SettingsError, match="token ids up to 599; the model knows 0 to 511"):
        vocabulary.check_fits(found, 512, needs_gpt_oss=False, is_forced=True)
    with pytest.raises(SettingsError, match="not the tokenizer of gpt-oss"):
        vocabulary.check_fits(found, 201_088, needs_gpt_oss=True, is_forced=False)
    vocabulary.check_fits(found, 201_088, needs_gpt_oss=True, is_forced=True)
    assert vocabulary.read(tokenizer, "<|return|>").end_of_document == found.end_of_answer
    with pytest.raises(SettingsError, match="has no token '<|eot|>'"):
        vocabulary.read(tokenizer, "<|eot|>")


def test_processes_follow_cores_and_memory():
    cores = len(os.sched_getaffinity(0))
    assert default_workers(1_000_000) == cores
    assert default_workers(600) == 1


@pytest.mark.engine
def test_megatron_reads_it_back(tokenizer, tmp_path):
    pytest.importorskip("megatron.core.datasets.indexed_dataset")
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(50)])
    assert prepare(_request(path, tokenizer, tmp_path / "out", reads_back=True)).checked_by == "megatron"


def test_gigatoken_gives_the_same_files(tokenizer, tmp_path):
    pytest.importorskip("gigatoken")
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(200)])
    made = {}
    for encoder in ("tokenizers", "gigatoken"):
        facts = prepare(_request(path, tokenizer, tmp_path / encoder, encoder=encoder))
        made[facts.encoder] = _contents(tmp_path / encoder)
    assert made["tokenizers"] == made["gigatoken"]
    # So little is not worth a second tokenizer and a comparison.
    assert prepare(_request(path, tokenizer, tmp_path / "small", encoder="")).encoder == "tokenizers"


def test_a_tokenizer_that_gigatoken_cannot_carry_out_falls_back(tokenizer, tmp_path):
    pytest.importorskip("gigatoken")
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    split = {
        "type": "Split",
        "pattern": {"Regex": "[aeiou]+|[^aeiou]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(50)])
    made = prepare(
        _request(path, tmp_path / "tokenizer.json", tmp_path / "out", encoder="gigatoken", validation_percent=0)
    )
    assert made.encoder == "tokenizers"
    assert "gigatoken was not used" in made.notices[0]
    prepare(_request(path, tmp_path / "tokenizer.json", tmp_path / "slow", validation_percent=0))
    assert _contents(tmp_path / "out") == _contents(tmp_path / "slow")


def test_a_difference_found_late_starts_again_with_the_reference(tokenizer, tmp_path, monkeypatch):
    """The comparison runs beside the work; what was written by then must not survive it."""
    from engine.data import pool, work

    monkeypatch.setattr("engine.data.optional.version", lambda package: "1" if package == "gigatoken" else "")
    monkeypatch.setattr(pool.Pool, "compare", lambda self, files: None)
    said = ["", "other tokens"]
    monkeypatch.setattr(pool.Pool, "wait_for_comparison", lambda self: setattr(self, "_difference", said.pop()))
    made_jobs = []

    def as_tokenizers(self, job, workers, memory_mib, original=pool.Pool.__init__):
        made_jobs.append(job.encoder)
        original(self, dataclasses.replace(job, encoder="tokenizers"), workers, memory_mib)

    monkeypatch.setattr(work.Pool, "__init__", as_tokenizers)
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(50)])
    made = prepare(_request(path, tokenizer, tmp_path / "out", encoder="gigatoken", validation_percent=0))
    assert made_jobs == ["gigatoken", "tokenizers"]
    assert made.notices == ("gigatoken was not used: other tokens",)
    assert made.documents == 50


def test_a_killed_tokenising_process_is_named(tokenizer, tmp_path, small_units):
    psutil = pytest.importorskip("psutil")
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(3000)])

    def kill_one(status):
        nursery = [child for child in psutil.Process().children() if "engine.workers.tokenise" in child.cmdline()]
        for child in nursery[0].children() if nursery and status.documents else []:
            child.kill()

    with pytest.raises(StepFailed, match="killed from outside") as caught:
        prepare(_request(path, tokenizer, tmp_path / "out"), kill_one)
    assert "--workers 1" in caught.value.hint
    assert prepare(_request(path, tokenizer, tmp_path / "out")).documents == 3000


def test_what_is_ready_is_used_again_until_something_changes(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(40)])
    out, phases = tmp_path / "out", []
    made = prepare(_request(path, tokenizer, out))
    written = (out / "train.bin").stat()
    again = prepare(_request(path, tokenizer, out, workers=2), lambda status: phases.append(status.phase))
    assert again == made and phases == ["nothing to do: out was made from the same inputs and settings"]
    assert (out / "train.bin").stat().st_ino == written.st_ino
    with (out / "train.bin").open("ab") as file:
        file.write(b"x")
    assert prepare(_request(path, tokenizer, out)).notices == ("prepared anew: the dataset that was there is damaged",)
    other = prepare(_request(path, tokenizer, out, validation_percent=20))
    assert other.notices == ("prepared anew: the settings or the list of inputs changed",)
    write_lines(path, [{"text": text} for text in texts(41)])
    (notice,) = prepare(_request(path, tokenizer, out, validation_percent=20)).notices
    assert notice.startswith(f"prepared anew: {path} has ") and "bytes; it had" in notice


def test_a_tokenizer_whose_numbers_have_a_gap_is_refused(tokenizer, tmp_path):
    """`tokenizers` gives the tokens behind a gap other ids than the file says, and gigatoken does not."""
    from tokenizers import Tokenizer

    content = json.loads((tokenizer / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"])
    new = {**content["added_tokens"][-1], "content": "<|late|>"}
    for number in (size, size + 3):
        content["added_tokens"][-1:] = [{**new, "id": number}]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        is_kept = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|late|>") == number
        assert is_kept == (number == size)
        if is_kept:
            assert vocabulary.read(tmp_path).special["<|late|>"] == number
        else:
            with pytest.raises(SettingsError, match=rf"gives <\|late\|> the id {number}, and .* counts on to {size}"):
                vocabulary.read(tmp_path)


def test_a_file_that_is_no_tokenizer_is_named(tokenizer, tmp_path):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["type"] = "Imagined"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(4)])
    with pytest.raises(SettingsError, match="tokenizer.json cannot be used"):
        prepare(_request(path, tmp_path, tmp_path / "out"))


def test_the_share_of_a_document_is_the_same_for_ever():
    """Another value would move documents from one side to the other between two versions."""
    assert splits.share(splits.digest(b"gpt-oss")) == pytest.approx(0.666364725891538, abs=1e-15)
    held_out = sum(splits.share(splits.digest(f"document {number}".encode())) < 0.05 for number in range(10_000))
    assert 430 < held_out < 570
