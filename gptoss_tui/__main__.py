"""`gptoss`: read the command line; open a screen only when one is wanted and possible."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.cli import parser
from engine.errors import EngineError, ExitCode

if TYPE_CHECKING:
    from engine.monitor.jobs import Watched
    from engine.run.directory import RunDirectory


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line and return its exit code (docs/cli.md)."""
    # A terminal or a file of another encoding gets a ? for what it cannot hold, and not half of the text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = _carry_out(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk or a closed pipe is told here, not when Python ends
        return code
    except EngineError as error:
        from engine.cli.output import print_error

        print_error(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return _drop_output(ExitCode.DONE)
    except OSError as error:
        return _told_by_the_system(error)
    except Exception as error:
        from engine.cli.output import print_error
        from engine.defects import keep_trace

        print_error(f"unexpected {type(error).__name__}: {error}", keep_trace())
        return ExitCode.STEP_FAILED


def _carry_out(arguments: Sequence[str] | None) -> int:
    options = parser.build().parse_args(arguments)
    options.show_screen = _screen_opener(options)
    if options.show_screen and options.screen in ("home", "setup"):
        return _open_named(options)
    if options.screen == "serve":
        from gptoss_tui.serve import carry_out

        return carry_out(options)
    if options.screen == "setup" and _can_ask(options):
        from gptoss_tui.prompts import ask_and_act

        return ask_and_act(options)
    if not options.carry_out:
        parser.build().print_help()
        return ExitCode.BAD_INPUT
    module, _, function = options.carry_out.partition(":")
    return int(getattr(importlib.import_module(f"engine.cli.{module}"), function)(options))


def _drop_output(code: ExitCode) -> ExitCode:
    # Keep Python from flushing into the closed pipe or the full disk at exit.
    with contextlib.suppress(OSError):  # there may be none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _told_by_the_system(error: OSError) -> ExitCode:
    """A place that is full, gone, of another kind or of too long a name: no defect, and no reason for a trace."""
    from engine.cli.output import print_error

    place = error.filename2 or error.filename
    if not place:
        print_error(error.strerror or str(error), "check that there is room where the output goes")
        return _drop_output(ExitCode.STEP_FAILED)
    name = str(place)
    shown = name if len(name) <= 120 else name[:120] + "…"
    print_error(f"{shown}: {error.strerror or error}", "give another place, or check that it exists and may be used")
    return ExitCode.BAD_INPUT


def _screen_opener(options: Any) -> Callable[..., int] | None:
    """What opens a screen, or None where there is no terminal or the person wants lines."""
    is_terminal = _is_terminal() and os.environ.get("TERM", "dumb") != "dumb"
    if getattr(options, "plain", False) or not _wants_screens(options) or not is_terminal:
        return None

    def open_screen(name: str, run: RunDirectory | None = None, watched: Watched | None = None) -> int:
        from gptoss_tui.app import run_app

        return run_app(name, run=run, no_mouse=options.no_mouse, watched=watched)

    return open_screen


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _wants_screens(options: Any) -> bool:
    if getattr(options, "headless", False) or getattr(options, "json", False):
        return False
    # A set-up that may not ask, or is only to be shown or started, needs no form.
    asks_nothing = ("no_input", "dry_run", "launch")
    return options.screen != "setup" or not any(getattr(options, name) for name in asks_nothing)


def _can_ask(options: Any) -> bool:
    """True where questions can be put line by line: also in a terminal that can do no more."""
    return _is_terminal() and _wants_screens(options)


def _open_named(options: Any) -> int:
    if options.machine:  # a bad file is refused here, in words, and not on a screen
        from engine.cli.machines import machine_of

        machine_of(options)
    from gptoss_tui.app import run_app

    begun = None
    if options.screen == "setup":
        from engine.cli.new import base_settings
        from gptoss_tui.draft import Draft

        is_named = options.preset and not {"/", "."} & set(options.preset)
        settings = base_settings(options)
        begun = Draft(settings, options.preset if is_named else "your settings") if settings is not None else None
    return run_app(options.screen, begun=begun, no_mouse=options.no_mouse, machine=options.machine)


if __name__ == "__main__":
    sys.exit(main())
