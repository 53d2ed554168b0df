"""Lets the base and the tuned model of a run answer the same questions; JSON lines on stdout as the words come.

Started as `python -m engine.workers.try_answers RUN_DIR` with {"prompts", "count", "longest", "models"} on stdin.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError, RunError
from engine.run.directory import RunDirectory
from engine.workers.finetune_chats import style_of
from engine.workers.finetune_questions import Question, answer_of, held_out, typed
from engine.workers.report import Report
from engine.workers.source import hugging_face_source, is_offline

type Tell = Callable[[Mapping[str, Any]], None]

MODELS = ("base", "tuned")
_BYTES_OF_A_LETTER = "�"
"""What the beginning of a letter of several tokens decodes to."""


def main() -> int:
    """Answer; return 0, or 2 after a line that says what is wrong."""
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # libraries print; what they print is no answer

    def tell(record: Mapping[str, Any]) -> None:
        print(json.dumps(record), file=lines, flush=True)

    try:
        ask(Report("try", RunDirectory(Path(sys.argv[1]))), json.load(sys.stdin), tell)
    except EngineError as error:
        tell({"error": error.message, "hint": error.hint})
        return 2
    return 0


def ask(report: Report, wanted: Mapping[str, Any], tell: Tell) -> None:
    """Ask each model each question. Raises EngineError."""
    os.chdir(report.run.path)
    if is_offline(report.settings):
        os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    places = {"base": hugging_face_source(report), "tuned": report.run.export.name}
    if not (report.run.export / "config.json").is_file():
        raise RunError(f"{report.run.name} has no export to ask", "wait for its end, or set output.export to true")
    directory = Path(report.run.export.name)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if wanted["prompts"]:
        questions = typed(wanted["prompts"], directory, style_of(report.settings))
    else:
        questions = held_out(Path(report.run.data.name), tokenizer, wanted["count"])
    for number, question in enumerate(questions):
        tell({"question": number, "text": question.text, "expected": question.expected})
    # One model after the other: two of them may not fit into memory together.
    for name in wanted["models"]:
        tell({"loading": name, "path": places[name]})
        model = _load(places[name], report.settings.training.precision)
        for number, question in enumerate(questions):
            ids: list[int] = []
            for piece in _pieces(model, tokenizer, question, wanted["longest"], ids):
                tell({"question": number, "model": name, "piece": piece})
            tell({"question": number, "model": name, "answer": answer_of(tokenizer, ids), "tokens": len(ids)})
        del model
        gc.collect()


def _load(place: str, precision: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    chosen: dict[str, Any] = {"device_map": "auto"} if on_gpu else {}
    chosen["dtype"] = torch.bfloat16 if precision == "bf16" and on_gpu else torch.float32
    return AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager", **chosen).eval()


def _pieces(model: Any, tokenizer: Any, question: Question, longest: int, ids: list[int]) -> Iterator[str]:
    """The likeliest answer, word by word; its tokens are added to `ids`."""
    import torch

    ends = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])}
    tokens, cache, shown = torch.tensor([question.ids], device=model.device), None, ""
    with torch.inference_mode():
        for _ in range(longest):
            output = model(tokens, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chosen = int(output.logits[0, -1].argmax())
            ids.append(chosen)
            if chosen in ends:
                return
            text = "" if _is_in_header(tokenizer, ids) else answer_of(tokenizer, ids)
            # A new message begins, or a letter is not complete yet.
            if text.startswith(shown) and not text.endswith(_BYTES_OF_A_LETTER):
                yield text[len(shown) :]
                shown = text
            elif not text.endswith(_BYTES_OF_A_LETTER):
                shown = text
            tokens = torch.tensor([[chosen]], device=model.device)


def _is_in_header(tokenizer: Any, ids: list[int]) -> bool:
    """True from a message's channel up to its text."""
    channel, message = tokenizer.convert_tokens_to_ids(["<|channel|>", "<|message|>"])
    return channel in ids and message not in ids[ids.index(channel) :]


if __name__ == "__main__":
    sys.exit(main())
