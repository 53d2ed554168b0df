"""LoRA on one GPU: tokens per second and peak memory of gptoss, of its prediction, of transformers + PEFT.

    python -m bench.gpu.lora --layers 6 --iterations 20 --output DIR
    python -m bench.gpu.lora --tiny --output DIR        # the same on the CPU: shows that the script works, no more

The model has the layers of gpt-oss-20b, fewer of them, with random weights. Both sides get the same rows of tokens:
chats packed to the sequence length for gptoss, and the same rows as plain sequences for the peer, whose attention
cannot be told where a chat ends. Needs PEFT beside the training packages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine.run.directory import RunDirectory, read_records

RATE, RANK = 1e-4, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.output = arguments.output.absolute()
    if arguments.peer:
        print(json.dumps(peer(arguments)))
        return
    model = arguments.output / "model"
    if not (model / "config.json").exists():
        make_model(model, arguments)
    ours = measure_run(arguments, model)
    theirs = json.loads(_call([sys.executable, "-m", "bench.gpu.lora", "--peer", *sys.argv[1:]]).splitlines()[-1])
    print(json.dumps({"gptoss": ours, "transformers_peft": theirs}, indent=2))


def make_model(directory: Path, arguments: argparse.Namespace) -> None:
    """A random gpt-oss and a small tokenizer with Harmony's control tokens."""
    import torch
    from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

    from engine.data import harmony, toy_chats
    from engine.data.harmony import Style
    from engine.models import GPT_OSS_20B
    from engine.workers import tiny

    rendered = (harmony.render(chat, Style()) for chat in toy_chats.chats())
    texts = ("\n".join(piece.text for piece in pieces if not piece.is_control) for pieces in rendered)
    tiny.train_tokenizer(texts, directory, harmony.CONTROL_TOKENS, harmony.RETURN)
    if arguments.tiny:
        tiny.make_model(directory, AutoTokenizer.from_pretrained(directory), "fp32", 1234)
        return
    real = GPT_OSS_20B
    config = GptOssConfig(
        num_hidden_layers=arguments.layers, hidden_size=real.hidden, intermediate_size=real.ffn,
        num_local_experts=real.experts, num_experts_per_tok=real.top_k, num_attention_heads=real.heads,
        num_key_value_heads=real.kv_heads, head_dim=real.head_dim, vocab_size=real.vocab, sliding_window=128,
        rope_parameters=tiny.ROPE, layer_types=["sliding_attention", "full_attention"] * (arguments.layers // 2),
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(1234)
    torch.set_default_dtype(torch.bfloat16)
    GptOssForCausalLM(config).save_pretrained(directory)


def measure_run(arguments: argparse.Namespace, model: Path) -> dict[str, Any]:
    """A run of gptoss: prepare, convert, train, export, verify."""
    name = f"lora-{int(time.time())}"
    values: dict[str, object] = {
        "model.name": "custom", "model.path": model, "output.directory": arguments.output / "runs",
        "training.iterations": arguments.iterations, "training.sequence_length": arguments.sequence_length,
        "training.global_batch": arguments.global_batch, "training.warmup_iterations": 1,
        "training.checkpoint_interval": arguments.iterations, "training.evaluation_interval": arguments.iterations,
        "training.evaluation_iterations": 1, "training.learning_rate": RATE, "finetune.lora_rank": RANK,
    }  # fmt: skip
    if arguments.tiny:
        values |= {"machine.device": "cpu", "machine.cpu_ranks": 1, "training.precision": "fp32"}
    changes = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    _call([sys.executable, "-m", "gptoss_tui", "run", "20b-lora-1xh100", "--name", name, "--json", *changes])
    run = RunDirectory(arguments.output / "runs" / name)
    records = [record for record in read_records(run.metrics) if "tokens_per_s" in record]
    later = records[len(records) // 2 :]
    return {
        "tokens_per_s": round(statistics.median(record["tokens_per_s"] for record in later)),
        "peak_gib": round(max(record["memory_gib"] for record in records), 2),
        "predicted": run.read_plan().estimate.get("memory", {}).get("peak_gib"),
        "predicted_tokens_per_s": (run.read_plan().estimate.get("throughput") or {}).get("tokens_per_s_per_gpu"),
        "losses": [round(record["loss"], 4) for record in records],
        "run": str(run.path),
    }


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same rows in transformers + PEFT."""
    import numpy
    import pyarrow.parquet
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    device = "cpu" if arguments.tiny else "cuda"
    precision = torch.float32 if arguments.tiny else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        arguments.output / "model", dtype=precision, attn_implementation="eager"
    ).to(device)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    newest = max((arguments.output / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    table = pyarrow.parquet.read_table(newest / "data" / "train.idx.parquet")
    rows = [numpy.resize(ids, arguments.sequence_length + 1) for ids in table.column("input_ids").to_pylist()]
    seconds, losses = [], []
    for iteration in range(arguments.iterations):
        began = time.perf_counter()
        optimizer.zero_grad()
        total = 0.0
        for sample in range(arguments.global_batch):
            row = rows[(iteration * arguments.global_batch + sample) % len(rows)]
            ids = torch.as_tensor(row, dtype=torch.long, device=device)[None]
            loss = model(ids[:, :-1]).logits.float().flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(loss, ids[0, 1:]) / arguments.global_batch
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        losses.append(round(total, 4))
    tokens = arguments.global_batch * arguments.sequence_length
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        "tokens_per_s": round(tokens / statistics.median(seconds[len(seconds) // 2 :])),
        "peak_gib": peak and round(peak, 2),
        "losses": losses,
    }


def _call(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
