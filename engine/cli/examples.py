"""Examples of each verb, shown by `--help`. Every one is a command line that is understood."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "quickstart": (
        "gptoss quickstart",
        "gptoss quickstart rehearsal-lora --headless",
        "gptoss quickstart --headless --json --no-input",
    ),
    "new": (
        "gptoss new --plain",
        "gptoss new 20b-lora-1xh100 --set data.path=chats.jsonl --no-input --output gptoss.toml",
        "gptoss new --from distributed_config.env 02_train.sh",
    ),
    "import": ("gptoss import 02_train.sh --output gptoss.toml",),
    "run": (
        "gptoss run rehearsal --set training.iterations=20",
        "gptoss run gptoss.toml --length 2B-tokens --name night --detach",
        "gptoss run 20b-sft-8xh100 --dry-run",
        "gptoss run --resume last",
    ),
    "export-scripts": (
        "gptoss export-scripts --preset 20b-sft-8xh100 --output scripts",
        "gptoss export-scripts --preset 120b-pretrain-64xh100 --output scripts --set launch.master_addr=node01",
    ),
    "plan": (
        "gptoss plan 20b-sft-8xh100",
        "gptoss plan --model gpt-oss-120b --gpu H100 --nodes 8 --layout tp=1,pp=4,ep=8",
        "gptoss plan --model gpt-oss-20b --gpu H200 --tokens 10B --price 3.5 --json",
    ),
    "runs": ("gptoss runs --filter failed", "gptoss runs --archived --json", "gptoss runs --repair"),
    "label": ("gptoss label night --add best --note 'lower rate'", "gptoss label night --archive"),
    "diagnose": ("gptoss diagnose", "gptoss diagnose night --apply"),
    "attach": ("gptoss attach", "gptoss attach night --headless --json"),
    "stop": ("gptoss stop", "gptoss stop night --wait"),
    "kill": ("gptoss kill night",),
    "logs": ("gptoss logs", "gptoss logs night --step train --rank 3 --follow"),
    "watch": (
        "gptoss watch training.log",
        "gptoss watch logs/ --notify",
        "gptoss watch training.log --no-follow --json",
        "gptoss watch - --json",
    ),
    "report": ("gptoss report night --output night.html", "gptoss report night --metrics night.csv --picture loss.svg"),
    "compare": ("gptoss compare night day", "gptoss compare night day --metric grad_norm --by tokens"),
    "serve": ("gptoss serve", "gptoss serve night --port 0 --allow-actions"),
    "presets": ("gptoss presets", "gptoss presets --json"),
    "presets list": ("gptoss presets list --json",),
    "presets show": ("gptoss presets show 20b-sft-8xh100",),
    "presets diff": ("gptoss presets diff 20b-sft-8xh100", "gptoss presets diff 20b-sft-8xh100 20b-lora-1xh100"),
    "presets save": ("gptoss presets save mine --from 20b-sft-8xh100 --set training.learning_rate=5e-6",),
    "presets share": ("gptoss presets share mine mine.toml",),
    "presets delete": ("gptoss presets delete mine",),
    "settings": (
        "gptoss settings",
        "gptoss settings explain training.learning_rate",
        "gptoss settings list --json",
    ),
    "doctor": ("gptoss doctor", "gptoss doctor --json", "gptoss doctor --save-machine machine.toml"),
    "completion": ('eval "$(gptoss completion bash)"',),
    "data": ("gptoss data inspect corpus.jsonl", "gptoss data prepare corpus.jsonl --output dataset"),
    "data inspect": ("gptoss data inspect corpus/ --exact", "gptoss data inspect chats.jsonl --json"),
    "data prepare": (
        "gptoss data prepare corpus/ --output dataset --validation-percent 1",
        "gptoss data prepare chats.jsonl --output dataset --sequence-length 4096 --skip-bad",
    ),
    "data check": ("gptoss data check dataset", "gptoss data check dataset/train --json"),
    "convert": ("gptoss convert openai/gpt-oss-20b converted", "gptoss convert models/mine converted --threads 4"),
    "export": ("gptoss export runs/night exported", "gptoss export ckpt exported --reference openai/gpt-oss-20b"),
    "verify": ("gptoss verify converted --against openai/gpt-oss-20b", "gptoss verify converted --no-logits --json"),
    "checkpoint": ("gptoss checkpoint inspect converted",),
    "checkpoint inspect": ("gptoss checkpoint inspect converted --json",),
    "try": ("gptoss try", "gptoss try night --prompt 'What is a gradient?' --max-tokens 64 --only-tuned"),
}
"""By the words that name the verb."""

EXIT_CODES = """\
exit codes: 0 done, 1 a step failed, 2 bad input, 3 refused by a check before the start,
4 not found, 130 interrupted or stopped
"""


def epilog(words: str) -> str:
    """What stands below the options of a verb."""
    lines = [f"  {line}" for line in EXAMPLES[words]]
    return "\n".join(["examples:", *lines, "", EXIT_CODES])
