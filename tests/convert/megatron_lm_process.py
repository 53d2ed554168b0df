"""A process that loads checkpoints as Megatron-LM does and answers what its model computes, one JSON line each.

{"checkpoint": DIR, "hf": HF_DIR, "dtype": "bf16", "strictness": "raise_all"}
-> {"iteration": n, "unloaded": [...], "comparisons": [...], "within": bool}

Megatron-LM's own `parse_args`, `validate_args`, `initialize_megatron` and `load_checkpoint`: those of the
checkout that MEGATRON_LM_DIR names, else of the package megatron-core, which holds the same `megatron.training`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

ABSENT_BRIDGE = ("adapters_of_local_layers", "start_without_cuda", "compiled_helpers")
"""Fixes of Megatron-Bridge, which has no part in this."""

LOCAL = [
    "--transformer-impl", "local", "--no-rope-fusion", "--no-masked-softmax-fusion", "--no-bias-gelu-fusion",
    "--no-bias-dropout-fusion", "--no-persist-layer-norm", "--no-gradient-accumulation-fusion",
    "--attention-softmax-in-fp32", "--attention-backend", "unfused", "--use-cpu-initialization",
    "--distributed-backend", "gloo",
]  # fmt: skip
"""Without Transformer Engine and CUDA."""

# docs/conversion.md shows these arguments to people.
GPT_OSS = [
    "--use-mcore-models", "--untie-embeddings-and-output-weights", "--normalization", "RMSNorm",
    "--norm-epsilon", "1e-5", "--group-query-attention", "--softmax-type", "learnable",
    "--window-attn-skip-freq", "2", "--position-embedding-type", "yarn", "--rotary-scaling-factor", "32",
    "--yarn-original-max-position-embeddings", "4096", "--no-yarn-correction-range-round-to-int",
    "--quick-geglu", "--glu-linear-offset", "1.0", "--activation-func-clamp-value", "7.0",
    "--moe-router-load-balancing-type", "none", "--moe-router-dtype", "fp32",
    "--hidden-dropout", "0", "--attention-dropout", "0",
    "--no-load-optim", "--no-load-rng", "--finetune", "--ckpt-format", "torch_dist", "--exit-on-missing-checkpoint",
]  # fmt: skip
"""What every gpt-oss needs, and what a load of weights alone needs."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if checkout := os.environ.get("MEGATRON_LM_DIR"):
        sys.path.insert(0, checkout)
    from engine.workers import cpu

    cpu.prepare_environment()
    import torch

    torch.set_num_threads(1)
    cpu.install(without=ABSENT_BRIDGE)
    import megatron.training
    from megatron.core.datasets import utils

    utils.compile_helpers = lambda: None  # there is no data, and the package holds no Makefile
    where = str(Path(megatron.training.__file__).resolve().parents[2])
    print(json.dumps({"ready": True, "from": where}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = load(json.loads(line))
        except BaseException:  # Megatron-LM ends with SystemExit
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def load(question: dict[str, Any]) -> dict[str, Any]:
    import torch
    from megatron.core import parallel_state
    from megatron.core.rerun_state_machine import destroy_rerun_state_machine
    from megatron.training import checkpointing, global_vars

    from engine.checkpoints import hugging_face
    from engine.workers.stream import forward, logits

    reference = hugging_face.read(Path(question["hf"]))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = build(arguments(reference.model, question))
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        iteration, _ = checkpointing.load_checkpoint([model], None, None)
        prompts = logits.prompts(reference.model.vocab, reference.model.window)
        with torch.inference_mode():
            found = [forward._answer(model, prompt).float() for prompt in prompts]
        unloaded = [name for name, value in model.named_parameters() if value.isnan().any()]
    finally:
        global_vars.unset_global_variables()
        destroy_rerun_state_machine()
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    compared = logits.compare(forward.transformers_logits(reference.path, prompts, question["dtype"]), found)
    return {
        "iteration": iteration,
        "unloaded": unloaded,
        "comparisons": [one.to_json() for one in compared],
        "within": all(one.is_within(question["dtype"]) for one in compared),
    }


def arguments(model: Any, question: dict[str, Any]) -> list[str]:
    sizes = {
        "num-layers": model.layers,
        "hidden-size": model.hidden,
        "ffn-hidden-size": model.ffn,
        "num-attention-heads": model.heads,
        "num-query-groups": model.kv_heads,
        "kv-channels": model.head_dim,
        "num-experts": model.experts,
        "moe-ffn-hidden-size": model.ffn,
        "moe-router-topk": model.top_k,
        "window-size": f"{model.window - 1},0",
        "rotary-base": int(model.rope_theta),
        "max-position-embeddings": model.max_positions,
        "seq-length": 4 * model.window,
        "micro-batch-size": 1,
        "tokenizer-type": "NullTokenizer",
        "vocab-size": model.vocab,
        "padded-vocab-size": model.vocab,
        "load": question["checkpoint"],
        "dist-ckpt-strictness": question["strictness"],
    }
    named = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return [*named, *GPT_OSS, *LOCAL, *(["--bf16"] if question["dtype"] == "bf16" else [])]


def build(words: list[str]) -> Any:
    """Megatron-LM's model of these arguments, as its gpt_builders.py makes it."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.module import Float16Module
    from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args
    from megatron.training.global_vars import set_global_variables
    from megatron.training.initialize import initialize_megatron

    sys.argv = ["pretrain_gpt.py", *words]
    args = parse_args()
    validate_args(args)
    set_global_variables(args, build_tokenizer=False)
    initialize_megatron(allow_no_cuda=True)
    config = core_transformer_config_from_args(args)
    layers = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    for layer in layers.layer_specs:
        # Saved under the name that the layers of Transformer Engine have, as engine/workers/profile.py tells.
        layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    model = GPTModel(
        config=config,
        transformer_layer_spec=layers,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        parallel_output=False,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
    )
    return (Float16Module(config, model) if args.bf16 else model).eval()


if __name__ == "__main__":
    main()
