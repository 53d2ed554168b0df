"""The terminal: Textual's Linux driver, made to survive old mouse reports and a vanished terminal."""

from __future__ import annotations

import os
import re
import selectors
from codecs import getincrementaldecoder
from typing import Any

from textual._parser import ParseError
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from engine.errors import ExitCode

_X10_MOUSE = re.compile(rb"\x1b\[M[\s\S]{3}")
_HALF_X10_MOUSE = re.compile(rb"\x1b\[M[\s\S]{0,2}\Z")


class TerminalDriver(LinuxDriver):
    """Reads keys as Textual 8.2 does (linux_driver.py, `run_input_thread`), but for two things.

    Terminals that know only the X10 mouse protocol send raw bytes: they are no UTF-8, which ends
    Textual's reader, and read as letters they would press keys nobody pressed. And a closed
    terminal reads as an endless row of nothing, on which Textual spins.
    """

    def run_input_thread(self) -> None:
        selector = selectors.SelectSelector()
        selector.register(self.fileno, selectors.EVENT_READ)
        parser = XTermParser(self._debug)
        decoder = getincrementaldecoder("utf-8")(errors="replace")
        mouse = MouseReports()
        try:
            while not self.exit_event.is_set():
                if selector.select(0.1):
                    text = decoder.decode(mouse.strip(self._read()))
                    # To the parser an empty text is the end of the input: a chunk may be one
                    # mouse report, or half a character.
                    for event in parser.feed(text) if text else ():
                        self.process_message(event)
                for event in parser.tick():
                    self.process_message(event)
        finally:
            selector.close()
            try:
                for _ in parser.feed(""):
                    pass
            except (EOFError, ParseError):
                pass

    @property
    def frames_waiting(self) -> int:
        """Writes that the terminal has not taken yet."""
        return self._writer_thread._queue.qsize() if self._writer_thread is not None else 0

    def _read(self) -> bytes:
        try:
            data = os.read(self.fileno, 4096)
        except OSError:
            data = b""
        if not data and self.input_tty:
            # The terminal is gone and cannot be written to: an orderly end would wait for it.
            # Nothing is lost, since a run is not ours and a draft is saved at every change.
            os._exit(ExitCode.DONE)
        return data


class MouseReports:
    """Takes X10 mouse reports out of a stream of bytes; one may be split over two reads."""

    def __init__(self) -> None:
        self._half = b""

    def strip(self, data: bytes) -> bytes:
        data = _X10_MOUSE.sub(b"", self._half + data)
        half = _HALF_X10_MOUSE.search(data)
        self._half = half.group() if half else b""
        return data[: half.start()] if half else data


def frames_waiting(driver: Any) -> int:
    """Frames not yet written by `driver`; 0 for a driver that does not tell."""
    return getattr(driver, "frames_waiting", 0)
