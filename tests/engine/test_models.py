"""The catalogue's exact counts, and what is refused in a config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SettingsError
from engine.models import CATALOGUE, GPT_OSS_20B, GPT_OSS_120B, TINY, find, from_config, read_config
from engine.settings import Settings

RELEASED_20B = {
    # openai/gpt-oss-20b, config.json, without the keys that say nothing about the architecture.
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def write_config(directory: Path, **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({**RELEASED_20B, **changes}), encoding="utf-8")
    return directory


def test_parameters_are_those_of_the_model_cards() -> None:
    assert GPT_OSS_20B.parameters == 20_914_757_184
    assert GPT_OSS_120B.parameters == 116_829_156_672
    assert round(GPT_OSS_20B.active_parameters / 1e9, 2) == 3.61
    assert round(GPT_OSS_120B.active_parameters / 1e9, 2) == 5.13


def test_released_config_is_the_catalogue_entry(tmp_path: Path) -> None:
    model = read_config(write_config(tmp_path))
    settings = Settings().with_values({"model.path": str(tmp_path)})
    assert model.parameters == GPT_OSS_20B.parameters
    assert find(settings) is GPT_OSS_20B


def test_transformers_5_spelling_of_the_rope_is_read() -> None:
    config = {key: value for key, value in RELEASED_20B.items() if not key.startswith("rope")}
    rope = {**RELEASED_20B["rope_scaling"], "rope_theta": 150000.0}  # type: ignore[dict-item]
    assert from_config({**config, "rope_parameters": rope}, "x").rope_theta == 150000.0


def test_custom_sizes_are_taken(tmp_path: Path) -> None:
    write_config(tmp_path, num_hidden_layers=12, num_local_experts=8, layer_types=None)
    settings = Settings().with_values({"model.name": "custom", "model.path": str(tmp_path)})
    model = find(settings)
    assert (model.name, model.layers, model.experts) == ("custom", 12, 8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": "24"}, "num_hidden_layers = '24'"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"sliding_window": None}, "sliding_window = None"),
        ({"num_attention_heads": 60}, "60 attention heads"),
        ({"num_experts_per_tok": 64}, "64 experts per token"),
        ({"head_dim": 63}, "head_dim = 63"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"swiglu_limit": 5.0}, "swiglu_limit = 5.0"),
        ({"layer_types": ["full_attention"] * 24}, "layer_types"),
        ({"rope_scaling": {**RELEASED_20B["rope_scaling"], "factor": 8.0}}, "rope factor = 8.0"),  # type: ignore[dict-item]
        ({"rope_theta": -1}, "rope_theta"),
    ],
)
def test_what_bridge_would_train_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match="config.json") as caught:
        read_config(write_config(tmp_path, **changes))
    assert named in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, "\x00"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError):
        read_config(tmp_path)


def test_a_missing_config_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=str(tmp_path)):
        read_config(tmp_path)


def test_a_directory_with_another_model_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    settings = Settings().with_values({"model.name": "gpt-oss-120b", "model.path": str(tmp_path)})
    with pytest.raises(SettingsError, match="layers is 24 and not 36"):
        find(settings)


def test_custom_without_a_path_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"model\.path is empty"):
        find(Settings().with_values({"model.name": "custom"}))


def test_the_tiny_model_has_every_trait() -> None:
    assert TINY.heads > TINY.kv_heads > 1
    assert TINY.query_width != TINY.hidden
    assert TINY.hidden == TINY.ffn  # square experts hide a transposed weight from shape checks
    assert TINY.experts > TINY.top_k > 1
    assert set(CATALOGUE) == {"gpt-oss-20b", "gpt-oss-120b", "tiny"}
