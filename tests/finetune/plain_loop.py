"""Fine-tuning written plainly with transformers and PEFT, to compare Megatron's with. Knows nothing of Megatron.

python plain_loop.py QUESTION.json  ->  one JSON object on stdout. What it reads of a run is its Hugging Face model,
its rows of tokens and its export; that the adapters start where Megatron's did is told by `start`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    torch.set_num_threads(1)
    question = json.loads(Path(sys.argv[1]).read_text())
    answer: dict[str, Any] = {}
    for name, wanted in question.items():
        work = train if "iterations" in wanted else compare
        answer[name] = work(wanted)
    print(json.dumps(answer))


def load(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def train(wanted: dict[str, Any]) -> list[float]:
    """The loss of each iteration: AdamW at a constant rate, gradients clipped at 1, one loss per counted token."""
    model = load(wanted["model"])
    if "adapter" in wanted:
        model = with_adapters(model, wanted)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=wanted["rate"], betas=(0.9, wanted["beta2"]), weight_decay=0.0)
    order = rows_in_order(wanted)
    losses = []
    for _ in range(wanted["iterations"]):
        optimizer.zero_grad()
        batch = [next(order) for _ in range(wanted["batch"])]
        counted = sum(float(mask.sum()) for _, mask in batch)
        total = 0.0
        for ids, mask in batch:
            logits = model(ids[None, :-1]).logits[0]
            each = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            loss = (each * mask).sum() / counted
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(total)
    return losses


def rows_in_order(wanted: dict[str, Any]) -> Any:
    """Tokens and mask of each sample: epochs of the rows, each shuffled by the seed and its number."""
    table = pyarrow.parquet.read_table(wanted["rows"]).to_pylist()
    epoch = 0
    while True:
        for row in numpy.random.default_rng((wanted["seed"], epoch)).permutation(len(table)):
            held = table[int(row)]
            yield torch.tensor(held["input_ids"]), torch.tensor(held["loss_mask"][:-1], dtype=torch.float32)
        epoch += 1


def with_adapters(model: Any, wanted: dict[str, Any]) -> Any:
    """PEFT's adapters at the start that is given; query, key and value share one down matrix as in Megatron."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    described = json.loads((Path(wanted["adapter"]) / "adapter_config.json").read_text())
    chosen = {name: described[name] for name in ("r", "lora_alpha", "target_modules", "target_parameters")}
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **chosen))
    start = load_file(Path(wanted["adapter"]) / "adapter_model.safetensors")
    # After one iteration the up matrices have moved and, their gradient having been zero, the down matrices have not.
    start = {name: tensor if ".lora_A." in name else torch.zeros_like(tensor) for name, tensor in start.items()}
    loaded = set_peft_model_state_dict(wrapped, start)
    assert not loaded.unexpected_keys
    for module in wrapped.modules():
        if hasattr(module, "q_proj"):
            module.k_proj.lora_A = module.v_proj.lora_A = module.q_proj.lora_A
    return wrapped


def compare(wanted: dict[str, Any]) -> dict[str, float]:
    """How far the logits of base with adapter, and of base alone, are from those of the merged model."""
    from peft import PeftModel

    ids = torch.tensor(pyarrow.parquet.read_table(wanted["rows"]).to_pylist()[0]["input_ids"])[None]
    base, merged = load(wanted["model"]).eval(), load(wanted["merged"]).eval()
    with torch.inference_mode():
        expected, alone = merged(ids).logits, base(ids).logits
        found = PeftModel.from_pretrained(base, wanted["adapter"]).eval()(ids).logits
    return {
        "adapter": float((found - expected).abs().max()),
        "base": float((alone - expected).abs().max()),
        "largest": float(expected.abs().max()),
    }


if __name__ == "__main__":
    main()
