"""The gpt-oss architectures: the published ones, the tiny one, or a Hugging Face config.json.

Owns every hyper-parameter and the exact parameter counts. Megatron-Bridge fixes some traits
of gpt-oss in code (YaRN factors, window pattern, clamp); a config.json that asks for others
would be trained as something else, so it is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.errors import SettingsError
from engine.paths import expanded, file_text
from engine.settings import Settings

MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One architecture of the gpt-oss family. Sizes are whole-model, before any split."""

    name: str
    layers: int
    hidden: int
    ffn: int
    """Inner size of one expert."""
    experts: int
    top_k: int
    """Experts that each token visits."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    """Rows of the embedding, padding included."""
    window: int
    """Tokens that a sliding-window layer sees, the token itself included. Every layer with an
    even number (from 0) is one; the others see everything."""
    max_positions: int = 131_072
    rope_theta: float = 150_000.0
    published: str = ""
    """Hugging Face repository of the released weights, empty when there is none."""

    @property
    def query_width(self) -> int:
        """Width of all query heads together; not the hidden size for gpt-oss (4096, not 2880)."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def attention_parameters(self) -> int:
        """One layer's q, k, v and o with their biases, and one sink for each query head."""
        qkv = self.query_width + 2 * self.kv_width
        return self.hidden * qkv + qkv + self.query_width * self.hidden + self.hidden + self.heads

    @property
    def router_parameters(self) -> int:
        return self.hidden * self.experts + self.experts

    @property
    def expert_parameters(self) -> int:
        """One expert: gate and up, down, and their biases."""
        return self.hidden * 2 * self.ffn + 2 * self.ffn + self.ffn * self.hidden + self.hidden

    @property
    def embedding_parameters(self) -> int:
        """The input embedding; the output layer has as many again (untied, no bias)."""
        return self.vocab * self.hidden

    @property
    def layer_parameters(self) -> int:
        """One layer with all its experts and its two norms."""
        return (
            self.attention_parameters + 2 * self.hidden + self.router_parameters + self.experts * self.expert_parameters
        )

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + 2 * self.embedding_parameters + self.hidden

    @property
    def active_parameters(self) -> int:
        """Parameters one token passes through, counted as OpenAI does: without the input embedding."""
        idle = self.layers * (self.experts - self.top_k) * self.expert_parameters
        return self.parameters - idle - self.embedding_parameters

    @property
    def windowed_layers(self) -> int:
        """Layers with the sliding window: numbers 0, 2, 4, …"""
        return (self.layers + 1) // 2


GPT_OSS_20B = Model(
    name="gpt-oss-20b", layers=24, hidden=2880, ffn=2880, experts=32, top_k=4, heads=64, kv_heads=8,
    head_dim=64, vocab=201_088, window=128, published="openai/gpt-oss-20b",
)  # fmt: skip
GPT_OSS_120B = Model(
    name="gpt-oss-120b", layers=36, hidden=2880, ffn=2880, experts=128, top_k=4, heads=64, kv_heads=8,
    head_dim=64, vocab=201_088, window=128, published="openai/gpt-oss-120b",
)  # fmt: skip
# Square experts, as in the real ones: that is where a transposed down_proj stays unnoticed.
TINY = Model(
    name="tiny", layers=4, hidden=64, ffn=64, experts=4, top_k=2, heads=8, kv_heads=2, head_dim=16,
    vocab=512, window=16,
)  # fmt: skip
# What examples/gptoss/02_train.sh trains (Megatron-LM 16b4fde1): its own sizes, whatever it is called. Heads of 8 are
# Megatron's default, hidden / heads. Ours has biases that the script switches off: 0.1 % of the parameters.
TUTORIAL_TOY = Model(
    name="the tutorial's toy", layers=12, hidden=512, ffn=2048, experts=4, top_k=2, heads=64, kv_heads=8, head_dim=8,
    vocab=128_256, window=129, max_positions=8192, rope_theta=10_000.0,
)  # fmt: skip

CATALOGUE: Mapping[str, Model] = {model.name: model for model in (GPT_OSS_20B, GPT_OSS_120B, TINY)}


def find(settings: Settings) -> Model:
    """The architecture that `settings` name. Raises SettingsError for another family or a bad file."""
    if settings.launch.route == "tutorial":
        return TUTORIAL_TOY  # the script asks nobody which model it is to train
    chosen = settings.model
    if chosen.name == "custom" and not chosen.path:
        raise SettingsError("model.name is custom and model.path is empty", "give a directory with a config.json")
    if not chosen.path:
        return CATALOGUE[chosen.name]
    model = read_config(expanded(chosen.path))
    if chosen.name == "custom":
        return model
    named = CATALOGUE[chosen.name]
    if differing := _differences(named, model):
        raise SettingsError(
            f"{chosen.path} is not {chosen.name}: {differing}",
            "set model.name to custom, or give another model.path",
        )
    return named


def read_config(directory: Path) -> Model:
    """The architecture in `directory`/config.json (or that file itself). Raises SettingsError."""
    path = directory if directory.name == "config.json" else directory / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise SettingsError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes", "give a Hugging Face config.json")
        config = json.loads(file_text(path))
    except FileNotFoundError:
        raise SettingsError(f"there is no {path}", "set model.path to a Hugging Face checkpoint directory") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not JSON: {error}", "give a Hugging Face config.json") from error
    return from_config(config, str(path))


def from_config(config: Any, origin: str) -> Model:
    """The architecture that a Hugging Face config describes. Raises SettingsError naming `origin`."""
    if not isinstance(config, dict) or config.get("model_type") != "gpt_oss":
        family = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise SettingsError(
            f"{origin} describes the model family {family!r}, not 'gpt_oss'",
            "only gpt-oss models can be trained here",
        )
    _check_fixed_traits(config, origin)
    sizes: dict[str, Any] = {name: _size(config, key, default, origin) for name, (key, default) in _KEYS.items()}
    model = Model(name="custom", rope_theta=_rope_theta(config, origin), **sizes)
    _check_consistent(model, origin)
    return model


_KEYS: Mapping[str, tuple[str, int]] = {
    # Ours: Hugging Face's key and the default of GptOssConfig (transformers 5.8).
    "layers": ("num_hidden_layers", 36),
    "hidden": ("hidden_size", 2880),
    "ffn": ("intermediate_size", 2880),
    "experts": ("num_local_experts", 128),
    "top_k": ("num_experts_per_tok", 4),
    "heads": ("num_attention_heads", 64),
    "kv_heads": ("num_key_value_heads", 8),
    "head_dim": ("head_dim", 64),
    "vocab": ("vocab_size", 201_088),
    "window": ("sliding_window", 128),
    "max_positions": ("max_position_embeddings", 131_072),
}

_FIXED: Mapping[str, object] = {
    # What Megatron-Bridge sets without asking the config (gpt_oss_bridge.py:58-98, 0.6.2).
    "tie_word_embeddings": False,
    "attention_bias": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "swiglu_limit": 7.0,
    "attention_dropout": 0.0,
}

_YARN: Mapping[str, object] = {
    # gpt_oss_bridge.py:89-96, 0.6.2
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}


def _check_fixed_traits(config: Mapping[str, Any], origin: str) -> None:
    wrong = [
        f"{key} = {config[key]!r}, not {fixed!r}" for key, fixed in _FIXED.items() if config.get(key, fixed) != fixed
    ]
    rope = _rope(config)
    wrong += [
        f"rope {key} = {rope[key]!r}, not {fixed!r}" for key, fixed in _YARN.items() if rope.get(key, fixed) != fixed
    ]
    types = config.get("layer_types")
    if isinstance(types, list) and types != _alternating(len(types)):
        wrong.append("layer_types does not alternate sliding_attention, full_attention")
    if wrong:
        raise SettingsError(
            f"{origin} differs from gpt-oss in ways that Megatron-Bridge ignores: {'; '.join(wrong)}",
            "it would be trained as another model; use a config with gpt-oss's own values",
        )


def _alternating(count: int) -> list[str]:
    return ["full_attention" if number % 2 else "sliding_attention" for number in range(count)]


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 calls it rope_parameters, older configs (and the released ones) rope_scaling.
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, dict) else {}


def _rope_theta(config: Mapping[str, Any], origin: str) -> float:
    value = config.get("rope_theta") or _rope(config).get("rope_theta") or 150_000.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 < value < 1e12:
        raise SettingsError(f"{origin}: rope_theta = {value!r} is not a positive number", "gpt-oss has 150000")
    return float(value)


def _size(config: Mapping[str, Any], key: str, default: int, origin: str) -> int:
    value: object = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
        raise SettingsError(
            f"{origin}: {key} = {value!r} is not a whole number from 1 to 10,000,000",
            f"gpt-oss-120b has {default}",
        )
    return value


def _check_consistent(model: Model, origin: str) -> None:
    if model.heads % model.kv_heads:
        raise SettingsError(
            f"{origin}: {model.heads} attention heads are not a multiple of {model.kv_heads} key-value heads",
            "gpt-oss has 64 and 8",
        )
    if model.top_k > model.experts:
        raise SettingsError(
            f"{origin}: {model.top_k} experts per token are more than {model.experts} experts",
            "gpt-oss has 4 of 32 or 128",
        )
    if model.head_dim % 2:
        raise SettingsError(
            f"{origin}: head_dim = {model.head_dim} is odd",
            "rotary positions need an even one; gpt-oss has 64",
        )


def _differences(expected: Model, found: Model) -> str:
    names = [field.name for field in fields(Model) if field.name not in ("name", "published")]
    pairs = ((name, getattr(expected, name), getattr(found, name)) for name in names)
    return ", ".join(f"{name} is {b:,} and not {a:,}" for name, a, b in pairs if a != b)
