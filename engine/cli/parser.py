"""The command line: every verb, its options and where it is carried out.

Imports nothing heavier than argparse: `gptoss --help` and shell completion go through here.
"""

from __future__ import annotations

import argparse

from engine.version import __version__

_EPILOG = """\
exit codes: 0 done, 1 a step failed, 2 bad input, 3 refused by a check before the start,
4 not found, 130 interrupted or stopped
"""
_JSON = "print facts as JSON on stdout; progress goes to stderr"
_RUN = "name or directory of a run; the newest when left out"


def build() -> argparse.ArgumentParser:
    """The whole parser. A verb's `carry_out` is `module:function`, imported when it is used."""
    parser = argparse.ArgumentParser(
        prog="gptoss",
        description="Train OpenAI's gpt-oss with NVIDIA Megatron: plan, convert, train, export, verify, watch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gptoss {__version__}")
    parser.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    parser.set_defaults(carry_out="", screen="home")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_starting_verbs(verbs)
    _add_run_verbs(verbs)
    _add_fact_verbs(verbs)
    return parser


type _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def _verb(verbs: _Verbs, name: str, carry_out: str, text: str, screen: str = "") -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(carry_out=carry_out, screen=screen)
    return verb


def _add_starting_verbs(verbs: _Verbs) -> None:
    quickstart = _verb(verbs, "quickstart", "starting:quickstart", "start a run from a preset and watch it")
    quickstart.add_argument("preset", nargs="?", default="", help="a preset; without one it is chosen for the machine")
    _add_starting_options(quickstart)
    new = _verb(verbs, "new", "starting:new", "set up a run step by step", screen="setup")
    new.add_argument("preset", nargs="?", default="", help="the preset to start from")
    run = _verb(verbs, "run", "starting:run", "start a run from a preset or settings file, or resume one")
    run.add_argument("preset", nargs="?", default="", help="a preset or a settings file (gptoss.toml)")
    run.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped, failed or lost")
    _add_starting_options(run)


def _add_starting_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
                      help="change one setting, for example training.iterations=200; may be repeated")  # fmt: skip
    verb.add_argument("--name", default="", help="name of the run; otherwise MODEL-DATE-TIME")
    verb.add_argument("--headless", action="store_true", help="print progress lines instead of a screen")
    verb.add_argument("--detach", action="store_true", help="start it and return at once")
    verb.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    verb.add_argument("--force", action="store_true", help="start although a check warns that it will fail")
    verb.add_argument("--no-input", action="store_true", help="never ask; fail when an answer is missing")
    verb.add_argument("--json", action="store_true", help=_JSON)


def _add_run_verbs(verbs: _Verbs) -> None:
    runs = _verb(verbs, "runs", "runs:list_runs", "list the runs")
    runs.add_argument("--json", action="store_true", help=_JSON)
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
    logs.add_argument("--rank", type=int, default=0, help="which rank (default 0)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on printing as the log grows")


def _add_fact_verbs(verbs: _Verbs) -> None:
    presets = _verb(verbs, "presets", "facts:presets", "list the presets, or show one")
    presets.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    presets.add_argument("name", nargs="?", default="", help="the preset to show")
    presets.add_argument("--json", action="store_true", help=_JSON)
    settings = _verb(verbs, "settings", "facts:settings", "list every setting, explain one, or print them as a page")
    settings.add_argument("action", nargs="?", choices=("list", "explain", "page"), default="list")
    settings.add_argument("key", nargs="?", default="", help="the setting to explain")
    settings.add_argument("--json", action="store_true", help=_JSON)
    doctor = _verb(verbs, "doctor", "facts:doctor", "say what this machine has and what is missing")
    doctor.add_argument("--json", action="store_true", help=_JSON)
    completion = _verb(verbs, "completion", "facts:completion", "print the completion script of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
