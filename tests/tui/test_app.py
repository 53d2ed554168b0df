"""What holds on every screen: colours, characters, leaving, help, palette, signals."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from textual.command import CommandPalette

from engine.cli import parser
from engine.errors import ExitCode, RunError, SettingsError
from gptoss_tui import bridge, theme
from gptoss_tui.__main__ import _open_named
from gptoss_tui.bridge import Failure
from gptoss_tui.driver import MouseReports
from gptoss_tui.glyphs import Charset, detect_charset, to_ascii
from gptoss_tui.screens.doctor import DoctorScreen
from gptoss_tui.screens.help import HelpScreen
from gptoss_tui.screens.home import HomeScreen
from tests.limits import LIMIT_S
from tests.tui.doubles import a_full_run, until

ROOT = Path(__file__).parents[2]


async def test_q_leaves_with_the_code_for_done(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("q")
    assert app.return_value == ExitCode.DONE


async def test_escape_steps_out_one_screen_at_a_time(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("d")
        assert isinstance(app.screen, DoctorScreen)
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        assert isinstance(app.screen, DoctorScreen)
        await pilot.press("escape")
        assert isinstance(app.screen, HomeScreen)


async def test_what_the_terminal_shows_already_is_not_sent_again(make_app, monkeypatch):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        sent: list[str] = []
        monkeypatch.setattr(type(app), "is_headless", False)
        monkeypatch.setattr(app._driver, "write", sent.append)

        async def painted() -> list[str]:
            sent.clear()
            done: list[bool] = []
            app.screen.refresh()
            app.screen.call_after_refresh(lambda: done.append(True))
            await until(pilot, lambda: done)
            return list(sent)

        assert "gptoss" in "".join(await painted())
        for _ in range(20):  # what becomes known meanwhile is sent, once
            if not (last := await painted()):
                break
        assert last == []
        app.action_redraw()
        assert "gptoss" in "".join(await painted())


async def test_every_key_of_a_screen_is_in_the_palette(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        commands = {command.title for command in app.get_system_commands(app.screen)}
        assert {"New set-up", "Runs", "Doctor", "Help", "Quit", "Theme", "Screenshot"} <= commands
        await pilot.press("colon")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))


async def test_a_small_terminal_is_told_and_everything_comes_back(make_app):
    app = make_app()
    async with app.run_test(size=(50, 15)) as pilot:
        note = app.screen.query_one("#too-small")
        assert note.display and not app.screen.query_one("#home").display
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen.query_one("#home").display)
        assert not note.display


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (200, 2)])
async def test_any_size_is_survived(make_app, size):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.resize_terminal(*size)
        await pilot.pause()
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: app.screen.query_one("#home").display)


async def test_no_color_means_no_colour_at_all(make_app, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "rehearsal" in app.screen.query_one("#presets").text)
        styles = [
            segment.style
            for widget in app.screen.walk_children()
            for y in range(widget.size.height)
            for segment in app._filters[-1].apply(list(widget.render_line(y)), app.screen.background_colors[1])
        ]
        assert styles
        assert not [style for style in styles if style and (style.color or style.bgcolor)]
        # What has the focus is told by reversal instead.
        assert any(style and style.reverse for style in styles)


def test_an_empty_no_color_is_none(make_app, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert make_app().no_color is False
    assert not theme.wants_no_colour()
    assert theme.wants_no_colour({"NO_COLOR": "0"})


@pytest.mark.parametrize("name", [one.name for one in theme.THEMES] + ["textual-light", "nord"])
async def test_every_theme_has_every_shade(make_app, name):
    app = make_app()
    async with app.run_test(size=(80, 24)):
        app.theme = name
        assert {"muted", "rule", "band", "cursor-row"} <= set(app.get_css_variables())


@pytest.mark.parametrize(
    ("environment", "encoding", "charset"),
    [
        ({}, "UTF-8", Charset.BRAILLE),
        ({"TERM": "linux"}, "utf8", Charset.BLOCKS),
        ({}, "ANSI_X3.4-1968", Charset.ASCII),
        ({}, "latin-1", Charset.ASCII),
        ({"GPTOSS_GLYPHS": "blocks"}, "ascii", Charset.BLOCKS),
        ({"GPTOSS_GLYPHS": "nonsense"}, "UTF-8", Charset.BRAILLE),
    ],
)
def test_what_the_terminal_can_show(environment, encoding, charset):
    assert detect_charset(environment, encoding) is charset


@pytest.mark.parametrize(
    ("text", "plain"),
    [("plain", "plain"), ("✓ 3·4 ━━▸ … 日", "+ 3.4 --> ~ ??"), ("e\u0301 ❤\ufe0f 1\ufe0f\u20e3.", "e ?? 1 .")],
)
def test_ascii_keeps_every_width(text, plain):
    assert to_ascii(text) == plain
    assert cell_len(text) == len(plain)


async def test_a_terminal_without_unicode_gets_none(make_app):
    app = make_app(charset=Charset.ASCII)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "rehearsal" in app.screen.query_one("#presets").text)
        shot = "".join(
            segment.text
            for widget in app.screen.walk_children()
            for y in range(widget.size.height)
            for segment in app._filters[-1].apply(list(widget.render_line(y)), app.screen.background_colors[1])
        )
        assert "rehearsal" in shot
        assert shot.isascii()


@pytest.mark.parametrize(
    ("chunks", "left"),
    [
        ([b"\x1b[M q1"], b""),
        ([b"a\x1b[M\xff\xfe\xfdb"], b"ab"),
        ([b"a\x1b[M", b"  ", b"qb"], b"ab"),
        ([b"\x1b[M   \x1b[M  q"], b""),
        ([b"\x1b[A\x1b[<0;1;1M"], b"\x1b[A\x1b[<0;1;1M"),
    ],
)
def test_old_mouse_reports_press_no_keys(chunks, left):
    reports = MouseReports()
    assert b"".join(reports.strip(chunk) for chunk in chunks) == left


def test_failures_are_values():
    def wrong() -> None:
        raise RunError("the run 'x' exists already", "give another name")

    def full() -> None:
        raise OSError(28, "No space left on device", "/data")

    def broken() -> None:
        raise ZeroDivisionError("a defect")

    assert bridge.attempt(lambda: 7) == 7
    assert bridge.attempt(wrong) == Failure("the run 'x' exists already", "give another name")
    assert bridge.attempt(full).message == "/data: No space left on device"
    failure = bridge.attempt(broken)
    assert "ZeroDivisionError" in failure.message
    assert "ZeroDivisionError: a defect" in Path(failure.hint.rpartition(" ")[2]).read_text()


def test_settings_errors_keep_their_hint():
    def wrong() -> None:
        raise SettingsError("training.seed: 'x' is not allowed", "type a whole number")

    assert bridge.attempt(wrong).hint == "type a whole number"


def test_the_screens_load_no_training_library_and_no_driver_before_they_must():
    code = (
        "import gptoss_tui.app, gptoss_tui.screens.home, gptoss_tui.screens.monitor, gptoss_tui.screens.setup, sys;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'megatron', 'transformers', 'numpy', 'pynvml', 'questionary', 'tomli_w'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


class Terminal:
    """The real program on a pseudo-terminal."""

    def __init__(self, home: Path, arguments: str = "", size: tuple[int, int] = (24, 80)) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, size)
        environment = {**os.environ, "HOME": str(home), "GPTOSS_RUNS": str(home), "TERM": "xterm-256color",
                       "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}  # fmt: skip
        code = (
            "import sys; from pathlib import Path; from engine.run.directory import RunDirectory;"
            f"from gptoss_tui.app import run_app; sys.exit(run_app({arguments}))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environment, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.written = b""

    def read_until(self, text: bytes, limit_s: float = LIMIT_S) -> None:
        """Take what the program writes until `text` is in it."""
        end = time.monotonic() + limit_s
        while text not in self.written:
            readable, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert readable, self.written[-400:]
            try:
                self.written += os.read(self.master, 65536)
            except OSError:  # the program has ended
                raise AssertionError(self.written[-4000:].decode(errors="replace")) from None

    def close(self) -> None:
        os.close(self.master)


@pytest.fixture
def open_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(arguments: str = "", **more: Any) -> Terminal:
        opened.append(Terminal(tmp_path, arguments, **more))
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()


def test_the_real_program_starts_and_quits(open_terminal):
    terminal = open_terminal()
    terminal.read_until(b"rehearsal")
    os.write(terminal.master, b"\x1b[M\xf1\xf1q")  # an old mouse report that holds a q
    os.write(terminal.master, b"d")
    terminal.read_until(b"doctor")
    os.write(terminal.master, b"qq")
    terminal.read_until(b"\x1b[?1049l")
    assert terminal.process.wait(LIMIT_S) == 0
    terminal.close()


@pytest.mark.parametrize("screen", ["monitor", "setup", "runs", "doctor"])
def test_every_screen_can_be_the_first(open_terminal, tmp_path, screen):
    fake = a_full_run(tmp_path)
    terminal = open_terminal(f"'{screen}', run=RunDirectory(Path({str(fake.run.path)!r}))")
    expected = {"monitor": b"120", "setup": b"Training", "runs": b"night", "doctor": b"processor"}[screen]
    terminal.read_until(expected)
    os.write(terminal.master, b"q")
    terminal.read_until(b"\x1b[?1049l")
    assert terminal.process.wait(LIMIT_S) == 0
    terminal.close()


def test_a_terminal_that_does_not_tell_its_size_is_not_painted_for_ever(open_terminal):
    terminal = open_terminal(size=(0, 0))
    terminal.read_until(b"rehearsal")
    os.write(terminal.master, b"q")
    terminal.read_until(b"\x1b[?1049l")
    assert len(terminal.written) < 100_000
    terminal.close()


def test_without_a_mouse_none_is_asked_for(open_terminal):
    terminal = open_terminal("no_mouse=True")
    terminal.read_until(b"rehearsal")
    assert b"\x1b[?1000h" not in terminal.written
    terminal.close()


def test_sigterm_gives_the_terminal_back(open_terminal):
    terminal = open_terminal()
    terminal.read_until(b"rehearsal")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.read_until(b"\x1b[?1049l")
    assert terminal.process.wait(LIMIT_S) == ExitCode.INTERRUPTED
    assert b"\x1b[?1000l" in terminal.written
    terminal.close()


def test_a_closed_terminal_ends_the_program(open_terminal):
    terminal = open_terminal()
    terminal.read_until(b"rehearsal")
    terminal.close()
    assert terminal.process.wait(LIMIT_S) in (0, -signal.SIGHUP)


def test_a_machine_file_that_is_none_is_refused_before_any_screen(tmp_path, monkeypatch):
    file = tmp_path / "machine.toml"
    file.write_text("[node]\ncount = 1\n")
    monkeypatch.setattr("gptoss_tui.app.run_app", lambda *_, **__: pytest.fail("a screen was opened"))
    options = SimpleNamespace(screen="home", machine=str(file), no_mouse=False)
    with pytest.raises(SettingsError, match="there is no such table"):
        _open_named(options)


@pytest.mark.parametrize(
    ("words", "name"), [(["rehearsal"], "rehearsal"), (["--set", "training.seed=7"], "your settings"), ([], None)]
)
def test_a_set_up_is_called_by_the_preset_it_starts_from(monkeypatch, words, name):
    begun = []
    monkeypatch.setattr("gptoss_tui.app.run_app", lambda *_, **named: begun.append(named["begun"]) or 0)
    assert _open_named(parser.build().parse_args(["new", *words])) == 0
    assert (begun[0].name if begun[0] is not None else None) == name


async def test_a_long_status_leaves_the_place_in_view(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.machine is not None)
        app.screen.show_status((("a reason of many words " * 10, "bad"),))
        assert app.screen.title_bar.text.startswith(" gptoss › home  a reason")
        assert "…" in app.screen.title_bar.text
