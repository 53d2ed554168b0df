"""`gptoss serve`: the screens in a browser, for the person at this machine.

textual-serve has no login, so everything goes through `Gate` first: one token that works once, then a cookie; no other
origin; no other name of this host. A window watches runs and changes nothing unless that was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from engine.errors import ExitCode, SettingsError

if TYPE_CHECKING:
    from aiohttp import web

    from engine.run.directory import RunDirectory

type _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE = "gptoss-session"
PATIENCE_S = 30.0
"""For the programs of open windows to end; they need a moment on a busy machine."""
_HEADERS = {
    "Cache-Control": "no-store",
    # Nothing leaves this machine; the page of textual-serve asks Google for a font.
    "Content-Security-Policy": "style-src 'self' 'unsafe-inline'; font-src 'self' data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# The page of textual-serve lets no key through before somebody has clicked on it.
_FOCUS = """<script>
new MutationObserver((_, observer) => {
  const keys = document.querySelector(".xterm-helper-textarea");
  if (keys) { keys.focus(); observer.disconnect(); }
}).observe(document.body, {childList: true, subtree: true});
</script>
</body>"""
_ELSEWHERE = re.compile(r"<link[^>]*https://[^>]*>")


class Gate:
    """Who may come in: whoever shows the token first, and from then on that browser alone."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        """`http://HOST:PORT`, the one address under which this is reached."""
        self.token = secrets.token_urlsafe(32)
        self._is_used = False
        self._session = secrets.token_urlsafe(32)

    @property
    def link(self) -> str:
        return f"{self.origin}/?token={self.token}"

    def refusal(self, request: web.Request) -> str:
        """Why a request is not answered; empty when it is."""
        if request.host != urlsplit(self.origin).netloc:
            return f"This is not {self.origin}: use the address that gptoss serve printed."
        is_foreign = request.headers.get("Origin", self.origin) != self.origin
        # A browser always names the origin of a WebSocket; whoever does not is none.
        if is_foreign or (request.path == "/ws" and "Origin" not in request.headers):
            return "Another page may not use this one."
        if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(errors="replace"), self._session.encode()):
            return ""
        if "token" not in request.query:
            return "Open the link that gptoss serve printed: it holds the token."
        if not hmac.compare_digest(request.query["token"].encode(errors="replace"), self.token.encode()):
            return "That is not the token."
        return "The token was used already. Start gptoss serve again for a new one." if self._is_used else ""

    def lets_in(self, request: web.Request) -> bool:
        """True once: for the request that brings the token."""
        if self._is_used or request.path != "/" or request.query.get("token") != self.token:
            return False
        self._is_used = True
        return True

    def admit(self, response: web.StreamResponse) -> None:
        """Give the browser its cookie."""
        is_secure = self.origin.startswith("https:")
        response.set_cookie(COOKIE, self._session, httponly=True, samesite="Strict", secure=is_secure, path="/")


def make_application(gate: Gate, command: str, title: str) -> Awaitable[web.Application]:
    """textual-serve's application behind the gate; every window of it runs `command`."""
    from aiohttp import web
    from textual_serve.server import Server

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if refusal := gate.refusal(request):
            return web.Response(status=403, text=refusal + "\n", headers=_HEADERS)
        if gate.lets_in(request):
            # The token must not stay in the address bar and its history.
            response: web.StreamResponse = web.Response(status=303, headers={**_HEADERS, "Location": "/"})
            gate.admit(response)
            return response
        response = await handler(request)
        if request.path == "/" and isinstance(response, web.Response) and response.text is not None:
            response.text = _ELSEWHERE.sub("", response.text).replace("</body>", _FOCUS)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    class Quiet(Server):
        async def on_startup(self, app: web.Application) -> None:
            """The link is printed elsewhere; textual-serve would print a banner."""

    async def make() -> web.Application:
        app = await Quiet(command, title=title, public_url=gate.origin)._make_app()
        app.middlewares.append(guard)
        others = set(psutil.Process().children())

        async def see_windows_out(_: web.Application) -> None:
            """textual-serve waits for no program of a window; one that outlives the loop ends in a traceback."""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while set(psutil.Process().children()) - others:
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(0.05)

        app.on_cleanup.append(see_windows_out)
        return app

    return make()


def carry_out(options: Any) -> int:
    """Serve until Ctrl+C. Raises SettingsError for an address that is not allowed or not free."""
    try:
        import textual_serve.server  # noqa: F401
        from aiohttp import web
    except ImportError as error:
        raise SettingsError(f"{error.name} is not installed", "pip install 'gptoss-tui[serve]'") from error
    run = _run(options.run)
    listener = listen(options.host, options.port, allows_remote=options.allow_remote)
    gate = Gate(options.public_url.rstrip("/") or f"http://{_name(options.host)}:{listener.getsockname()[1]}")
    mode = "all" if options.allow_actions else "watch"
    command = shlex.join([sys.executable, "-m", "gptoss_tui.served", mode, *([str(run.path)] if run else [])])
    print(f"open once: {gate.link}", flush=True)
    told = "can start, stop and change everything" if options.allow_actions else "can look and change nothing"
    print(f"a browser {told}; end with Ctrl+C: runs go on", file=sys.stderr, flush=True)
    if not _is_loopback(options.host) and gate.origin.startswith("http:"):
        print("warning: without https others on the network can read along; an SSH tunnel is safer", file=sys.stderr)
    web.run_app(make_application(gate, command, "gptoss"), sock=listener, print=None, access_log=None)
    return ExitCode.DONE


def listen(host: str, port: int, *, allows_remote: bool) -> socket.socket:
    """A socket that listens. Raises SettingsError for an address that is not ours, not free or not allowed."""
    if not _is_loopback(host) and not allows_remote:
        raise SettingsError(
            f"--host {host} would let other machines in",
            f"leave it out and use a tunnel: ssh -L {port}:127.0.0.1:{port} THIS-HOST; or add --allow-remote",
        )
    if not 0 <= port <= 65_535:
        raise SettingsError(f"--port {port} is no port", "give 1 to 65535, or 0 for a free one")
    with contextlib.ExitStack() as undo:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError as error:
            why = error.strerror or str(error)
            raise SettingsError(f"cannot listen on {host} port {port}: {why}", "--port 0 finds a free one") from error
        undo.pop_all()
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """What a browser calls a host that was listened on."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _run(reference: str) -> RunDirectory | None:
    from engine.paths import runs_root
    from engine.run import directory

    return directory.find(runs_root(), reference) if reference else None
