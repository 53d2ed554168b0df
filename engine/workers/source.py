"""Where a run's Hugging Face model comes from, and whether Megatron can express it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import SettingsError
from engine.settings import Settings
from engine.workers import tiny
from engine.workers.report import Report

_SWIGLU_LIMIT = 7.0


def hugging_face_source(report: Report) -> str:
    """A directory, or the id of the published model. Raises SettingsError."""
    model = report.settings.model
    if model.name == "tiny":
        return report.run.model.name
    if model.path:
        path = report.user_path(model.path)
        if not (path / "config.json").is_file():
            raise SettingsError(f"model.path: there is no config.json in {path}", "give a Hugging Face checkpoint")
        return str(path)
    if model.name == "custom":
        raise SettingsError("model.path: a custom model needs one", "give the directory with its config.json")
    return f"openai/{model.name}"


def hugging_face_directory(report: Report, *, with_weights: bool = True) -> Path:
    """The model's directory, downloaded first when it is a published model that is not here yet.

    Without weights it has config.json and the tokenizer. Raises SettingsError when it cannot be had.
    """
    source = hugging_face_source(report)
    if (path := Path(source)).is_dir():
        return path
    from huggingface_hub import snapshot_download

    report.phase(f"looking for {source} in the Hugging Face cache, else downloading it")
    try:
        # The repository holds the weights a second and a third time, for other programs.
        wanted = ["*.json", "*.jinja"] + ["*.safetensors"] * with_weights
        return Path(snapshot_download(source, allow_patterns=wanted,
                                      ignore_patterns=["original/*", "metal/*"]))  # fmt: skip
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"{source} cannot be had: {reason}",
            "download them elsewhere (hf download) and give their directory as model.path",
        ) from error


def load_config(report: Report) -> Any:
    """The model's Hugging Face configuration. Raises SettingsError when Bridge would misread it."""
    from transformers import AutoConfig

    source = hugging_face_source(report)
    try:
        config = AutoConfig.from_pretrained(source)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"the model {source} cannot be loaded: {reason}",
            "download it first (hf download) and give its directory as model.path",
        ) from error
    if config.model_type != "gpt_oss":
        raise SettingsError(f"model.path: this is a {config.model_type!r} model", "give a gpt-oss checkpoint")
    differences = list(_differences(config))
    if differences:
        raise SettingsError(
            "model.path: Megatron-Bridge converts gpt-oss with fixed values, and this model has "
            + "; ".join(differences),
            "train a model with the released model's values",
        )
    return config


def load_tokenizer(report: Report) -> Any:
    """The model's own tokenizer. Raises SettingsError when it is not there."""
    from transformers import AutoTokenizer

    source = hugging_face_source(report)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"the tokenizer of {source} cannot be loaded: {reason}", "give the directory of one as data.tokenizer"
        ) from error


def _differences(config: Any) -> Iterator[str]:
    """What Bridge hard-codes and this model has otherwise (gpt_oss_bridge.py:83-101, megatron-bridge 0.6.2)."""
    rope = config.rope_parameters or {}
    expected: dict[str, tuple[object, object]] = {
        name: (rope.get(name), value) for name, value in tiny.ROPE.items() if name != "rope_theta"
    }
    pattern = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(config.num_hidden_layers)]
    expected |= {
        "layer_types": (list(config.layer_types), pattern),
        "swiglu_limit": (getattr(config, "swiglu_limit", _SWIGLU_LIMIT), _SWIGLU_LIMIT),
        "attention_bias": (config.attention_bias, True),
        "tie_word_embeddings": (config.tie_word_embeddings, False),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            yield f"{name} = {found!r} instead of {wanted!r}"


def is_offline(settings: Settings) -> bool:
    """True when nothing of the model has to be downloaded."""
    return settings.model.name == "tiny" or bool(settings.model.path)
