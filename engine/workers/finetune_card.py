"""README.md of a fine-tuned model: what it was made from and how, what it reached, how to serve it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.data.manifest import Manifest
from engine.run import validation
from engine.settings import Settings, to_tables
from engine.version import __version__
from engine.workers import finetune_lora
from engine.workers.report import Report
from engine.workers.results import training_result

_NOT_TOLD = {"machine", "launch", "output"}
"""Tables of settings that say nothing about the model, and perhaps something about a person's machines."""


def text(report: Report, base: str) -> str:
    """The model card, as Markdown."""
    return "\n".join([*_head(report, base), *_data(report), *_results(report), *_settings(report), *_serving(report)])


def _head(report: Report, base: str) -> Iterator[str]:
    is_lora = finetune_lora.is_wanted(report.settings)
    is_hub = base.startswith("openai/")
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if is_hub:
        yield f"base_model: {base}"
    yield "tags: [gpt-oss, megatron, " + ("lora]" if is_lora else "sft]")
    yield "---"
    yield f"# {report.run.name}"
    yield ""
    how = "with LoRA: adapters were trained and then added to the weights" if is_lora else "with all its weights"
    yield f"`{base if is_hub else report.settings.model.name}`, fine-tuned on chats {how}."
    yield f"Made by gptoss {__version__} with Megatron-Bridge."
    if is_lora:
        yield "The adapter alone, for PEFT, is in `adapter/`."
        yield f"It belongs to the Megatron checkpoint with the fingerprint `{finetune_lora.read_base(report)}`."


def _data(report: Report) -> Iterator[str]:
    made = Manifest.load(report.run.data)
    left_out = {"unusable": made.rejected, "too long": made.too_long}
    missing = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    yield ""
    yield "## Data"
    yield ""
    yield f"{made.documents:,} chats, {made.documents - made.train_documents:,} of them held out of the training;"
    yield f"{made.train_tokens:,} tokens to train on, {made.trained_tokens:,} of them in answers."
    if missing:
        yield f"Left out: {missing}."
    yield ""
    yield "| source | bytes | hash of the chats |"
    yield "|---|---|---|"
    for source in made.sources:
        yield f"| {source.path.rpartition('/')[2]} | {source.size_bytes:,} | `{source.content_hash}` |"
    yield ""
    yield f"Tokenizer: sha256 `{made.tokenizer_hash}`."


def _results(report: Report) -> Iterator[str]:
    run, settings = report.run, report.settings
    at = validation.to_export(run, settings) or settings.training.iterations
    result: dict[str, Any] = training_result(run, at)
    known = validation.losses(run)
    told = {
        "first iteration": result.get("first_loss"),
        f"iteration {at}, whose checkpoint this is": result.get("last_loss"),
        "held-out chats, before the training": known.get(0),
        "held-out chats, this model": known.get(at),
    }
    yield ""
    yield "## Loss"
    yield ""
    yield "| | nats per token that counts |"
    yield "|---|---|"
    for name, loss in told.items():
        if loss is not None:
            yield f"| {name} | {loss:.4f} |"


def _settings(report: Report) -> Iterator[str]:
    chosen = to_tables(report.settings, since=Settings())
    yield ""
    yield "## Settings"
    yield ""
    yield "What differs from the defaults:"
    yield ""
    for table, values in chosen.items():
        for name, value in values.items():
            if table not in _NOT_TOLD and not (isinstance(value, str) and "/" in value):
                yield f"* `{table}.{name}` = `{value}`"


def _serving(report: Report) -> Iterator[str]:
    settings = report.settings
    yield ""
    yield "## Use"
    yield ""
    yield "```python"
    yield "from transformers import pipeline"
    yield ""
    yield 'chat = pipeline("text-generation", "THIS_DIRECTORY", torch_dtype="auto", device_map="auto")'
    yield 'print(chat([{"role": "user", "content": "..."}], max_new_tokens=256)[0]["generated_text"][-1])'
    yield "```"
    yield ""
    yield "```sh"
    yield "vllm serve THIS_DIRECTORY"
    yield "```"
    if finetune_lora.is_wanted(settings):
        yield ""
        yield "The adapter beside the model that it was trained on:"
        yield ""
        yield "```python"
        yield "from peft import PeftModel"
        yield ""
        yield 'model = PeftModel.from_pretrained(base_model, "THIS_DIRECTORY/adapter")'
        yield "```"
        if settings.finetune.lora_targets == "attention":
            rank = settings.finetune.lora_rank
            yield ""
            yield "```sh"
            yield f"vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules tuned=THIS_DIRECTORY/adapter"
            yield "```"
    yield ""
    yield f"Ask with the reasoning effort that it was trained with: {settings.finetune.effort}."
    yield ""
