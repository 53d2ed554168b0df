"""Settings as Megatron-Bridge's configuration of a training. Paths count from the run directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engine import models
from engine.checkpoints.torch_dist import TRACKER
from engine.data.manifest import Manifest
from engine.errors import PlanError, SettingsError
from engine.finetune_settings import GOALS
from engine.plan import finetune, schedule
from engine.settings import Settings
from engine.workers import finetune_lora, profile, trackers
from engine.workers.report import Report


def make(report: Report, bridge: Any) -> Any:
    """The whole configuration. Raises SettingsError and PlanError for what Megatron would only assert."""
    from megatron.bridge.training import config as bridge_config

    settings, plan = report.settings, report.plan
    training, loop = settings.training, profile.loop(plan.device)
    _check(settings, report)
    provider = bridge.to_megatron_provider(load_weights=False)
    profile.apply(provider, training, plan.layout, plan.device)
    return bridge_config.ConfigContainer(
        model=provider,
        train=bridge_config.TrainingConfig(
            train_iters=training.iterations,
            global_batch_size=training.global_batch,
            micro_batch_size=training.micro_batch,
            exit_signal_handler=True,
            manual_gc=loop.fused,
            manual_gc_interval=100 if loop.fused else 0,
        ),
        validation=bridge_config.ValidationConfig(
            eval_interval=training.evaluation_interval, eval_iters=_evaluation_iterations(report)
        ),
        optimizer=bridge_config.OptimizerConfig(
            optimizer="adam",
            bf16=training.precision == "bf16",
            params_dtype=provider.params_dtype,
            lr=training.learning_rate,
            min_lr=training.minimum_learning_rate,
            weight_decay=training.weight_decay,
            adam_beta1=0.9,
            adam_beta2=training.adam_beta2,
            clip_grad=training.gradient_clip,
            use_distributed_optimizer=loop.distributed_optimizer,
        ),
        scheduler=bridge_config.SchedulerConfig(
            lr_decay_style=training.schedule,
            lr_warmup_iters=training.warmup_iterations,
            lr_decay_iters=schedule.decay_iterations(training),
            lr_wsd_decay_iters=schedule.wsd_decay_iterations(training),
            start_weight_decay=training.weight_decay,
            end_weight_decay=training.weight_decay,
            weight_decay_incr_style="constant",
            override_opt_param_scheduler=True,
        ),
        dataset=_dataset(report, bridge_config),
        ddp=bridge_config.DistributedDataParallelConfig(
            check_for_nan_in_grad=True,
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=loop.distributed_optimizer,
            overlap_grad_reduce=loop.fused,
            overlap_param_gather=loop.fused,
            # Gradients are divided by the number of tokens, which the collective cannot know.
            average_in_collective=False,
        ),
        logger=bridge_config.LoggerConfig(
            log_interval=training.log_interval,
            tensorboard_dir="tensorboard" if settings.output.tensorboard else None,
            log_throughput=loop.fused,
            **trackers.logger_options(settings, report.run),
        ),
        tokenizer=_tokenizer(report, bridge_config, provider.vocab_size),
        checkpoint=_checkpoint(report, bridge_config),
        peft=finetune_lora.make(settings),
        dist=bridge_config.DistributedInitConfig(distributed_backend=loop.backend, disable_jit_fuser=not loop.fused),
        rng=bridge_config.RNGConfig(seed=training.seed),
    )


def _evaluation_iterations(report: Report) -> int:
    """Global batches of one evaluation: of packed chats no more than there are, so that each sees the same."""
    training = report.settings.training
    if training.goal not in GOALS or report.plan.device == "cpu":
        return training.evaluation_iterations
    from engine.data.manifest import Manifest

    rows = Manifest.load(report.run.data).packing.get("validation", {}).get("rows", 0)
    return min(training.evaluation_iterations, max(1, math.ceil(rows / training.global_batch)))


def check_start(report: Report) -> None:
    """Refuse to continue from weights that are not there. Raises SettingsError."""
    start = _pretrained(report)
    if start is None or any((Path(start) / name).exists() for name in (TRACKER, ".metadata")):
        return
    key, hint = "", "run the convert step first"
    if report.settings.model.checkpoint:
        key, hint = "model.checkpoint: ", "give the directory that holds latest_checkpointed_iteration.txt"
    raise SettingsError(f"{key}there is no Megatron checkpoint in {start}", hint)


def _check(settings: Settings, report: Report) -> None:
    training, layout = settings.training, report.plan.layout
    model = models.find(settings)
    for found in (*finetune.check(settings, model, report.plan.device, layout), *schedule.check(training)):
        if found.severity == "error":
            raise SettingsError(f"{found.what}: {found.why}", found.fix)
    if report.world_size != layout.world_size:
        raise PlanError(
            f"the layout {layout} needs {layout.world_size} ranks; {report.world_size} were started",
            f"start it with --nproc-per-node {layout.world_size}",
        )
    samples = training.micro_batch * layout.dp
    if training.global_batch % samples:
        raise SettingsError(
            f"training.global_batch: {training.global_batch} is no multiple of micro batch x data parallel "
            f"({training.micro_batch} x {layout.dp})",
            f"try {samples * max(1, round(training.global_batch / samples))}",
        )


def _dataset(report: Report, bridge_config: Any) -> Any:
    settings = report.settings
    training, data = settings.training, settings.data
    loop = profile.loop(report.plan.device)
    if training.goal in GOALS:
        from engine.workers import finetune_data

        return finetune_data.config(settings, report.plan.device)
    manifest = Manifest.load(report.run.data)
    loader = {"dataloader_type": "single", "num_workers": loop.loader_processes, "pin_memory": loop.fused}
    if manifest.source == "mock":
        from engine.workers.samples import MockSamples

        return MockSamples(
            seq_length=training.sequence_length,
            vocabulary_size=manifest.vocabulary_size,
            random_seed=training.seed,
            persistent_workers=loop.loader_processes > 0,
            **loader,
        )
    common = {
        "random_seed": training.seed,
        "seq_length": training.sequence_length,
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "num_dataset_builder_threads": 1,
        "path_to_cache": "data/index",
        **loader,
    }
    held_out = f"{100 - data.validation_percent:g},{data.validation_percent:g},0"
    if manifest.source == "prefix":
        return bridge_config.GPTDatasetConfig(blend=([manifest.prefix], None), split=held_out, **common)
    splits = [(["data/train"], None), (["data/validation"], None), None]
    return bridge_config.GPTDatasetConfig(blend_per_split=splits, **common)


def _tokenizer(report: Report, bridge_config: Any, vocabulary_size: int) -> Any:
    if (report.run.data / "tokenizer").is_dir():
        return bridge_config.TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model="data/tokenizer")
    # It adds one token, for the end of a document.
    return bridge_config.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=vocabulary_size - 1)


def _checkpoint(report: Report, bridge_config: Any) -> Any:
    settings = report.settings
    return bridge_config.CheckpointConfig(
        save=report.run.checkpoints.name,
        load=report.run.checkpoints.name,
        pretrained_checkpoint=_pretrained(report),
        save_interval=settings.training.checkpoint_interval,
        most_recent_k=-1,  # `metrics.Metrics` removes old ones: Bridge would count a damaged newest one
        ckpt_format="torch_dist",
        fully_parallel_save=True,
        async_save=False,
    )


def _pretrained(report: Report) -> str | None:
    """The Megatron checkpoint whose weights the training begins with; None for random ones."""
    if report.settings.training.goal == "pretrain":
        return None
    chosen = report.settings.model.checkpoint
    return str(report.user_path(chosen)) if chosen else str(report.run.converted.name)
