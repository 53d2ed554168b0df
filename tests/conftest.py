"""How the tests are shared out among processes: `make test` runs one for each core."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUITES = ("end_to_end", "finetune", "convert", "launch", "plan_megatron")
"""Each is one process's work, because its tests share a Megatron, a run or the ports of the machine; longest first."""
ALONE = {"test_quickstart": "quickstart"}
"""Modules of a suite that share nothing with the rest of it."""


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job ignores interrupts, and so would every program that the tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs of the tests measure corrects no plan of whoever tests, nor the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name the suite of each test for `--dist loadgroup`, and begin with what takes longest."""
    order = (*ALONE.values(), *SUITES)
    places: dict[str, int] = {}
    for item in items:
        directory = item.path.relative_to(HERE).parts[0]
        suite = ALONE.get(item.path.stem, directory)
        if suite in order and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(suite))
        places[item.nodeid] = order.index(suite) if suite in order else len(order)
    items.sort(key=lambda item: places[item.nodeid])
