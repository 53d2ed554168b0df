"""LoRA checkpoints: merged and in PEFT's form against plain arithmetic, by the verbs; refused where they must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoints import tensors
from engine.checkpoints.tensors import FC1, FC2, OUTPUT, QKV, ROUTER
from engine.errors import CheckpointError
from engine.workers.stream.adapters import differences
from engine.workers.stream.convert import convert
from engine.workers.stream.export import Extras, export
from engine.workers.stream.verify import verify
from gptoss_tui.__main__ import main
from tests.convert import models
from tests.convert.conftest import MakeSource
from tests.convert.test_convert import load_all

RANK, ALPHA = 3, 12
MODEL = models.tiny(models.RECTANGULAR)


def random_adapters(rank: int = RANK) -> dict[str, torch.Tensor]:
    """As Bridge saves them: whole tensors, the layers stacked."""
    chance = torch.Generator().manual_seed(3)
    return {
        tensors.adapter_key(module, side): torch.randn(shape, generator=chance) * 0.2
        for module, sides in tensors.megatron_adapters(MODEL, rank).items()
        for side, shape in sides.items()
    }


def save(run: Path, adapters: dict[str, torch.Tensor], peft: str = "") -> Path:
    """A run directory with a training checkpoint of adapters, written by torch's own writer."""
    import torch.distributed.checkpoint as dcp

    iteration = run / "checkpoints" / "iter_0000004"
    with pytest.warns(UserWarning):  # one process, no group
        dcp.save({**adapters}, storage_writer=dcp.FileSystemWriter(iteration), no_dist=True)
    (iteration / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    peft = peft or f"  _target_: megatron.bridge.peft.lora.LoRA\n  alpha: {ALPHA}\n  dim: {RANK}\n"
    (iteration / "run_config.yaml").write_text(f"model:\n  num_layers: 4\npeft:\n{peft}profiling: null\n")
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("4")
    (run / "settings.toml").write_text("version = 1\n")
    (run / "adapter_base.json").write_text(json.dumps({"checkpoint": "converted", "fingerprint": "f"}))
    return run / "checkpoints"


@pytest.fixture(scope="module")
def run(source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("lora") / "run"
    convert(source("fp32", models.RECTANGULAR), where / "converted", "fp32")
    save(where, random_adapters())
    return where


def expected(base: dict[str, torch.Tensor], adapters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The definition, written out: weight + alpha / rank x up @ down, in Megatron's order and then reordered."""
    made = dict(base)

    def change(module: str, *place: int) -> torch.Tensor:
        down, up = (adapters[tensors.adapter_key(module, side)][place] for side in ("linear_in", "linear_out"))
        return ALPHA / RANK * up @ down

    per = MODEL.heads // MODEL.kv_heads
    for layer in range(MODEL.layers):
        name = f"model.layers.{layer}."
        groups = change(QKV, layer).unflatten(0, (MODEL.kv_heads, per + 2, MODEL.head_dim))
        for letter, rows in (("q", groups[:, :per]), ("k", groups[:, per]), ("v", groups[:, per + 1])):
            made[f"{name}self_attn.{letter}_proj.weight"] = base[
                f"{name}self_attn.{letter}_proj.weight"
            ] + rows.reshape(-1, MODEL.hidden)
        made[f"{name}self_attn.o_proj.weight"] = base[f"{name}self_attn.o_proj.weight"] + change(OUTPUT, layer)
        made[f"{name}mlp.router.weight"] = base[f"{name}mlp.router.weight"] + change(ROUTER, layer)
        both = [change(FC1, layer, expert) for expert in range(MODEL.experts)]
        alternating = torch.stack([torch.stack(one.chunk(2), 1).flatten(0, 1).T for one in both])
        made[f"{name}mlp.experts.gate_up_proj"] = base[f"{name}mlp.experts.gate_up_proj"] + alternating
        downs = torch.stack([change(FC2, layer, expert).T for expert in range(MODEL.experts)])
        made[f"{name}mlp.experts.down_proj"] = base[f"{name}mlp.experts.down_proj"] + downs
    return made


@pytest.mark.parametrize("below", ["megatron", "hugging face"])
def test_merged_weights_are_the_sum(run: Path, source: MakeSource, tmp_path: Path, below: str) -> None:
    origin = source("fp32", models.RECTANGULAR)
    base = run / "converted" if below == "megatron" else origin
    export(run / "checkpoints", tmp_path / "hf", origin, "fp32", extras=Extras(base=base), threads=2)
    wanted, found = expected(load_all(origin), random_adapters()), load_all(tmp_path / "hf")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-6, msg=name)
        has_adapter = ("_proj" in name or "router" in name) and not name.endswith("bias")
        assert torch.equal(found[name], load_all(origin)[name]) != has_adapter, name


def test_peft_gets_the_same_change(run: Path, source: MakeSource, tmp_path: Path) -> None:
    """By what PEFT computes (0.21, tuners/lora/layer.py, `get_delta_weight`), from the files alone."""
    origin = source("fp32", models.RECTANGULAR)
    export(run / "checkpoints", tmp_path / "hf", origin, "fp32", extras=Extras(base=run / "converted"))
    merged, before = load_all(tmp_path / "hf"), load_all(origin)
    peft = load_file(tmp_path / "hf" / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "hf" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA) and len(peft) == 4 * 7 * 2
    scale = config["lora_alpha"] / config["r"]
    for name, down in ((name, value) for name, value in peft.items() if ".lora_A." in name):
        up, stem = peft[name.replace("lora_A", "lora_B")], name.removeprefix("base_model.model.").split(".lora_A")[0]
        if "experts" not in name:
            target, delta = f"{stem}.weight", up @ down
        else:
            target = stem.replace(".base_layer", ".gate_up_proj") if "base_layer" in stem else f"{stem}.down_proj"
            ups, downs = up.view(up.shape[0], -1, MODEL.experts), down.view(MODEL.experts, -1, down.shape[1])
            delta = torch.einsum("ore,eri->eio", ups, downs)
        torch.testing.assert_close(merged[target] - before[target], scale * delta, rtol=0, atol=2e-6, msg=name)
    assert differences(tmp_path / "hf" / "adapter", run / "checkpoints" / "iter_0000004", MODEL) == []


def test_the_verbs_know_the_base_of_a_run(
    run: Path, source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = str(source("fp32", models.RECTANGULAR))
    out = tmp_path / "hf"
    assert main(["export", str(run), str(out), "--reference", origin, "--dtype", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == 5
    assert main(["checkpoint", "inspect", str(run / "checkpoints"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["lora"]) == ("bridge-lora", {"rank": RANK, "alpha": ALPHA})
    assert any("--base" in use for use in facts["good_for"])
    assert main(["checkpoint", "inspect", str(out / "adapter"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["tensors"], facts["lora"]["base"]) == ("lora-adapter", 56, origin)
    assert verify(run / "checkpoints", out, base=run / "converted", with_logits=False)["tensors_compared"] == 71


def test_a_changed_export_of_adapters_is_seen(run: Path, source: MakeSource, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    origin = source("fp32", models.RECTANGULAR)
    export(run / "checkpoints", tmp_path / "hf", origin, "fp32", extras=Extras(base=run / "converted"))
    for file, name in (
        (tmp_path / "hf" / "adapter" / "adapter_model.safetensors", "model.layers.2.mlp.experts.lora_B.weight"),
        (tmp_path / "hf" / "model.safetensors", "model.layers.1.self_attn.k_proj.weight"),
    ):
        held = load_file(file)
        next(value for key, value in held.items() if key.endswith(name))[3, 3] += 1
        save_file(held, file, {"format": "pt"})
    problems = verify(run / "checkpoints", tmp_path / "hf", base=run / "converted", with_logits=False)["problems"]
    assert len(problems) == 2 and "experts.lora_B.weight has other values" in problems[0]
    assert problems[1].startswith("model.layers.1.self_attn.k_proj.weight: 1 values differ, by up to 1")


def _without(key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in random_adapters().items() if name != key}


IN = tensors.adapter_key(FC1, "linear_in")
BAD: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str, str]] = {
    "shared": (lambda: {**random_adapters(), IN: random_adapters()[IN][:, :1].clone()}, "", "is [4, 1, 3, 64] and not"),
    "half": (lambda: _without(IN), "", "linear_fc1.adapter.linear_in.weight is missing"),
    "other": (
        lambda: {**random_adapters(), "decoder.layers.mlp.other.adapter.linear_in.weight": torch.ones(4, 3, 64)},
        "", "other.adapter.linear_in.weight has no place in PEFT",
    ),
    "dora": (random_adapters, f"  _target_: x.dora.DoRA\n  alpha: {ALPHA}\n  dim: {RANK}\n", "adapters of x.dora.DoRA"),
    "rank": (random_adapters, "  _target_: x.LoRA\n  alpha: 12\n", "does not say with which rank"),
    "nan": (lambda: {**random_adapters(), IN: random_adapters()[IN] * float("nan")}, "", "holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_right_is_refused(run: Path, source: MakeSource, tmp_path: Path, name: str) -> None:
    adapters, peft, says = BAD[name]
    made = save(tmp_path / "run", adapters(), peft)
    with pytest.raises(CheckpointError) as caught:
        export(made, tmp_path / "hf", source("fp32", 96), "fp32", extras=Extras(base=run / "converted"))
    assert says in caught.value.message and caught.value.hint
    assert not (tmp_path / "hf").exists()


def test_adapters_need_their_base(run: Path, source: MakeSource, tmp_path: Path) -> None:
    asked: list[tuple[Any, str]] = [
        (None, "not the weights that they change"),
        (source("fp32", 64), "is another model than the adapters'"),
        (run / "checkpoints", "holds LoRA adapters"),
    ]
    for base, says in asked:
        with pytest.raises(CheckpointError, match=says):
            export(run / "checkpoints", tmp_path / "hf", source("fp32", 96), "fp32", extras=Extras(base=base))
