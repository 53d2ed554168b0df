"""The command line: every verb, its options and where it is carried out.

Imports nothing heavier than argparse: `gptoss --help` and shell completion go through here.
"""

from __future__ import annotations

import argparse

from engine.cli import examples, numbers
from engine.cli.command_line import Parser
from engine.version import __version__

_JSON = "print facts as JSON on stdout; progress goes to stderr"
_OR_STDOUT = ", or - for standard output"
_RUN = "name or directory of a run; the newest when left out"


def build() -> argparse.ArgumentParser:
    """The whole parser. A verb's `carry_out` is `module:function`, imported when it is used."""
    parser = Parser(
        prog="gptoss",
        description="Train OpenAI's gpt-oss with NVIDIA Megatron: plan, convert, train, export, verify, watch.",
        epilog=examples.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gptoss {__version__}")
    parser.add_argument("--machine", default="", metavar="FILE", help="plan for the machine that this file describes")
    parser.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    parser.set_defaults(carry_out="", screen="home")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_starting_verbs(verbs)
    _add_script_verb(verbs)
    _add_plan_verb(verbs)
    _add_run_verbs(verbs)
    _add_watching_verbs(verbs)
    _add_serve_verb(verbs)
    _add_preset_verbs(verbs)
    _add_fact_verbs(verbs)
    _add_data_verbs(verbs)
    _add_checkpoint_verbs(verbs)
    _add_try_verb(verbs)
    return parser


def _add_try_verb(verbs: _Verbs) -> None:
    attempt = _verb(verbs, "try", "try_run:carry_out", "ask the base and the tuned model of a run the same questions")
    attempt.add_argument("run", nargs="?", default="last", help=_RUN)
    attempt.add_argument("--prompt", action="append", default=[], metavar="TEXT",
                         help="a question; may be repeated (default: chats held out from the training)")  # fmt: skip
    attempt.add_argument(
        "--count", type=numbers.SMALL_COUNT, default=4, metavar="N", help="how many held-out chats (default 4)"
    )
    attempt.add_argument(
        "--max-tokens", type=numbers.SMALL_COUNT, default=48, metavar="N", help="longest answer (default 48)"
    )
    attempt.add_argument("--only-tuned", action="store_true", help="leave the base model out")
    attempt.add_argument("--json", action="store_true", help=_JSON)


def _add_plan_verb(verbs: _Verbs) -> None:
    plan = _verb(verbs, "plan", "plan:plan", "judge a layout or choose one: does it fit, how fast, how long")
    plan.add_argument("preset", nargs="?", default="", help="a preset or a settings file: says what no option says")
    plan.add_argument(
        "--model", default="", help="gpt-oss-20b (default), gpt-oss-120b, tiny, or a directory with a config.json"
    )
    plan.add_argument("--gpu", default="", help="a GPU family, for example H100; otherwise this machine's GPUs")
    plan.add_argument(
        "--gpus-per-node", type=numbers.GPUS, default=0, metavar="N", help="GPUs of one node (default 8, or all)"
    )
    plan.add_argument("--nodes", type=numbers.NODES, default=0, metavar="N", help="how many such nodes (default 1)")
    plan.add_argument("--goal", default="", choices=("", "pretrain", "continue", "sft", "lora"), metavar="GOAL",
                      help="pretrain, continue (default), sft or lora")  # fmt: skip
    plan.add_argument(
        "--sequence-length", type=numbers.COUNT, default=0, metavar="N", help="tokens in one sample (default 4096)"
    )
    plan.add_argument(
        "--micro-batch",
        type=numbers.COUNT,
        default=0,
        metavar="N",
        help="samples at a time on one GPU (default: chosen)",
    )
    plan.add_argument(
        "--global-batch", type=numbers.COUNT, default=0, metavar="N", help="samples in one iteration (default 128)"
    )
    plan.add_argument("--precision", default="", help="bf16 (default), fp8, mxfp8 or fp32")
    plan.add_argument("--gradient-precision", default="", choices=("", "fp32", "bf16"), metavar="P",
                      help="fp32 (default) or bf16")  # fmt: skip
    plan.add_argument(
        "--layout",
        default="",
        metavar="SIZES",
        help="judge this one: tp=1,pp=4,ep=8,cp=1 (default: the best one is chosen)",
    )
    plan.add_argument(
        "--recompute", default="", metavar="MODULES", help="none, full, or layernorm,moe_act,moe (default: chosen)"
    )
    plan.add_argument("--tokens", type=numbers.AMOUNT, metavar="N", help="tokens to train on: gives hours, and cost")
    plan.add_argument("--price", type=numbers.PRICE, metavar="P", help="price of one GPU for one hour")
    plan.add_argument("--machine", default=argparse.SUPPRESS, metavar="FILE", help="plan for the machine in this file")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                      help="change one setting; may be repeated")  # fmt: skip
    plan.add_argument("--json", action="store_true", help=_JSON)


type _Verbs = argparse._SubParsersAction[Parser]


def _verb(verbs: _Verbs, name: str, carry_out: str, text: str, screen: str = "") -> Parser:
    description = text[0].upper() + text[1:] + "."
    raw = argparse.RawDescriptionHelpFormatter
    verb = verbs.add_parser(name, help=text, description=description, formatter_class=raw)
    verb.epilog = examples.epilog(verb.prog.removeprefix("gptoss "))
    verb.set_defaults(carry_out=carry_out, screen=screen)
    return verb


def _add_starting_verbs(verbs: _Verbs) -> None:
    quickstart = _verb(verbs, "quickstart", "starting:quickstart", "start a run from a preset and watch it")
    quickstart.add_argument("preset", nargs="?", default="", help="a preset; without one it is chosen for the machine")
    _add_starting_options(quickstart)
    new = _verb(verbs, "new", "new:new", "set up a run step by step", screen="setup")
    new.add_argument("preset", nargs="?", default="", help="the preset or settings file to start from")
    new.add_argument("--from", nargs="+", default=[], dest="sources", metavar="FILE",
                     help="take over distributed_config.env files and launch scripts first")  # fmt: skip
    new.add_argument("--plain", action="store_true", help="ask line by line: for slow lines and screen readers")
    new.add_argument("--launch", action="store_true", help="start it (where nothing is asked)")
    _add_keeping_options(new)
    _add_starting_options(new)
    taken = _verb(verbs, "import", "new:import_files", "read env files and launch scripts: what becomes of them here")
    taken.add_argument("files", nargs="+", metavar="FILE",
                       help="distributed_config.env, 02_train.sh, or a script that starts pretrain_gpt.py")  # fmt: skip
    taken.add_argument("--json", action="store_true", help=_JSON)
    _add_keeping_options(taken)
    run = _verb(verbs, "run", "starting:run", "start a run from a preset or settings file, or resume one")
    run.add_argument("preset", nargs="?", default="", help="a preset or a settings file (gptoss.toml)")
    run.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped, failed or lost")
    _add_starting_options(run)


def _add_script_verb(verbs: _Verbs) -> None:
    scripts = _verb(
        verbs, "export-scripts", "scripts:export_scripts", "write scripts that carry out a run without gptoss"
    )
    scripts.add_argument("--preset", default="", metavar="NAME", help="a preset or a settings file (gptoss.toml)")
    scripts.add_argument(
        "--output", default="", metavar="DIR", help="the directory to make; it may be moved afterwards"
    )
    scripts.add_argument("--machine", default=argparse.SUPPRESS, metavar="FILE",
                         help="plan for the machine that this file describes")  # fmt: skip
    scripts.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                         help="change one setting, for example machine.nodes=4; may be repeated")  # fmt: skip
    scripts.add_argument("--no-input", action="store_true", help="never ask; fail when an answer is missing")
    scripts.add_argument("--json", action="store_true", help=_JSON)


def _add_keeping_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--output", default="", metavar="FILE", help=f"write the settings to FILE{_OR_STDOUT}")
    verb.add_argument("--save-preset", default="", metavar="NAME", help="keep them as a preset of yours")
    verb.add_argument("--overwrite", action="store_true", help="replace what is there of that name")


def _add_starting_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                      help="change one setting, for example training.iterations=200; may be repeated")  # fmt: skip
    verb.add_argument("--length", default="", metavar="N-UNIT",
                      help="how long to train: 2B-tokens, 500k-samples, 3-epochs, 10h, 1000")  # fmt: skip
    verb.add_argument("--name", default="", help="name of the run; otherwise MODEL-DATE-TIME")
    verb.add_argument("--headless", action="store_true", help="print progress lines instead of a screen")
    verb.add_argument("--detach", action="store_true", help="start it and return at once")
    verb.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    verb.add_argument("--force", action="store_true", help="start although a check warns that it will fail")
    verb.add_argument("--no-input", action="store_true", help="never ask; fail when an answer is missing")
    verb.add_argument("--json", action="store_true", help=_JSON)


def _add_run_verbs(verbs: _Verbs) -> None:
    runs = _verb(verbs, "runs", "runs:list_runs", "list the runs")
    runs.add_argument("--repair", action="store_true",
                      help="mend records of runs that lost their supervisor, and end what is left of them")  # fmt: skip
    runs.add_argument("--filter", default="", metavar="TEXT",
                      help="only runs whose name, status, step, tags or note hold TEXT")  # fmt: skip
    runs.add_argument("--archived", action="store_true", help="also those that were put away")
    runs.add_argument("--json", action="store_true", help=_JSON)
    label = _verb(verbs, "label", "history:label", "write tags and a note on a run, or put it away")
    label.add_argument("run", help="name or directory of a run")
    label.add_argument("--add", action="append", default=[], metavar="TAG", help="a tag to add; may be repeated")
    label.add_argument("--remove", action="append", default=[], metavar="TAG", help="a tag to take off")
    label.add_argument("--note", default=None, metavar="TEXT", help="a note in place of the old one")
    label.add_argument("--archive", action=argparse.BooleanOptionalAction, default=None,
                       help="leave it out of lists, or not any more")  # fmt: skip
    label.add_argument("--json", action="store_true", help=_JSON)
    diagnose = _verb(verbs, "diagnose", "diagnose:diagnose", "say why a run failed and what to change")
    diagnose.add_argument("run", nargs="?", default="last", help=_RUN)
    diagnose.add_argument("--apply", action="store_true", help="change the settings as proposed, and resume")
    diagnose.add_argument("--json", action="store_true", help=_JSON)
    attach = _verb(verbs, "attach", "runs:attach", "watch a run, live or over", screen="monitor")
    attach.add_argument("run", nargs="?", default="last", help=_RUN)
    attach.add_argument("--headless", action="store_true", help="print progress lines instead of a screen")
    attach.add_argument("--json", action="store_true", help=_JSON)
    stop = _verb(verbs, "stop", "runs:stop", "stop a run gracefully: it saves a checkpoint first")
    stop.add_argument("run", nargs="?", default="last", help=_RUN)
    stop.add_argument("--wait", action="store_true", help="return when it has stopped")
    stop.add_argument("--json", action="store_true", help=_JSON)
    kill = _verb(verbs, "kill", "runs:kill", "end every process of a run at once, without saving")
    kill.add_argument("run", help="name or directory of a run")
    kill.add_argument("--json", action="store_true", help=_JSON)
    logs = _verb(verbs, "logs", "runs:logs", "print the log of one rank")
    logs.add_argument("run", nargs="?", default="last", help=_RUN)
    logs.add_argument("--step", default="", help="a step; the newest attempt when left out")
    logs.add_argument("--rank", type=numbers.RANK, default=0, help="which rank (default 0)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on printing as the log grows")


def _add_serve_verb(verbs: _Verbs) -> None:
    serve = _verb(verbs, "serve", "", "show the screens in a browser on this machine", screen="serve")
    serve.add_argument("run", nargs="?", default="", help="a run to watch; all of them when left out")
    serve.add_argument(
        "--port", type=numbers.PORT, default=8021, metavar="N", help="port (default 8021; 0: a free one)"
    )
    serve.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)"
    )
    serve.add_argument("--allow-remote", action="store_true", help="let --host be an address that others reach")
    serve.add_argument("--public-url", default="", metavar="URL", help="what browsers call it, behind a proxy")
    serve.add_argument("--allow-actions", action="store_true", help="let the browser start, stop and change runs")


def _add_watching_verbs(verbs: _Verbs) -> None:
    watch = _verb(verbs, "watch", "watch:watch", "follow any Megatron job: its log, logs, TensorBoard files or a run",
                  screen="watch")  # fmt: skip
    watch.add_argument("places", nargs="+", metavar="PLACE",
                       help="logs, a directory of logs or event files, a run, or - for standard input")  # fmt: skip
    watch.add_argument("--no-follow", action="store_true", help="read what is there, say what it shows, and end")
    watch.add_argument("--step", default="", help="of a run: only the records of this step")
    watch.add_argument("--notify", action="store_true", help="send alerts as notifications.toml says")
    watch.add_argument("--plain", action="store_true", help="lines instead of the screen")
    watch.add_argument("--json", action="store_true", help="metrics and alerts as JSON lines on stdout")
    report = _verb(verbs, "report", "history:report", "print what a run came to, as one page of Markdown")
    report.add_argument("run", nargs="?", default="last", help=_RUN)
    report.add_argument("--metrics", "--csv", default="", metavar="FILE",
                        help="write every iteration's metrics to FILE: .csv (so too -) or .parquet")  # fmt: skip
    report.add_argument("--picture", default="", metavar="FILE",
                        help="write a chart to FILE: .svg (so too -), or .png where cairosvg is installed")  # fmt: skip
    report.add_argument("--metric", default="loss", help="which metric the chart shows (default loss)")
    report.add_argument("--output", default="", metavar="FILE",
                        help=f"write the page to FILE{_OR_STDOUT}; one that ends in .html has pictures")  # fmt: skip
    report.add_argument("--json", action="store_true", help=_JSON)
    compare = _verb(verbs, "compare", "history:compare", "show runs side by side: one metric, and settings that differ")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="names or directories of runs")
    compare.add_argument("--by", choices=("iteration", "tokens", "time"), default="iteration",
                         help="align by iteration (default), tokens or seconds at work")  # fmt: skip
    compare.add_argument("--metric", default="loss", help="which metric (default loss)")
    compare.add_argument("--picture", default="", metavar="FILE",
                         help="write the runs' curves to FILE: .svg (so too -) or .png")  # fmt: skip
    compare.add_argument("--rows", type=numbers.PLACES, default=20, help="how many places to compare at (default 20)")
    compare.add_argument("--json", action="store_true", help=_JSON)


def _add_preset_verbs(verbs: _Verbs) -> None:
    presets = _verb(verbs, "presets", "presets:list_presets", "list the presets; show, compare, save and share them")
    presets.add_argument("--json", action="store_true", help=_JSON)
    actions = presets.add_subparsers(title="actions", metavar="ACTION")
    _verb(actions, "list", "presets:list_presets", "list the presets")
    show = _verb(actions, "show", "presets:show", "print a preset as a settings file")
    diff = _verb(actions, "diff", "presets:diff", "show what a preset sets otherwise than another")
    save = _verb(actions, "save", "presets:save", "keep a preset of your own")
    save.add_argument("--from", default="", dest="source", metavar="PRESET",
                      help="a preset or a settings file to start from (default: the defaults)")  # fmt: skip
    save.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                      help="change one setting; may be repeated")  # fmt: skip
    save.add_argument("--title", default="", help="what it is, in a few words")
    save.add_argument("--summary", default="", help="what it is good for, in a sentence")
    save.add_argument("--overwrite", action="store_true", help="replace a preset of yours of this name")
    share = _verb(actions, "share", "presets:share", "write a preset as a file for somebody else")
    delete = _verb(actions, "delete", "presets:delete", "remove a preset of your own")
    for action in (show, diff, save, share, delete):
        action.add_argument("name", help="a name" if action in (save, delete) else "a preset or a settings file")
    diff.add_argument("other", nargs="?", default="", help="what to compare it with (default: the defaults)")
    share.add_argument("file", metavar="FILE", help=f"the file to write{_OR_STDOUT}")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=_JSON)


def _add_fact_verbs(verbs: _Verbs) -> None:
    settings = _verb(verbs, "settings", "facts:settings", "list every setting, explain one, or print them as a page")
    settings.add_argument("action", nargs="?", choices=("list", "explain", "page"), default="list",
                          help="what to do: list (default), explain or page")  # fmt: skip
    settings.add_argument("key", nargs="?", default="", help="the setting to explain")
    settings.add_argument("--json", action="store_true", help=_JSON)
    doctor = _verb(verbs, "doctor", "facts:doctor", "say what this machine has and what is missing")
    doctor.add_argument(
        "--save-machine", default="", metavar="FILE", help=f"write what was found as a machine file{_OR_STDOUT}"
    )
    doctor.add_argument("--json", action="store_true", help=_JSON)
    completion = _verb(verbs, "completion", "facts:completion", "print the completion script of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")


def _add_data_verbs(verbs: _Verbs) -> None:
    data = _verb(verbs, "data", "", "look at training data, prepare it, check it")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    inspect = _verb(actions, "inspect", "data:inspect", "say what is in text or chats")
    inspect.add_argument("--exact", action="store_true", help="count every record instead of a sample")
    inspect.add_argument("--preset", default="", help="a preset or settings file: gives the sequence length and epochs")
    prepare = _verb(actions, "prepare", "data:prepare", "turn text or chats into what Megatron reads")
    prepare.add_argument("--output", "-o", required=True, metavar="DIR", help="the directory of the new dataset")
    prepare.add_argument("--validation-percent", type=numbers.SHARE, default=5.0, metavar="N",
                         help="share of the documents kept out of training (default 5; 0: none)")  # fmt: skip
    prepare.add_argument("--skip-bad", action="store_true",
                         help="leave out records that cannot be used, counted and listed")  # fmt: skip
    prepare.add_argument("--end-of-document", default="", metavar="TOKEN",
                         help="the token behind each document (default <|endoftext|>)")  # fmt: skip
    prepare.add_argument(
        "--rows", type=numbers.COUNT, default=201_088, help="token ids that the model knows (default 201088)"
    )
    prepare.add_argument("--force", action="store_true", help="accept a tokenizer that is not the one of gpt-oss")
    prepare.add_argument(
        "--workers", type=numbers.PROCESSES, default=0, metavar="N", help="processes (default: one for each core)"
    )
    prepare.add_argument("--encoder", choices=("gigatoken", "tokenizers"), default="",
                         help="what tokenises (default: the fastest that gives the right tokens)")  # fmt: skip
    prepare.add_argument("--no-packing", action="store_true", help="chats: one in a row, for training on the CPU")
    prepare.add_argument("--multiple", type=numbers.COUNT, default=1, metavar="N",
                         help="chats: pad each to a multiple of this, 2 x cp or tp x cp (default 1)")  # fmt: skip
    prepare.add_argument("--effort", choices=("low", "medium", "high"), default="medium",
                         help="chats: the reasoning effort in the system message (default medium)")  # fmt: skip
    prepare.add_argument("--quick", action="store_true", help="do not read the result back with Megatron")
    for action in (inspect, prepare):
        action.add_argument("path", help="a file, directory, 'pattern', dataset directory or hf:owner/name")
        action.add_argument("--column", default="", help="the column with the text or chat, or PROMPT,ANSWER")
        action.add_argument("--split", default="train", help="the split of a dataset directory (default train)")
        action.add_argument("--tokenizer", default="", metavar="DIR",
                            help="a tokenizer.json or its directory (default: the one of gpt-oss)")  # fmt: skip
        action.add_argument(
            "--sequence-length", type=numbers.COUNT, default=0, metavar="N", help="tokens in one sample"
        )
    check = _verb(actions, "check", "data:check", "check a .bin/.idx prefix or a prepared dataset")
    check.add_argument("path", help="the prefix without ending, or the directory")
    check.add_argument(
        "--rows", type=numbers.COUNT, default=201_088, help="token ids that the model knows (default 201088)"
    )
    for action in (inspect, prepare, check):
        action.add_argument("--json", action="store_true", help=_JSON)


def _add_checkpoint_verbs(verbs: _Verbs) -> None:
    convert = _verb(verbs, "convert", "checkpoints:convert", "turn a Hugging Face gpt-oss into a Megatron checkpoint")
    convert.add_argument("source", metavar="HF_DIR", help="its directory, or a name in the Hugging Face cache")
    export = _verb(verbs, "export", "checkpoints:export", "turn a Megatron checkpoint into Hugging Face safetensors")
    export.add_argument("source", metavar="CKPT", help="a directory with iter_NNNNNNN in it, or one of those")
    export.add_argument("--reference", default="", metavar="HF_DIR",
                        help="the model it came from: gives config.json and tokenizer")  # fmt: skip
    for verb in (convert, export):
        verb.add_argument("out", metavar="OUT", help="the directory to make; it appears when it is complete")
        verb.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="number format (default bf16)")
        verb.add_argument("--overwrite", action="store_true", help="replace OUT, when the new one is complete")
    verify = _verb(verbs, "verify", "checkpoints:verify", "check a Megatron checkpoint, also against its origin")
    verify.add_argument("source", metavar="CKPT", help="a directory with iter_NNNNNNN in it, or one of those")
    verify.add_argument("--against", default="", metavar="HF_DIR", help="the Hugging Face checkpoint it came from")
    verify.add_argument("--no-logits", action="store_true", help="compare tensors only; needs no Megatron")
    for verb in (export, verify):
        verb.add_argument("--base", default="", metavar="DIR",
                          help="LoRA: the weights below the adapters (default: those that the run noted)")  # fmt: skip
    for verb in (convert, export, verify):
        verb.add_argument(
            "--threads", type=numbers.PROCESSES, default=0, metavar="N", help="threads (default: as many as fit)"
        )
        verb.add_argument("--python", default="", metavar="FILE", help="the Python that has torch (default: this one)")
        verb.add_argument("--json", action="store_true", help=_JSON)
    checkpoint = _verb(verbs, "checkpoint", "", "look at any checkpoint")
    actions = checkpoint.add_subparsers(title="actions", metavar="ACTION", required=True)
    inspect = _verb(
        actions, "inspect", "checkpoints:inspect", "say what a checkpoint is, whether it is whole, its uses"
    )
    inspect.add_argument("path", help="a Hugging Face directory, a Megatron checkpoint or a LoRA adapter")
    inspect.add_argument("--json", action="store_true", help=_JSON)
