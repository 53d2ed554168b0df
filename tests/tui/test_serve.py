"""`gptoss serve`: who is let in, over real HTTP, and what a window of it may do."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from engine.errors import SettingsError
from engine.settings import Settings
from gptoss_tui import serve
from gptoss_tui.bridge import Services
from gptoss_tui.log_lines import Level
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.runs import RunsScreen
from gptoss_tui.screens.setup import SetupScreen
from gptoss_tui.serve import COOKIE, Gate
from gptoss_tui.widgets.choices import Choices
from gptoss_tui.widgets.log_view import LogView
from tests.limits import LIMIT_S
from tests.tui.doubles import a_full_run, until

WATCH = shlex.join([sys.executable, "-m", "gptoss_tui.served", "watch"])


@contextlib.asynccontextmanager
async def serving(command: str = "false"):
    """A server on a free port, and a browser's session that keeps its cookies."""
    listener = serve.listen("127.0.0.1", 0, allows_remote=False)
    gate = Gate(f"http://127.0.0.1:{listener.getsockname()[1]}")
    runner = web.AppRunner(await serve.make_application(gate, command, "gptoss"), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            yield gate, browser
    finally:
        await runner.cleanup()


async def get(browser: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, str]:
    async with browser.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_the_token_lets_in_once_and_leaves_the_address():
    async with serving() as (gate, browser):
        async with browser.get(gate.link) as response:
            assert (response.status, str(response.url)) == (200, f"{gate.origin}/")
            assert gate.token not in await response.text()
        cookie = next(cookie for cookie in browser.cookie_jar if cookie.key == COOKIE)
        assert cookie["httponly"] and cookie["samesite"] == "Strict"
        assert cookie.value != gate.token
        assert (await get(browser, f"{gate.origin}/static/js/textual.js"))[0] == 200
        async with aiohttp.ClientSession() as other:
            assert await get(other, gate.link) == (
                403,
                "The token was used already. Start gptoss serve again for a new one.\n",
            )


@pytest.mark.parametrize(
    "path", ["/", "/static/js/textual.js", "/ws", "/download/x", "/?token=", "/?token=guess", "/?token=%ff"]
)
async def test_nobody_gets_in_without_it(path):
    async with serving() as (gate, browser):
        status, text = await get(browser, gate.origin + path, Origin=gate.origin)
        assert status == 403
        assert gate.token not in text
        assert (await get(browser, gate.link))[0] == 200  # a wrong one does not use up the right one


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "localhost:1"}],
)
async def test_another_page_or_name_is_refused_even_with_the_cookie(headers):
    async with serving() as (gate, browser):
        assert (await get(browser, gate.link))[0] == 200
        assert (await get(browser, gate.origin, **headers))[0] == 403


async def test_a_websocket_needs_the_cookie_and_its_own_origin():
    async with serving() as (gate, browser):
        for origin in (gate.origin, "http://evil.example"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await browser.ws_connect(f"{gate.origin}/ws", origin=origin)
        await get(browser, gate.link)
        for origin in (None, "http://evil.example"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await browser.ws_connect(f"{gate.origin}/ws", origin=origin)


async def test_a_window_shows_the_runs(runs_root, monkeypatch):
    monkeypatch.setenv("GPTOSS_RUNS", str(runs_root))
    a_full_run(runs_root, "through-the-browser")
    async with serving(WATCH) as (gate, browser):
        await get(browser, gate.link)
        shown = b""
        async with browser.ws_connect(f"{gate.origin}/ws?width=100&height=30", origin=gate.origin) as window:
            async with asyncio.timeout(LIMIT_S):
                while b"through-the-browser" not in shown:
                    message = await window.receive()
                    assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), shown
                    shown += message.data if isinstance(message.data, bytes) else b""


async def test_the_page_takes_keys_without_a_click_and_asks_nobody_else():
    async with serving() as (gate, browser):
        _, page = await get(browser, gate.link)
        assert "keys.focus()" in page and page.count("</body>") == 1
        assert "https://" not in page


async def test_keys_arrive_in_a_window_and_change_nothing_there(runs_root, monkeypatch):
    monkeypatch.setenv("GPTOSS_RUNS", str(runs_root))
    run = a_full_run(runs_root, "through-the-browser").run
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    async with serving(WATCH) as (gate, browser):
        await get(browser, gate.link)
        async with browser.ws_connect(f"{gate.origin}/ws?width=100&height=30", origin=gate.origin) as window:

            async def wait_for(text: bytes) -> None:
                shown = b""
                async with asyncio.timeout(60):
                    while text not in shown:
                        message = await window.receive()
                        assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), shown
                        shown += message.data if isinstance(message.data, bytes) else b""

            await wait_for(b"through-the-browser")
            # Put away, note, tags: none of it is there. Then help, which tells that all keys have arrived.
            await window.send_json(["stdin", "ant?"])
            await wait_for(b"Every run")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_other_addresses_are_refused_unless_told():
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(SettingsError, match="would let other machines in"):
            serve.listen(host, 0, allows_remote=False)
    listener = serve.listen("0.0.0.0", 0, allows_remote=True)
    with listener, pytest.raises(SettingsError, match="cannot listen on 127.0.0.1 port"):
        serve.listen("127.0.0.1", listener.getsockname()[1], allows_remote=False)


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(SettingsError, match="is no port"):
        serve.listen("127.0.0.1", port, allows_remote=False)


READING = {
    "presets", "machine", "sample_gpus", "plan", "rehearsal", "check", "model_facts", "preview", "data_tokens",
    "import_files", "versions", "runs_root", "cause_of",
}  # fmt: skip
"""Services that change nothing and start nothing; a new one must be marked with `changes`, or be listed here."""


def test_a_view_that_watches_changes_nothing():
    watching = Services()
    watching.is_watching = True
    methods = dict(inspect.getmembers(watching, inspect.ismethod))
    assert set(methods) >= READING
    for name in set(methods) - READING:
        needed = [one for one in inspect.signature(methods[name]).parameters.values() if one.default is one.empty]
        with pytest.raises(SettingsError, match="only watches"):
            methods[name](*[None] * len(needed))


async def test_keys_in_a_view_that_watches_write_nothing(make_app, services, runs_root, tmp_path, monkeypatch):
    """Whatever is pressed: labels, copies of logs and drafts are files of whoever runs the server."""
    monkeypatch.chdir(tmp_path)
    services.is_watching = True
    run = a_full_run(runs_root).run
    before = files_below(tmp_path)
    app = make_app(RunsScreen)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: "night" in app.screen.query_one(Choices).text, 60)
        await pilot.press("t", "n", "a")
        app.push_screen(MonitorScreen(run))
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen) and app.screen.history.iteration, 60)
        await pilot.press("s", "K", "r", "l", "x")
        app.screen.post_message(LogView.ExportWanted((run.attempt(3, "train") / "rank-1.log",), Level.ALL))
        app.push_screen(SetupScreen(Settings()))
        await until(pilot, lambda: isinstance(app.screen, SetupScreen), 60)
        app.screen._after_edit()
        await until(pilot, lambda: not {"label", "export"} & {one.group for one in app.workers if one.is_running}, 60)
    assert services.started == [] and files_below(tmp_path) == before


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_without_textual_serve_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    options = SimpleNamespace(run="", host="127.0.0.1", port=0, allow_remote=False)
    with pytest.raises(SettingsError) as raised:
        serve.carry_out(options)
    assert "gptoss-tui[serve]" in raised.value.hint
