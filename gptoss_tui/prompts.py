"""`gptoss new --plain`: the set-up as questions, one line at a time.

For slow lines, dumb terminals and screen readers: no menu to move in, nothing that only a colour says, and every
question takes the same answers beside its own: Enter keeps, ? explains, < goes back, > goes to the summary.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from engine import answers, length, settings_file
from engine.cli import output, starting
from engine.errors import EngineError, ExitCode, SettingsError
from engine.findings import Finding, for_forms
from engine.options import Option, text_of
from engine.paths import expanded
from engine.plan.plan import Plan
from engine.settings import OPTIONS
from gptoss_tui import unfinished
from gptoss_tui.bridge import Failure, Services, attempt
from gptoss_tui.draft import Draft, explanation
from gptoss_tui.stations import BY_KEY, STATIONS, Station, station_of

BACK, SUMMARY, HELP, EMPTY = "<", ">", "?", "-"
HOW = "Enter keeps what stands in brackets, ? explains, < goes back, > goes to the summary, - empties, Ctrl+C leaves."
_ADVANCED = "advanced:"
_LENGTH = "training.iterations"

type Read = Callable[[str, bool], str]
"""Ask for one line; the flag says that it is a path. Raises KeyboardInterrupt or EOFError when the person leaves."""


def ask_and_act(arguments: Any) -> int:
    """Ask everything, show the summary, and do what the person wants with it. Returns the exit code."""
    from engine.cli.new import base_settings

    services = Services()
    services.described = expanded(arguments.machine) if arguments.machine else None
    base = base_settings(arguments)
    setup = SetUp(Draft(base, arguments.preset) if base else Draft(), services, reader(), arguments)
    try:
        setup.take_up()
        return setup.run()
    except (KeyboardInterrupt, EOFError):
        setup.draft.save()
        print("\nLeft. Your answers are kept: gptoss new goes on with them.")
        return ExitCode.INTERRUPTED


def reader() -> Read:
    """Lines with editing, history and path completion where the terminal can do it; else as they come."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return _read_plainly
    import questionary
    from prompt_toolkit.output import ColorDepth
    from prompt_toolkit.styles import Style

    plain = Style([("question", "nobold"), ("answer", "nobold")])
    os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # not every terminal answers where its cursor is

    def read(prompt: str, is_path: bool) -> str:
        # Plain text in one colour; completion by Tab only, because menus that appear are read aloud.
        ask = questionary.path if is_path else questionary.text
        answer = ask(
            prompt.rstrip(), qmark="", style=plain, color_depth=ColorDepth.DEPTH_1_BIT, complete_while_typing=False
        )
        return str(answer.unsafe_ask())

    return read


def _read_plainly(prompt: str, is_path: bool) -> str:
    print(prompt, end="", flush=True)
    # Not input(): a Ctrl+C between its prompt and its read is noticed only at the next key.
    select.select([sys.stdin], [], [])
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


class SetUp:
    """A conversation about one draft."""

    def __init__(self, draft: Draft, services: Services, read: Read, arguments: Any) -> None:
        self.draft = draft
        self._services = services
        self._read = read
        self._arguments = arguments
        self._advanced: set[str] = set()
        self._asked: list[str] = []
        self._told_station = ""
        self._machine: Any = None

    def take_up(self) -> None:
        """Offer the answers that were left last time, so that these do not replace them unasked."""
        kept = unfinished.beside(self.draft)
        if kept is None:
            return
        print("There are answers from before. " + "\n".join(unfinished.account(kept)))
        if self._yes("Go on with them?", True):
            self.draft = kept
        elif self._yes("Keep them as a preset of yours?", True):
            try:
                print(f"Kept as {unfinished.keep(kept, self._services)}.")
            except OSError as error:
                raise SettingsError(f"they cannot be kept: {error}", "go on with them, or make room") from error

    def run(self) -> int:
        """Every station, then the summary until the person starts the run or leaves."""
        print(HOW)
        self._ask_from(self._questions()[0])
        while True:
            plan, findings = self._summary()
            if (code := self._menu(plan, findings)) is not None:
                return code

    # --- questions -------------------------------------------------------------------

    def _questions(self, station: Station | None = None) -> list[str]:
        """The questions that matter now, in order: option keys, and one for the advanced options of each station."""
        found: list[str] = []
        for one in (station,) if station else STATIONS:
            asked = [option for option in one.options if answers.matters(option.key, self.draft.settings)]
            found += [option.key for option in asked if not option.advanced]
            advanced = [option.key for option in asked if option.advanced]
            found += [_ADVANCED + one.key] if advanced else []
            found += advanced if one.key in self._advanced else []
        return found

    def _ask_from(self, question: str, station: Station | None = None) -> None:
        """Ask from `question` to the end, of one station or of all."""
        current: str | None = question
        while current is not None:
            self._head(current)
            answer = self._ask_advanced(current) if current.startswith(_ADVANCED) else self._ask_option(current)
            self.draft.save()
            if answer == SUMMARY:
                self._asked.append(current)
                return
            if answer == BACK:
                current = self._previous(current)
                continue
            self._asked.append(current)
            left = self._questions(station)
            # What this answer made pointless is gone from the list; itself it is always there.
            place = left.index(current) + 1 if current in left else len(left)
            current = left[place] if place < len(left) else None

    def _previous(self, current: str) -> str:
        if not self._asked:
            print("This is the first question.")
            return current
        return self._asked.pop()

    def _head(self, question: str) -> None:
        station = _station(question)
        if station.key != self._told_station:
            self._told_station = station.key
            print(f"\nStation {STATIONS.index(station) + 1} of {len(STATIONS)}: {station.title}. {station.intro}")

    def _ask_advanced(self, question: str) -> str:
        station = _station(question)
        while True:
            is_on = station.key in self._advanced
            typed = self._line(f"Advanced settings of {station.title}? [{'yes' if is_on else 'no'}] ")
            if typed in (BACK, SUMMARY):
                return typed
            if typed == HELP:
                keys = [option.key for option in station.options if option.advanced]
                print("They have sensible values: " + ", ".join(keys))
            elif typed.lower() in ("", "y", "yes", "n", "no"):
                if typed:
                    (self._advanced.add if typed.lower() in ("y", "yes") else self._advanced.discard)(station.key)
                return ""
            else:
                print(f"{typed[:60]!r} is not yes or no.")

    def _ask_option(self, key: str) -> str:
        option = OPTIONS[key]
        print(f"\n{option.help}" + (" 2B-tokens, 3-epochs or 10h are understood too." if key == _LENGTH else ""))
        for number, choice in enumerate(option.choices, start=1):
            print(f"  {number}  {choice}")
        while True:
            unit = f" {option.unit}" if option.unit else ""
            typed = self._line(f"{key} [{self.draft.text(key) or 'empty'}]{unit}: ", option.is_path)
            if typed in (BACK, SUMMARY):
                return typed
            if typed == HELP:
                print("\n".join(text for text in explanation(option).values() if text))
                continue
            if not typed:
                return ""
            if key == _LENGTH:
                taken = attempt(partial(self._take_length, typed))
                if not isinstance(taken, Failure):
                    return ""
                print(f"Not taken: {taken.message} ({taken.hint})")
            elif self._take(key, _meant(option, typed)):
                return ""

    def _take(self, key: str, text: str) -> bool:
        """Set an option; when the text is none of its values, say so and keep what it was."""
        before = self.draft.text(key)
        problem = self.draft.set(key, text)
        if problem is not None:
            self.draft.set(key, before)
            print(f"Not taken: {problem.message} ({problem.hint})")
        return problem is None

    def _take_length(self, typed: str) -> None:
        """Set the length that was given in any unit, and say what it is in the others. Raises EngineError."""
        settings, amount = self.draft.settings, length.parse(typed)
        plan = self._plan() if amount.unit in ("hours", "epochs") else None
        is_packed = plan is not None and plan.device == "gpu"
        tokens = self._services.data_tokens(settings, is_packed=is_packed) if amount.unit == "epochs" else None
        estimate = plan.estimate if plan is not None else None
        pace = length.pace_of(settings, estimate, tokens, is_packed=is_packed)
        for key, value in length.as_settings(amount, settings, pace).items():
            self.draft.set(key, text_of(value))
            print(f"{key} = {text_of(value)}")
        print(length.describe(length.length_of(self.draft.settings.training.iterations, pace)))

    def _line(self, prompt: str, is_path: bool = False) -> str:
        return self._read(prompt, is_path).strip()

    def _yes(self, question: str, default: bool) -> bool:
        while True:
            typed = self._line(f"{question} [{'yes' if default else 'no'}] ").lower()
            if typed in ("", "y", "yes", "n", "no"):
                return typed[0] == "y" if typed else default
            print(f"{typed[:60]!r} is not yes or no.")

    # --- the summary -----------------------------------------------------------------

    def _summary(self) -> tuple[Plan | None, tuple[Finding, ...]]:
        """Say what was chosen, what it comes to and what is wrong with it."""
        self._told_station = ""
        settings, changed = self.draft.settings, self.draft.changed()
        print(
            f"\nSummary. Changed from {self.draft.name or 'the defaults'}:" if changed else "\nSummary. All as it was."
        )
        for key, value in changed.items():
            print(f"  {key} = {output.clean(text_of(value))}")
        missing, problems = answers.missing(settings), self.draft.problems
        for key, why in missing.items():
            print(f"  missing: {key}: {why}")
        # Left on the screens, where what is no value stays in its field.
        for problem in problems.values():
            print(output.clean(f"  no value: {problem}"))
        if missing or problems:
            return None, ()
        plan = attempt(self._plan)
        if isinstance(plan, Failure):
            print(f"  it cannot be planned: {plan.message} ({plan.hint})")
            return None, ()
        for line in _plan_lines(plan, length.pace_of(settings, plan.estimate), settings.training.iterations):
            print(f"  {line}")
        findings = attempt(lambda: self._services.check(settings, plan, self._machine))
        if isinstance(findings, Failure):
            print(f"  the checks failed: {findings.message} ({findings.hint})")
            return plan, ()
        for finding in findings:
            print(output.clean(f"  {for_forms(str(finding))}"))
        return plan, findings

    def _plan(self) -> Plan:
        self._machine = self._machine or self._services.machine()
        return self._services.plan(self.draft.settings, self._machine)

    def _menu(self, plan: Plan | None, findings: Sequence[Finding]) -> int | None:
        """One thing to do with the settings; an exit code ends the conversation."""
        actions: dict[str, Callable[[], int | None]] = {
            "start it": lambda: self._start(plan, tuple(findings)),
            "write a settings file": self._write,
            "keep it as a preset of yours": self._keep,
            "write scripts that run without gptoss": lambda: self._scripts(plan),
            "change a station": self._change,
            "leave, and keep the answers": self._leave,
        }
        print("\nWhat now?")
        for number, name in enumerate(actions, start=1):
            print(f"  {number}  {name}")
        typed = self._line("number [6]: ")
        if typed == BACK:
            self._ask_from(self._previous(self._questions()[-1]))
            return None
        place = int(typed) if typed.isascii() and typed.isdigit() else len(actions) if not typed else 0
        if not 1 <= place <= len(actions):
            print(f"{typed[:60]!r} is not a number from 1 to {len(actions)}.")
            return None
        try:
            return list(actions.values())[place - 1]()
        except EngineError as error:
            print(output.clean(f"{error.message}\n  {error.hint}"))
        except OSError as error:
            print(f"It cannot be written: {error.strerror}")
        return None

    def _start(self, plan: Plan | None, findings: tuple[Finding, ...]) -> int:
        if plan is None:
            raise SettingsError("it cannot start like this", "change what the summary names")
        starting.refuse(findings, force=self._arguments.force)
        made = self._services.start(self.draft.settings, plan, self._arguments.name)
        Draft.forget()
        return starting.report_start(made, self._arguments)

    def _write(self) -> None:
        typed = self._line("File [gptoss.toml]: ", True) or "gptoss.toml"
        path = expanded(typed)
        if typed == BACK or (path.exists() and not self._yes(f"{path} exists. Replace it?", False)):
            return
        settings_file.save(self.draft.settings, path)
        print(f"Wrote {path}. Start it with: gptoss run {path}")

    def _keep(self) -> None:
        typed = self._line("Name of the preset: ")
        if typed not in ("", BACK):
            path = self._services.save_preset(typed, self.draft.settings)
            print(f"Wrote {path}. Start it with: gptoss run {typed}")

    def _scripts(self, plan: Plan | None) -> None:
        from engine.run import exported

        if plan is None:
            raise SettingsError("there is no plan to write scripts for", "change what the summary names")
        typed = self._line("Directory [scripts]: ", True) or "scripts"
        if typed == BACK:
            return
        written, notes = exported.export(self.draft.settings, plan, expanded(typed).absolute())
        print("\n".join([*(f"Wrote {path}" for path in written), *notes]))

    def _change(self) -> None:
        stations = [station for station in STATIONS if station.options]
        for number, station in enumerate(stations, start=1):
            print(f"  {number}  {station.title}")
        typed = self._line("station: ")
        if typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(stations):
            station = stations[int(typed) - 1]
            self._ask_from(self._questions(station)[0], station)
        elif typed != BACK:
            print(f"{typed[:60]!r} is not a number from 1 to {len(stations)}.")

    def _leave(self) -> int:
        self.draft.save()
        print("Your answers are kept: gptoss new goes on with them.")
        return ExitCode.DONE


def _station(question: str) -> Station:
    if question.startswith(_ADVANCED):
        return BY_KEY[question.removeprefix(_ADVANCED)]
    return station_of(OPTIONS[question])


def _meant(option: Option, typed: str) -> str:
    """What was typed, with a choice's number as its name and a lone dash as nothing."""
    if option.choices and typed.isascii() and typed.isdigit() and 1 <= int(typed) <= len(option.choices):
        return option.choices[int(typed) - 1]
    return "" if typed == EMPTY and option.kind is str else typed


def _plan_lines(plan: Plan, pace: length.Pace, iterations: int) -> list[str]:
    """The plan in words: where, whether it fits, how fast and how long."""
    where = f"{plan.world_size} {'GPUs' if plan.device == 'gpu' else 'processes on the CPU'}"
    lines = [f"{plan.estimate.get('verdict', 'runs')} on {where}, {plan.layout}"]
    memory = plan.estimate.get("memory") or {}
    if memory.get("capacity_gib"):
        lines.append(f"memory: {memory['peak_gib']:,.1f} of {memory['capacity_gib']:,.1f} GiB")
    speed = plan.estimate.get("throughput") or {}
    if speed:
        lines.append(f"speed: {speed['tokens_per_s']:,.0f} tokens/s, {speed['iteration_s']:.2f} s an iteration")
    lines.append(f"length: {length.describe(length.length_of(iterations, pace))}")
    return [*lines, f"steps: {', '.join(step.name for step in plan.steps)}", *plan.reasons]
