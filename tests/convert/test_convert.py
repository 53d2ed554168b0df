"""Streaming conversion, both directions, against plain arithmetic; and what happens when it goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoints import inspect, manifest, torch_dist
from engine.errors import CheckpointError, EngineError, PreflightError, StepFailed
from engine.workers.stream import convert as converting
from engine.workers.stream import files, resources
from engine.workers.stream.convert import convert
from engine.workers.stream.export import export
from tests.convert import models
from tests.convert.conftest import ROOT, MakeSource

FORMS = [(form, ffn) for form in ("bf16", "mxfp4", "fp32") for ffn in (models.SQUARE, models.RECTANGULAR)]


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def load_megatron(root: Path) -> dict[str, torch.Tensor]:
    """Every tensor, by torch's own reader."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(root / "iter_0000000")
    known = reader.read_metadata().state_dict_metadata
    shaped = {key: entry for key, entry in known.items() if hasattr(entry, "size")}
    state: dict[str, Any] = {key: torch.empty(x.size, dtype=x.properties.dtype) for key, x in shaped.items()}
    with pytest.warns(UserWarning):  # one process, no group
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint as transformers holds it: experts dequantised, [expert, in, out]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    found = dict(tensors)
    for name in [name for name in tensors if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        found[stem] = convert_moe_packed_tensors(found.pop(name), found.pop(f"{stem}_scales"))
    return found


@pytest.mark.parametrize(("form", "ffn"), FORMS)
def test_there_and_back_is_exact(source: MakeSource, tmp_path: Path, form: str, ffn: int) -> None:
    dtype = "fp32" if form == "fp32" else "bf16"
    origin = source(form, ffn)
    made = convert(origin, tmp_path / "megatron", dtype, threads=2)
    assert made["parameters"] == models.tiny(ffn).parameters
    export(tmp_path / "megatron", tmp_path / "hf", origin, dtype, threads=2)
    expected, found = plain(load_all(origin)), load_all(tmp_path / "hf")
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("form", "ffn"), FORMS)
def test_megatron_gets_the_right_rows(source: MakeSource, tmp_path: Path, form: str, ffn: int) -> None:
    """The mapping written out once more, without streams: gate and up apart, q k v by group, [out, in]."""
    model = models.tiny(ffn)
    convert(source(form, ffn), tmp_path / "megatron", "fp32" if form == "fp32" else "bf16")
    found, hf = load_megatron(tmp_path / "megatron"), plain(load_all(source(form, ffn)))
    for layer in range(model.layers):
        name = f"model.layers.{layer}."
        gate_up, down = hf[name + "mlp.experts.gate_up_proj"], hf[name + "mlp.experts.down_proj"]
        fc1 = torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT
        assert torch.equal(found["decoder.layers.mlp.experts.experts.linear_fc1.weight"][layer], fc1)
        assert torch.equal(found["decoder.layers.mlp.experts.experts.linear_fc2.weight"][layer], down.mT)
        q, k, v = (hf[f"{name}self_attn.{x}_proj.weight"].unflatten(0, (-1, model.head_dim)) for x in "qkv")
        per = model.heads // model.kv_heads
        rows = [torch.cat((q[g * per : (g + 1) * per], k[g : g + 1], v[g : g + 1])) for g in range(model.kv_heads)]
        qkv = torch.cat(rows).flatten(0, 1)
        assert torch.equal(found["decoder.layers.self_attention.linear_qkv.weight"][layer], qkv)
        assert torch.equal(
            found["decoder.layers.self_attention.core_attention.softmax_offset"][layer], hf[name + "self_attn.sinks"]
        )


@pytest.mark.parametrize("turned", [("down_proj",), ("gate_up_proj",), ("down_proj", "gate_up_proj")])
def test_experts_stored_the_other_way_round_give_the_same(tmp_path: Path, turned: tuple[str, ...]) -> None:
    model = models.tiny(models.RECTANGULAR)
    made = models.entries(model, "bf16")
    models.write(tmp_path / "a", model, "bf16", made)
    for name, (dtype, shape, values) in made.items():
        if name.endswith(turned):
            matrix = torch.frombuffer(bytearray(values), dtype=torch.int16).view(shape).mT.contiguous()
            made[name] = (dtype, tuple(matrix.shape), matrix.numpy().tobytes())
    models.write(tmp_path / "b", model, "bf16", made)
    for name in "ab":
        convert(tmp_path / name, tmp_path / f"out-{name}", "bf16")
    one, two = load_megatron(tmp_path / "out-a"), load_megatron(tmp_path / "out-b")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_many_small_files_hold_the_same(source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model becomes many files, and its embedding many chunks; here a small one does."""
    convert(source("bf16", 64), tmp_path / "few", "bf16")
    monkeypatch.setattr(converting, "UNIT_BYTES", 30_000)
    monkeypatch.setattr(converting, "PIECE_BYTES", 4_000)
    made = convert(source("bf16", 64), tmp_path / "many", "bf16", threads=3)
    assert made["files"] > 15
    few, many = load_megatron(tmp_path / "few"), load_megatron(tmp_path / "many")
    assert few.keys() == many.keys()
    assert all(torch.equal(few[key], many[key]) for key in few)


def test_the_manifest_knows_every_file(source: MakeSource, tmp_path: Path) -> None:
    convert(source("mxfp4", 64), tmp_path / "m", "bf16")
    listed = manifest.read(tmp_path / "m")
    assert listed is not None
    on_disk = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert on_disk - set(listed["files"]) == {manifest.NAME}
    assert manifest.differences(tmp_path / "m", listed) == []
    victim = tmp_path / "m" / "iter_0000000" / "__3_0.distcp"
    data = bytearray(victim.read_bytes())
    data[5000] ^= 1
    victim.write_bytes(data)
    assert manifest.differences(tmp_path / "m", listed) == ["iter_0000000/__3_0.distcp differs from what was written"]


def _with_nan(tmp_path: Path, form: str) -> Path:
    model = models.tiny()
    made = models.entries(model, form)
    name = "model.layers.3.mlp.experts.down_proj" + ("_scales" if form == "mxfp4" else "")
    dtype, shape, values = made[name]
    bad = b"\xff" if form == "mxfp4" else b"\xc0\x7f"
    made[name] = (dtype, shape, values[: -len(bad)] + bad)
    return models.write(tmp_path / "bad", model, form, made)


@pytest.mark.parametrize("form", ["bf16", "mxfp4"])
def test_a_nan_is_named_and_what_was_there_stays(source: MakeSource, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    convert(source("bf16", 64), out, "bf16")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.mlp\.experts\.down_proj"):
        convert(_with_nan(tmp_path, form), out, "bf16")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (tmp_path / ".out.partial").exists()


def test_an_interrupted_conversion_goes_on(source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files._note
    noted: list[str] = []

    def fail_after_three(journal: Path, written: files.Written) -> None:
        if len(noted) == 3:
            raise KeyboardInterrupt
        noted.append(written.name)
        real(journal, written)

    monkeypatch.setattr(files, "_note", fail_after_three)
    with pytest.raises(KeyboardInterrupt):
        convert(source("bf16", 64), tmp_path / "out", "bf16", threads=1)
    assert not (tmp_path / "out").exists()
    rewritten: list[str] = []

    def note(journal: Path, written: files.Written) -> None:
        rewritten.append(written.name)
        real(journal, written)

    monkeypatch.setattr(files, "_note", note)
    convert(source("bf16", 64), tmp_path / "out", "bf16", threads=1)
    assert noted and rewritten and not set(noted) & set(rewritten)
    convert(source("bf16", 64), tmp_path / "whole", "bf16")
    one, two = load_megatron(tmp_path / "out"), load_megatron(tmp_path / "whole")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_another_source_starts_anew(source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(converting, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(source("bf16", 64), tmp_path / "out", "bf16")
    partial = tmp_path / ".out.partial"
    assert len((partial / files.JOURNAL).read_text().splitlines()) > 3
    convert(source("mxfp4", 64), tmp_path / "out", "bf16")
    convert(source("mxfp4", 64), tmp_path / "clean", "bf16")
    one, two = load_megatron(tmp_path / "out"), load_megatron(tmp_path / "clean")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_two_at_once_are_refused(source: MakeSource, tmp_path: Path) -> None:
    with files.making(tmp_path / "out", {}):
        with pytest.raises(CheckpointError, match="is being written by another process"):
            convert(source("bf16", 64), tmp_path / "out", "bf16")


def test_a_full_disk_and_a_small_memory_are_seen_before(
    source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("engine.workers.stream.resources.shutil.disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(PreflightError, match=r"0\.0000 GB free and 0\.0007 GB are needed"):
            convert(source("bf16", 64), tmp_path / "out", "bf16")
    with monkeypatch.context() as patch:
        patch.setattr(resources, "available_memory_bytes", lambda: 100 << 20)
        with pytest.raises(PreflightError, match="GiB of memory are free"):
            convert(source("bf16", 64), tmp_path / "out", "bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_is_reported(source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.OutputFile, "put", fail)
    with pytest.raises(StepFailed, match="No space left on device"):
        convert(source("bf16", 64), tmp_path / "out", "bf16")
    assert list(tmp_path.iterdir()) == []  # nothing was finished with which it could go on


def test_how_long_it_will_take_is_said_when_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("engine.workers.stream.files.time.monotonic", lambda: now[0])
    meter = files.Meter(200_000_000_000)
    meter.keep(100_000_000_000)
    meter.add(1_000_000, "lm_head.weight")
    now[0] += 0.5
    assert meter.sentence() == "100.00 of 200.00 GB, 0.00 GB/s  lm_head.weight"
    now[0] += 9.5
    meter.add(9_999_000_000, "lm_head.weight")
    assert meter.sentence() == "110.00 of 200.00 GB, 1.00 GB/s, 90 s left  lm_head.weight"
    now[0] += 90
    assert meter.sentence() == "110.00 of 200.00 GB, 0.10 GB/s, 15 min left  lm_head.weight"


def test_fp32_becomes_bf16_by_rounding(source: MakeSource, tmp_path: Path) -> None:
    convert(source("fp32", 64), tmp_path / "m", "bf16")
    export(tmp_path / "m", tmp_path / "hf", source("fp32", 64), "bf16")
    expected, found = load_all(source("fp32", 64)), load_all(tmp_path / "hf")
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in expected)


def test_an_export_loads_in_transformers(source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("engine.workers.stream.export.MIN_SHARD_BYTES", 100_000)
    convert(source("mxfp4", 96), tmp_path / "m", "bf16")
    export(tmp_path / "m", tmp_path / "hf", source("mxfp4", 96), "bf16")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == models.tiny(96).parameters
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert "megatron" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda root: (root / "__3_0.distcp").unlink(), r"__3_0\.distcp is missing"),
        (lambda root: (root / "__3_0.distcp").write_bytes((root / "__3_0.distcp").read_bytes()[:-9]), "is cut off"),
        (lambda root: (root / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n."), r"names os\.system"),
        (lambda root: (root / ".metadata").write_bytes((root / ".metadata").read_bytes()[:500]), "is damaged"),
        (lambda root: (root / "metadata.json").write_text('{"sharded_backend": "zarr"}'), "'zarr'"),
        (
            lambda root: (root / "metadata.json").write_text(
                '{"sharded_backend": "torch_dist", "sharded_backend_version": 2}'
            ),
            "version 2 of the format torch_dist",
        ),
        (lambda root: (root / "metadata.json").write_text('{"sharded_backend": "fsdp_dtensor"}'), "'fsdp_dtensor'"),
    ],
)
def test_a_damaged_megatron_checkpoint_is_not_exported(
    source: MakeSource, tmp_path: Path, spoil: Any, names: str
) -> None:
    convert(source("bf16", 64), tmp_path / "m", "bf16")
    spoil(tmp_path / "m" / "iter_0000000")
    with pytest.raises(CheckpointError, match=names):
        export(tmp_path / "m", tmp_path / "hf", source("bf16", 64), "bf16")
    assert not (tmp_path / "hf").exists()
    assert not inspect.inspect(tmp_path / "m").is_complete


def test_another_model_is_not_exported(source: MakeSource, tmp_path: Path) -> None:
    convert(source("bf16", 64), tmp_path / "m", "bf16")
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight is \[4, 4, 128, 64\] and not \[4, 4, 192, 64\]"):
        export(tmp_path / "m", tmp_path / "hf", source("bf16", 96), "bf16")


def test_a_torn_iteration_is_not_taken(source: MakeSource, tmp_path: Path) -> None:
    convert(source("bf16", 64), tmp_path / "m", "bf16")
    (tmp_path / "m" / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(EngineError, match="iter_0000007 is not a complete"):
        torch_dist.find_iteration(tmp_path / "m")


WITHOUT_TORCH = """
import sys
from pathlib import Path
from engine.workers.stream.convert import convert
from engine.workers.stream.export import export
from engine.workers.stream.verify import verify
source, made, exported = map(Path, sys.argv[1:])
convert(source, made, "bf16")
export(made, exported, source, "bf16")
assert verify(made, source, with_logits=False)["is_verified"]
heavy = sys.modules.keys() & {"torch", "transformers", "megatron", "safetensors"}
assert not heavy, heavy
"""


def test_weights_are_converted_without_torch(source: MakeSource, tmp_path: Path) -> None:
    """Importing it takes longer than converting 1 GB, and a quarter of the memory."""
    argv = [sys.executable, "-c", WITHOUT_TORCH, *map(str, (source("mxfp4", 96), tmp_path / "m", tmp_path / "hf"))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_metadata_has_the_fields_of_torchs_classes(source: MakeSource, tmp_path: Path) -> None:
    """What torch reads is what torch itself would have written: no field is missing, none is more."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta, TensorProperties

    convert(source("mxfp4", 96), tmp_path / "m", "bf16")
    iteration = tmp_path / "m" / "iter_0000000"
    ours = dcp.FileSystemReader(iteration).read_metadata()
    with pytest.warns(UserWarning):  # one process, no group
        dcp.save({"a": torch.zeros(2, 3).bfloat16(), "b": "text"}, checkpoint_id=tmp_path / "torchs", no_dist=True)
    torchs = dcp.FileSystemReader(tmp_path / "torchs").read_metadata()
    assert type(ours) is type(torchs) and vars(ours).keys() == vars(torchs).keys()
    kinds = [{type(one): one for one in known.state_dict_metadata.values()} for known in (ours, torchs)]
    assert kinds[0].keys() == kinds[1].keys()
    for kind, one in kinds[0].items():
        assert vars(one).keys() == vars(kinds[1][kind]).keys()
    tensor = ours.state_dict_metadata["decoder.layers.mlp.experts.experts.linear_fc1.weight"]
    assert tensor.properties == TensorProperties(dtype=torch.bfloat16) and type(tensor.size) is torch.Size
    assert type(ours.storage_meta) is StorageMeta and ours.storage_meta.save_id
    assert {type(one) for one in ours.storage_data} == {MetadataIndex}
    assert {type(one) for one in ours.storage_data.values()} == {_StorageInfo}
    place = ours.storage_data[MetadataIndex("decoder.layers.mlp.experts.experts.linear_fc1.weight", (0, 0, 0, 0))]
    assert {"relative_path", "offset", "length"} == vars(place).keys() - {"transform_descriptors"}
