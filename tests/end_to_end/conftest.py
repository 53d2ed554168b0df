"""What the end-to-end tests share: one imported Megatron, one prepared run, one trained run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.plan.layout import Layout
from engine.run.directory import RunDirectory
from tests.end_to_end.harness import Zygote, configure, copy_run, make_run

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs the training packages."""
    missing = any(importlib.util.find_spec(name) is None for name in ("torch", "megatron", "transformers"))
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if missing:
                item.add_marker(pytest.mark.skip(reason="the training packages are not installed"))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def prepared(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run after prepare and convert. Copy it, do not change it."""
    run = make_run(tmp_path_factory.mktemp("prepared"), "prepared")
    zygote.run("prepare", run)
    zygote.run("convert", run)
    return run


@pytest.fixture(scope="session")
def trained(zygote: Zygote, prepared: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run after train and export on one rank. Copy it, do not change it."""
    run = copy_run(prepared, tmp_path_factory.mktemp("trained"), "trained")
    zygote.run("train", run)
    zygote.run("export", run)
    return run


type MakeCase = Callable[..., RunDirectory]


@pytest.fixture
def case(prepared: RunDirectory, tmp_path: Path) -> MakeCase:
    """Makes a prepared run with other settings or another layout."""

    def make(changes: dict[str, object] | None = None, layout: Layout | None = None, name: str = "run") -> RunDirectory:
        run = copy_run(prepared, tmp_path, name)
        configure(run, changes, layout)
        return run

    return make


@pytest.fixture
def trained_copy(trained: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the trained run."""
    return copy_run(trained, tmp_path, "run")
