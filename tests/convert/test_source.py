"""A bad Hugging Face checkpoint is named before anything is written. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoints import hugging_face, safetensors_file
from engine.errors import CheckpointError, EngineError, NotFoundError, SettingsError
from tests.convert import models

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("form", ["bf16", "mxfp4", "fp32"])
@pytest.mark.parametrize("ffn", [models.SQUARE, models.RECTANGULAR])
def test_whole_checkpoints_are_taken(tmp_path: Path, form: str, ffn: int) -> None:
    found = hugging_face.read(models.make(tmp_path / "m", form, ffn, shards=3))
    assert found.is_mxfp4 == (form == "mxfp4")
    assert found.model == models.tiny(ffn) or found.model.ffn == ffn
    assert len(found.tensors) == len(models.entries(models.tiny(ffn), form))


def test_the_orientation_of_the_experts_is_seen_where_it_can_be(tmp_path: Path) -> None:
    turned = hugging_face.read(models.make(tmp_path / "a", ffn=models.RECTANGULAR, transposed=("down_proj",)))
    assert turned.is_transposed("model.layers.0.mlp.experts.down_proj")
    assert not turned.is_transposed("model.layers.0.mlp.experts.gate_up_proj")
    plain = hugging_face.read(models.make(tmp_path / "b", ffn=models.RECTANGULAR))
    assert not plain.is_transposed("model.layers.0.mlp.experts.down_proj")


def _cut(path: Path) -> None:
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def _remove(path: Path) -> None:
    sorted(path.glob("*.safetensors"))[1].unlink()


def _lie(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"], index["weight_map"]["lm_head.weight"] = (
        index["weight_map"]["lm_head.weight"],
        index["weight_map"]["model.norm.weight"],
    )
    (path / INDEX).write_text(json.dumps(index))


def _leave(path: Path) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../secret.safetensors"
    (path / INDEX).write_text(json.dumps(index))


def _change(**values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | values))

    return change


def _change_rope(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"]["truncate"] = True
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (_cut, "is cut off: lm_head.weight"),
        (_remove, "lacks model-00002-of-00003.safetensors"),
        (_lie, "is not in model-"),
        (_leave, "outside its directory"),
        (_change(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]), "model.layers.2."),
        (_change(vocab_size=640), "model.embed_tokens.weight is [512, 64] and not [640, 64]"),
        (_change(model_type="llama"), "'llama'"),
        (_change(swiglu_limit=9.0), "swiglu_limit = 9.0"),
        (_change(layer_types=["full_attention"] * 4), "layer_types"),
        (_change_rope, "rope truncate = True"),
    ],
)
def test_faults_are_named(tmp_path: Path, spoil: Callable[[Path], None], names: str) -> None:
    path = models.make(tmp_path / "m", shards=3)
    spoil(path)
    with pytest.raises((CheckpointError, SettingsError)) as caught:
        hugging_face.read(path)
    assert names in caught.value.message
    assert caught.value.hint


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    model = models.tiny()
    made = models.entries(model, "bf16")
    _, shape, values = made["lm_head.weight"]
    made["lm_head.weight"] = ("F16", shape, values)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is F16"):
        hugging_face.read(models.write(tmp_path / "m", model, "bf16", made))


def test_a_missing_and_a_surplus_tensor_are_named(tmp_path: Path) -> None:
    model = models.tiny()
    made = models.entries(model, "mxfp4")
    scales = made.pop("model.layers.1.mlp.experts.down_proj_scales")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.down_proj_scales"):
        hugging_face.read(models.write(tmp_path / "a", model, "mxfp4", made))
    made["model.layers.1.mlp.experts.down_proj_scales"] = made["model.layers.9.extra"] = scales
    with pytest.raises(CheckpointError, match=r"model\.layers\.9\.extra"):
        hugging_face.read(models.write(tmp_path / "b", model, "mxfp4", made))


def test_nothing_that_is_no_checkpoint_is_taken(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        hugging_face.find(str(tmp_path / "absent" / "deeper" / "still"))
    (tmp_path / "config.json").write_text(json.dumps(models.config(models.tiny(), "bf16")))
    with pytest.raises(CheckpointError, match="neither"):
        hugging_face.read(tmp_path)


def test_a_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models--openai--gpt-oss-20b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert hugging_face.find("openai/gpt-oss-20b") == folder / "snapshots" / "abc"
    with pytest.raises(NotFoundError, match="neither a directory nor in the Hugging Face cache"):
        hugging_face.find("openai/gpt-oss-120b")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_header_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        safetensors_file.read_header(path)


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_changed_byte_of_the_header_is_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    head, _ = safetensors_file.make_header({"a": (2, 3), "b": (4,)}, "BF16")
    data = bytearray(head + bytes(20))
    data[place % len(data)] = value
    path = tmp_path_factory.mktemp("one") / "x.safetensors"
    path.write_bytes(data)
    try:
        for tensor in safetensors_file.read_header(path).values():
            assert tensor.start + tensor.size_bytes <= len(data)
    except EngineError as error:
        assert error.hint
