"""Ask the real Megatron: run as a script with questions on stdin, answers on stdout, both JSON.

One process pretends to be any rank of any world (torch's fake process group) and builds models
without storage (the meta device), so 120b on 64 ranks takes no memory and no second machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import replace
from typing import Any

from engine.plan.layout import Layout
from engine.settings import TrainingSettings
from engine.workers import cpu, profile


class Megatron:
    """Megatron-Core and Bridge, imported once."""

    def __init__(self) -> None:
        cpu.prepare_environment()
        cpu.install()
        import torch
        from megatron.core import num_microbatches_calculator, parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
        from torch.testing._internal.distributed.fake_pg import FakeStore

        self.torch, self.groups, self.store = torch, parallel_state, FakeStore
        self.batches, self.seed = num_microbatches_calculator, model_parallel_cuda_manual_seed

    def provider(self, sizes: dict[str, int], layout: Layout, training: TrainingSettings, **values: Any) -> Any:
        """Bridge's model provider for a gpt-oss of these sizes, set up as a worker does on a CPU."""
        from megatron.bridge import AutoBridge
        from transformers import GptOssConfig

        config = GptOssConfig(**sizes, architectures=["GptOssForCausalLM"], tie_word_embeddings=False)
        provider = AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)
        profile.apply(provider, training, layout, "cpu")
        for name, value in values.items():
            setattr(provider, name, value)
        provider.perform_initialization = False
        return provider

    @contextlib.contextmanager
    def ranks(self, layout: Layout, world: int, rank: int) -> Any:
        """Be `rank` of `world` for a while; raises what parallel_state raises."""
        self.torch.distributed.init_process_group("fake", store=self.store(), rank=rank, world_size=world)
        try:
            self.groups.initialize_model_parallel(
                tensor_model_parallel_size=layout.tp,
                pipeline_model_parallel_size=layout.pp,
                virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
                context_parallel_size=layout.cp,
                expert_model_parallel_size=layout.ep,
                expert_tensor_parallel_size=1,
                create_gloo_process_groups=False,
            )
            self.seed(1234)
            yield
        finally:
            self.groups.destroy_model_parallel()
            self.torch.distributed.destroy_process_group()

    @contextlib.contextmanager
    def without_storage(self) -> Any:
        """Everything that is made has a shape and no memory."""
        current = self.torch.cuda.current_device
        self.torch.cuda.current_device = lambda: self.torch.device("meta")
        try:
            with self.torch.device("meta"):
                yield
        finally:
            self.torch.cuda.current_device = current

    def build(self, provider: Any, layout: Layout) -> list[Any]:
        """This rank's model: one chunk, or one for each virtual stage."""
        from megatron.core.process_groups_config import ProcessGroupCollection

        provider._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
        return [provider.provide(vp_stage=stage if layout.vpp > 1 else None) for stage in range(layout.vpp)]


def parameters(megatron: Megatron, question: dict[str, Any]) -> dict[str, Any]:
    """Parameters on one rank of each stage asked for."""
    layout, world = Layout(**question["layout"]), question["world"]
    found = {}
    for stage in question["stages"]:
        provider = megatron.provider(question["sizes"], layout, TrainingSettings())
        provider.finalize()
        with megatron.ranks(layout, world, stage * world // layout.pp), megatron.without_storage():
            chunks = megatron.build(provider, layout)
            found[stage] = sum(p.numel() for chunk in chunks for p in chunk.parameters())
    return {"parameters": found}


class Started(Exception):
    """Megatron got as far as the first forward step: it has nothing against the layout."""


def verdict(megatron: Megatron, question: dict[str, Any]) -> dict[str, Any]:
    """Why Megatron refuses a layout and batch; empty when it would start."""
    try:
        _start(megatron, question, Layout(**question["layout"]))
    except Started:
        pass
    except (AssertionError, ValueError, RuntimeError) as error:
        return {"refused": str(error).strip() or type(error).__name__}
    return {"refused": ""}


def _start(megatron: Megatron, question: dict[str, Any], layout: Layout) -> None:
    """Do what a worker does up to the first forward step, on the first rank."""
    world, training, cp = question["world"], TrainingSettings(**question["training"]), layout.cp
    os.environ["WORLD_SIZE"], os.environ["RANK"] = str(world), "0"
    provider = megatron.provider(question["sizes"], layout, training)
    config = _configuration(provider, training)
    config.validate()
    megatron.batches.ConstantNumMicroBatchesCalculator(
        training.global_batch, training.micro_batch, config.data_parallel_size, False, 0
    )
    count = training.global_batch // (training.micro_batch * config.data_parallel_size)
    if layout.cp > 1:
        with megatron.ranks(layout, world, 0):
            pass  # the groups can be made
        # The local layers know no context parallelism (dot_product_attention.py:54); the rest of
        # the model is that of as many more data-parallel ranks.
        layout = replace(layout, cp=1, dp=layout.dp * layout.cp)
        provider = megatron.provider(question["sizes"], layout, training)
        provider.finalize()
    with megatron.ranks(layout, world, 0), megatron.without_storage():
        chunks = megatron.build(provider, layout)
        tokens = megatron.torch.zeros(1, training.sequence_length // cp, dtype=megatron.torch.long)
        chunks[0].embedding(tokens, tokens)
        if layout.vpp > 1:
            _interleave(chunks, count, training)


def _interleave(chunks: list[Any], count: int, training: TrainingSettings) -> None:
    from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_with_interleaving

    def step(*args: Any) -> None:
        raise Started

    forward_backward_pipelining_with_interleaving(
        forward_step_func=step,
        data_iterator=[None] * len(chunks),
        model=chunks,
        num_microbatches=count,
        seq_length=training.sequence_length,
        micro_batch_size=training.micro_batch,
        forward_only=True,
    )


def _configuration(provider: Any, training: TrainingSettings) -> Any:
    from megatron.bridge.training import config

    return config.ConfigContainer(
        model=provider,
        train=config.TrainingConfig(
            train_iters=2, global_batch_size=training.global_batch, micro_batch_size=training.micro_batch
        ),
        validation=config.ValidationConfig(eval_iters=1, eval_interval=1),
        optimizer=config.OptimizerConfig(optimizer="adam", lr=1e-4, use_distributed_optimizer=True),
        scheduler=config.SchedulerConfig(lr_warmup_iters=0, lr_decay_iters=2),
        dataset=config.MockGPTDatasetConfig(
            random_seed=1,
            seq_length=training.sequence_length,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            num_dataset_builder_threads=1,
        ),
        ddp=config.DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
        logger=config.LoggerConfig(),
        tokenizer=config.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=provider.vocab_size - 1),
        checkpoint=config.CheckpointConfig(),
    )


def activations(megatron: Megatron, question: dict[str, Any]) -> dict[str, Any]:
    """Bytes that one layer saves for backward: the difference of four layers and two, halved."""
    # Two layers are one with the sliding window and one without.
    two, four = (_saved_bytes(megatron, question, layers) for layers in (2, 4))
    return {"layer_bytes": (four - two) / 2}


def _saved_bytes(megatron: Megatron, question: dict[str, Any], layers: int) -> int:
    torch, layout = megatron.torch, Layout()
    training = TrainingSettings(**question["training"])
    provider = megatron.provider(
        {**question["sizes"], "num_hidden_layers": layers}, layout, training, **question["values"]
    )
    provider.finalize()
    with megatron.ranks(layout, 1, 0):
        model = megatron.build(provider, layout)[0]
        if training.precision == "bf16":
            model = model.bfloat16()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.02)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        # The tensors are kept, so that no storage is freed and its address used again.
        saved: dict[int, Any] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage
            return tensor

        shape = (training.micro_batch, training.sequence_length)
        tokens = torch.randint(0, question["sizes"]["vocab_size"], shape)
        positions = torch.arange(shape[1]).expand(shape)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(tokens, positions, None, labels=tokens)
        return sum(storage.nbytes() for storage in saved.values())


ASKERS = {"parameters": parameters, "verdict": verdict, "activations": activations}


def main() -> None:
    questions = json.load(sys.stdin)
    # Megatron prints; only the answers may reach stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        megatron = Megatron()
        answers = [ASKERS[question["ask"]](megatron, question) for question in questions]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
