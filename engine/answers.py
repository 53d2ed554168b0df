"""Which questions matter once others are answered, and which answers are still missing."""

from __future__ import annotations

from collections.abc import Callable

from engine.finetune_settings import GOALS
from engine.settings import Settings

type _Claim = Callable[[Settings], bool]

_OWN_DATA = {
    "text": "a text file or a directory",
    "chat": "a JSONL file of chats or a directory",
    "prefix": "the prefix of a .bin/.idx pair",
}
"""What data.path is for each data.source that needs one."""


def missing(settings: Settings) -> dict[str, str]:
    """Options that must be filled in for the others to make sense, and why."""
    model, data, launch = settings.model, settings.data, settings.launch
    found = {}
    if model.name == "custom" and not model.path:
        found["model.path"] = "model.name is custom: give the directory that holds its config.json"
    if data.source in _OWN_DATA and not data.path:
        found["data.path"] = f"data.source is {data.source}: give {_OWN_DATA[data.source]}"
    if launch.route == "tutorial" and data.source == "prefix" and not data.tokenizer:
        found["data.tokenizer"] = "02_train.sh takes mock data without a tokenizer: give its directory"
    if launch.route != "bridge" and not launch.megatron_lm:
        found["launch.megatron_lm"] = f"launch.route is {launch.route}: give the directory of a Megatron-LM checkout"
    if launch.launcher == "ssh" and not settings.machine.hosts:
        found["machine.hosts"] = "launch.launcher is ssh: give the names of the nodes, separated by commas"
    return found


def matters(key: str, settings: Settings) -> bool:
    """False when an option changes nothing under what was chosen so far: nobody needs to be asked for it then."""
    claim = _WHEN.get(key) or _WHEN.get(key.partition(".")[0])
    return claim is None or claim(settings)


def _has_own_data(settings: Settings) -> bool:
    return settings.data.source in _OWN_DATA


def _converts(settings: Settings) -> bool:
    return settings.training.goal != "pretrain" and not settings.model.checkpoint


def _is_lora(settings: Settings) -> bool:
    return settings.training.goal == "lora"


def _in_container(settings: Settings) -> bool:
    return settings.launch.launcher == "container"


def _on_slurm(settings: Settings) -> bool:
    return settings.launch.launcher == "slurm"


_WHEN: dict[str, _Claim] = {
    "machine.gpus_per_node": lambda s: s.machine.device != "cpu",
    "machine.cpu_ranks": lambda s: s.machine.device != "gpu",
    "machine.hosts": lambda s: s.launch.launcher == "ssh",
    "model.path": lambda s: s.model.name != "tiny",
    "model.checkpoint": lambda s: s.training.goal != "pretrain",
    "model.converter": _converts,
    "data.path": _has_own_data,
    "data.column": lambda s: s.data.source in ("text", "chat"),
    "data.bad_records": lambda s: s.data.source in ("text", "chat"),
    "data.tokenizer": _has_own_data,
    "data.foreign_tokenizer": lambda s: bool(s.data.tokenizer),
    "data.validation_percent": lambda s: s.data.source in ("text", "chat", "sample"),
    "data.max_megabytes": lambda s: s.data.source in ("text", "sample"),
    "finetune": lambda s: s.training.goal in GOALS,
    "finetune.lora_rank": _is_lora,
    "finetune.lora_alpha": _is_lora,
    "finetune.lora_dropout": _is_lora,
    "finetune.lora_targets": _is_lora,
    "layout": lambda s: s.layout.mode == "manual",
    "layout.mode": lambda s: True,
    "launch.megatron_lm": lambda s: s.launch.route != "bridge",
    "launch.image": lambda s: _in_container(s) or _on_slurm(s),
    "launch.runtime": lambda s: _in_container(s) or _on_slurm(s),
    "launch.mounts": lambda s: _in_container(s) or _on_slurm(s),
    "launch.container_options": _in_container,
    "launch.cpu_affinity": lambda s: s.machine.device != "cpu",
    **dict.fromkeys(
        ("launch.partition", "launch.account", "launch.qos", "launch.time_limit", "launch.mail",
         "launch.slurm_options", "launch.requeue"),
        _on_slurm,
    ),
    "output.export_checkpoint": lambda s: s.output.export,
    "output.verify": lambda s: s.output.export,
    "output.verify_first_loss": lambda s: s.output.export and s.output.verify,
    "output.tracker_project": lambda s: s.output.tracker != "none",
}  # fmt: skip
"""When an option matters, or all options of a table; what is not named here always does."""
