"""The application: themes, keys that hold everywhere, and how it begins and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rich.console import RenderableType
from rich.style import Style
from textual import events, on
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.driver import Driver
from textual.screen import Screen
from textual.signal import Signal
from textual.theme import Theme

from engine.errors import ExitCode
from engine.paths import config_root, expanded
from gptoss_tui import bridge, theme, threads
from gptoss_tui.bridge import Answer, Failure, Services
from gptoss_tui.driver import frames_waiting
from gptoss_tui.glass import Difference, Glass
from gptoss_tui.glyphs import AsciiFilter, Charset, VisibleFilter, detect_charset
from gptoss_tui.key_order import KeyOrder
from gptoss_tui.threads import changing

if TYPE_CHECKING:
    from engine.machine import Machine
    from engine.monitor.jobs import Watched
    from engine.run.directory import RunDirectory
    from gptoss_tui.draft import Draft

KEYS_FILE = "keys.toml"
LEAST_COLUMNS, LEAST_ROWS = 70, 22
"""Below this the stations would hide more than they show."""


class CockpitApp(App[int]):
    """Screens over the engine. It owns no run: leaving it ends nothing."""

    TITLE = "gptoss"
    CSS_PATH = "styles/base.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny-width"), (LEAST_COLUMNS, "-narrow"), (100, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-height"), (LEAST_ROWS, "-short"), (30, "-tall")]
    BINDINGS = [
        # Ctrl+P and Ctrl+Q are how docker detaches from a container: both have another key here.
        Binding("question_mark,f1", "help", "Help", key_display="?", id="app.help"),
        Binding("colon,f2", "command_palette", "Commands", key_display=":", show=False, id="app.commands"),
        Binding("ctrl+l", "redraw", "Draw the screen anew", show=False, priority=True, id="app.redraw"),
    ]

    def __init__(
        self,
        start: Callable[[], Screen[Any]] | None = None,
        *,
        services: Services | None = None,
        clock: Callable[[], float] = time.time,
        charset: Charset | None = None,
        driver_class: type[Driver] | None = None,
    ) -> None:
        super().__init__(driver_class=driver_class)
        self._start = start or partial(_screen, "home")
        self.services = services or Services()
        self.clock = clock
        self.charset = charset or detect_charset()
        self.machine: Machine | Failure | None = None
        """What was detected; None until the probing, which follows the first frame, is done."""
        self.machine_found: Signal[None] = Signal(self, "machine found")
        self._glass = Glass()
        self._key_order = KeyOrder(self)
        self._palette: dict[str, Style] = {}
        self._palette_theme = ""
        self._dress()

    def get_default_screen(self) -> Screen[Any]:
        screen = self._start()
        # Textual reads a screen's stylesheet when it is pushed, which the first one is not. It parses it when needed.
        self.stylesheet.read_all(screen.css_path)
        return screen

    def get_css_variables(self) -> dict[str, str]:
        variables = super().get_css_variables()
        return {**variables, **theme.shades(variables, is_plain=self.current_theme.ansi)}

    @property
    def palette(self) -> dict[str, Style]:
        """The styles that canvases name, in the colours of the present theme."""
        if self._palette_theme != self.theme:
            self._palette = theme.palette(self.get_css_variables(), is_plain=self.current_theme.ansi)
            self._palette_theme = self.theme
        return self._palette

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every key of the screen, by its description: nothing is reachable by key alone."""
        from gptoss_tui.screens.help import is_ours

        for active in screen.active_bindings.values():
            binding = active.binding
            if is_ours(binding) and active.enabled:
                run = partial(self.run_action, binding.action, default_namespace=active.node)
                yield SystemCommand(binding.description, f"key: {self.get_key_display(binding)}", run)
        yield SystemCommand("Theme", "Choose the colours", self.action_change_theme)
        yield SystemCommand("Screenshot", "Save this screen as an SVG file", self.deliver_screenshot)
        yield SystemCommand("Quit", "Leave gptoss; runs go on", self.action_quit)

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            # Textual installs no handler: the terminal would stay in its alternate screen.
            loop.add_signal_handler(signal.SIGTERM, self.exit, ExitCode.INTERRUPTED, ExitCode.INTERRUPTED)
        except (NotImplementedError, RuntimeError, ValueError):
            pass  # not on the main thread, as in a test
        self._take_own_keys()
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        self.call_after_refresh(self.look_for_machine)

    def _take_own_keys(self) -> None:
        """Keys of the person's own, when there is a file of them: reading it needs every screen."""
        if (bound := config_root() / KEYS_FILE).exists():
            from gptoss_tui import keys

            found = bridge.attempt(partial(keys.read, bound))
            if isinstance(found, Failure):
                text = f"{found.message}. {found.hint}\nThe usual keys are in use."
                self.notify(text, title="Keys", severity="error", timeout=20, markup=False)
            else:
                self.set_keymap(found)

    def _keep_theme(self, chosen: Theme) -> None:
        """Remember the colours; NO_COLOR chose none of them."""
        if not self.no_color and not self.services.is_watching:
            bridge.attempt(partial(theme.keep, chosen.name))

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        update = self._glass.over(renderable)
        if isinstance(update, Difference) and self._is_shown and not update.render_segments(self.console):
            cursor = screen.outer_size.clamp_offset(self.cursor_position)
            if cursor == self._previous_cursor_position:
                return  # Textual would send the cursor to where it is
        super()._display(screen, cast("RenderableType | None", update))

    @property
    def _is_shown(self) -> bool:
        """True where Textual hands what is displayed to the terminal."""
        is_at_terminal = self._driver is not None and not self.is_headless
        return is_at_terminal and self._running and not self._closed and not self._batch_count

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, (events.Key, events.Paste)) and not event.is_forwarded and self._key_order.holds(event):
            return
        await super().on_event(event)

    def on_resize(self) -> None:
        # It also follows each return to the terminal, which others have written to, and then with the same size.
        self.action_redraw()

    def action_redraw(self) -> None:
        """Send everything again, whatever the terminal shows: another program may have written over it."""
        self._glass.forget()
        if self._screen_stack:
            self.screen.refresh()

    def look_for_machine(self) -> None:
        """Detect the machine in a thread; `machine_found` tells when it is done."""
        call = partial(bridge.ask, self, "machine", self.services.machine)
        self.run_worker(call, thread=True, exclusive=True, exit_on_error=False, group="machine")

    @on(Answer)
    def machine_answered(self, answer: Answer) -> None:
        self.machine = answer.value
        self.machine_found.publish(None)

    @property
    def is_congested(self) -> bool:
        """True while frames wait for a slow terminal; drawing more would only lengthen the queue."""
        return frames_waiting(self._driver) > 1

    def action_help(self) -> None:
        from gptoss_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen.about(self.screen))

    def action_help_quit(self) -> None:
        self.notify("Press q to leave (Esc first, when typing). Runs go on.", title="Still here")

    def notify(self, message: str, *, markup: bool = False, **options: Any) -> None:
        """Never as markup: a message may quote a file, and a bracket in it would end the program."""
        super().notify(message, markup=False, **options)

    async def action_quit(self) -> None:
        self.exit(ExitCode.DONE)

    def _dress(self) -> None:
        for one in theme.THEMES:
            self.register_theme(one)
        # Textual reads NO_COLOR too, even an empty one, and then writes greys.
        self._filters = [one for one in self._filters if type(one).__name__ not in ("Monochrome", "NoColor")]
        self._filters.append(VisibleFilter())
        self.no_color = theme.wants_no_colour()
        if self.no_color:
            self._filters.append(theme.NoColourFilter())
            self.add_class("-no-colour")
        if self.charset is Charset.ASCII:
            self._filters.append(AsciiFilter())
        if self.no_color:
            self.theme = theme.MONOCHROME
        elif self.theme == "textual-dark":  # Textual's default: $TEXTUAL_THEME chose nothing
            kept = theme.kept()
            self.theme = kept if kept in self.available_themes else theme.DEFAULT
        self.animation_level = "none"


def run_app(
    start_screen: str = "home",
    run: RunDirectory | None = None,
    begun: Draft | None = None,
    no_mouse: bool = False,
    machine: str = "",
    is_watching: bool = False,
    watched: Watched | None = None,
) -> int:
    """Show the screens until the person leaves; returns the exit code for the shell.

    `start_screen` is home, setup, monitor, watch, runs or doctor; the monitor needs `run`, watch needs `watched`.
    A set-up starts from `begun`, without it from what was not finished. `machine` is a machine file to plan for in
    place of this machine. With `is_watching` nothing can be changed.
    """
    from gptoss_tui.driver import TerminalDriver

    # textual-serve names a driver of its own, which writes to a browser.
    driver = None if os.environ.get("TEXTUAL_DRIVER") else TerminalDriver
    services = Services()
    services.is_watching = is_watching
    services.described = expanded(machine) if machine else None
    app = CockpitApp(partial(_screen, start_screen, run, begun, watched), services=services, driver_class=driver)
    result = asyncio.run(_show(app, mouse=not no_mouse))
    if changing:
        print("finishing what was asked for; Ctrl+C leaves at once", file=sys.stderr)
        changing.wait()
    return int(app.return_code or 0) if result is None else int(result)


async def _show(app: CockpitApp, *, mouse: bool) -> int | None:
    threads.serve(asyncio.get_running_loop())
    return await app.run_async(mouse=mouse)


def _screen(
    name: str, run: RunDirectory | None = None, begun: Draft | None = None, watched: Watched | None = None
) -> Screen[Any]:
    if name == "watch" and watched is not None:
        from gptoss_tui.screens.watch import WatchScreen

        return WatchScreen(watched)
    if name == "monitor" and run is not None:
        from gptoss_tui.screens.monitor import MonitorScreen

        return MonitorScreen(run)
    if name == "setup":
        from gptoss_tui.screens.setup import SetupScreen

        return SetupScreen(begun=begun)
    if name == "runs":
        from gptoss_tui.screens.runs import RunsScreen

        return RunsScreen()
    if name == "doctor":
        from gptoss_tui.screens.doctor import DoctorScreen

        return DoctorScreen()
    from gptoss_tui.screens.home import HomeScreen

    return HomeScreen()
