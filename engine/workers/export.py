"""The export step: the newest whole checkpoint as Hugging Face safetensors."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import SettingsError, StepFailed
from engine.workers import checkpoints, finetune_export, finetune_lora, profile
from engine.workers.files import partial, publish, size_bytes
from engine.workers.report import Report, run_worker
from engine.workers.source import hugging_face_source, load_tokenizer

SHARD_BYTES = 4_000_000_000
"""Size at which the next file is begun, as transformers does; it bounds the memory, too."""

_INDEX = "model.safetensors.index.json"


def work(report: Report) -> Mapping[str, Any]:
    """Fill `export/`; a second run replaces it."""
    from engine.workers import model

    model.load_engine(report)
    checkpoint = newest_checkpoint(report)
    bridge = model.make_bridge(report, with_weights=False)
    config = model.config_of(bridge)
    layout = profile.layout_for(report.plan.layout, report.world_size, config.num_local_experts)
    with model.joined_ranks(report):
        report.phase(f"loading {checkpoint.name}")
        megatron = model.build(report, bridge, layout, with_weights=False)
        model.load_weights(megatron, finetune_lora.weights_in(report, checkpoint))
        report.phase("writing the Hugging Face checkpoint")
        weights = bridge.export_hf_weights(megatron, cpu=True, show_progress=False)
        if report.rank:
            # Every rank takes part in collecting each tensor; one of them writes.
            for _ in weights:
                pass
            return {}
        return _write(report, config, checkpoint, finetune_export.finished(report, config, checkpoint, weights))


def newest_checkpoint(report: Report) -> Path:
    """The newest whole iteration, relative to the run directory. Raises StepFailed."""
    iteration = checkpoints.newest_complete(report.run)
    if iteration is None:
        raise StepFailed(f"there is no whole checkpoint in {report.run.checkpoints}", "run the train step again")
    return Path(report.run.checkpoints.name) / f"iter_{iteration:07d}"


def _write(report: Report, config: Any, checkpoint: Path, weights: Any) -> dict[str, Any]:
    from engine.workers import model

    made = partial(report.run.export)
    made.mkdir()
    expected = {name: tuple(tensor.shape) for name, tensor in model.empty_model(config).state_dict().items()}
    shards = _Shards(made, report, total=len(expected))
    parameters = 0
    for name, tensor in checked(weights, expected):
        parameters += tensor.numel()
        shards.add(name, tensor)
    shards.finish()
    _write_description(report, config, made)
    finetune_export.describe(report, config, checkpoint, made)
    publish(made, report.run.export)
    return {
        "path": report.run.export.name,
        "tensors": len(expected),
        "bytes": size_bytes(report.run.export),
        "parameters": parameters,
    }


def checked(weights: Any, expected: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    """Pass the weights on; at the end refuse a set that is not exactly the expected one.

    Bridge itself has left out every expert and only printed a line about it (Bridge #1819).
    """
    wrong: list[str] = []
    missing = dict(expected)
    for name, tensor in weights:
        shape = missing.pop(name, None)
        if shape != tuple(tensor.shape):
            wrong.append(f"{name} {tuple(tensor.shape)} instead of {shape}" if shape else f"{name} is not expected")
        else:
            yield name, tensor
    wrong += [f"{name} is missing" for name in missing]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise StepFailed(
            f"{len(wrong)} of {len(expected)} tensors are wrong: {'; '.join(wrong[:5])}{more}",
            "report it with the versions that gptoss doctor prints",
        )


class _Shards:
    """Writes tensors to files of about `SHARD_BYTES`."""

    def __init__(self, directory: Path, report: Report, total: int) -> None:
        import torch

        self._directory = directory
        self._report = report
        self._total = total
        self._dtype = torch.bfloat16 if report.settings.training.precision == "bf16" else torch.float32
        self._held: dict[str, Any] = {}
        self._held_bytes = 0
        self._bytes = 0
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: Any) -> None:
        tensor = tensor.detach().to(self._dtype).contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + size > SHARD_BYTES:
            self._flush()
        # A tensor that shares its storage with others would be refused or stored twice.
        self._held[name] = tensor.clone()
        self._held_bytes += size
        self._bytes += size
        done = sum(map(len, self._files)) + len(self._held)
        self._report.progress(f"{done} of {self._total} tensors", done, self._total, "tensors")

    def finish(self) -> None:
        """Give the files their final names and write the index when there are several."""
        self._flush()
        count = len(self._files)
        if count == 1:
            self._temporary(0).rename(self._directory / "model.safetensors")
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self._files):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._temporary(number).rename(self._directory / final)
            places |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": places}
        (self._directory / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self._held, self._temporary(len(self._files)), metadata={"format": "pt"})
        self._files.append(list(self._held))
        self._held, self._held_bytes = {}, 0

    def _temporary(self, number: int) -> Path:
        return self._directory / f"part-{number}.safetensors"


def _write_description(report: Report, config: Any, directory: Path) -> None:
    """Configuration, generation configuration and tokenizer."""
    import copy

    from transformers import GenerationConfig

    config = copy.deepcopy(config)
    config.dtype = "bfloat16" if report.settings.training.precision == "bf16" else "float32"
    config.architectures = ["GptOssForCausalLM"]
    # The released weights are MXFP4; these are not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(directory)
    source = hugging_face_source(report)
    try:
        generation = GenerationConfig.from_pretrained(source)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    generation.save_pretrained(directory)
    tokenizer = report.run.data / "tokenizer"
    if tokenizer.is_dir():
        shutil.copytree(tokenizer, directory, dirs_exist_ok=True)
        return
    try:
        load_tokenizer(report).save_pretrained(directory)
    except SettingsError as error:
        report.event("warning", f"the export has no tokenizer: {error.message}")


if __name__ == "__main__":
    sys.exit(run_worker("export", work, sys.argv[1:]))
