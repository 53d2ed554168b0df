"""A home of its own for every test of the screens, and a fixed time zone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.screen import Screen

from gptoss_tui.app import CockpitApp
from gptoss_tui.glyphs import Charset
from tests.tui.doubles import NOW, FakeServices

type MakeApp = Callable[..., CockpitApp]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_COLOR", "TEXTUAL_THEME", "GPTOSS_GLYPHS", "GPTOSS_RUNS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    root.mkdir()
    return root


@pytest.fixture
def services(runs_root: Path) -> FakeServices:
    return FakeServices(runs_root)


@pytest.fixture
def make_app(services: FakeServices) -> MakeApp:
    def make(start: Callable[[], Screen[Any]] | None = None, **arguments: Any) -> CockpitApp:
        arguments = {"services": services, "clock": lambda: NOW, "charset": Charset.BRAILLE, **arguments}
        return CockpitApp(start, **arguments)

    return make
