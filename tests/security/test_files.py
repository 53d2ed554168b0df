"""What gptoss writes for a person: never through a link, never half, and not for others to change."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import presets
from engine.errors import ExitCode, RunError, SettingsError
from engine.machine import detect
from engine.monitor import exports, labels
from engine.monitor.history import RunRecord
from engine.paths import make_own, write_atomic
from engine.plan.planner import make_plan
from engine.run import exported
from engine.settings import Settings
from gptoss_tui import theme
from gptoss_tui.__main__ import main


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask; the one before comes back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("data", ["a page", b"a picture"])
def test_a_report_is_not_written_through_a_link(data: str | bytes, tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "page.md"
    victim.write_text("precious")
    link.symlink_to(victim)
    exports.write(link, data)
    assert victim.read_text() == "precious"
    assert not link.is_symlink() and link.read_bytes() in (b"a page", b"a picture")


def test_a_table_for_which_there_is_no_room_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "night.csv"
    table.write_text("yesterday")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="No space left"):
        exports.write(table, "to" * 1000)
    assert table.read_text() == "yesterday"
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_report_has_the_mode_that_a_person_wants_for_files(
    mask: int, mode: int, umask: Callable[[int], int], tmp_path: Path
) -> None:
    umask(mask)
    exports.write(tmp_path / "page.md", "a page")
    assert _mode(tmp_path / "page.md") == mode


def test_directories_of_one_s_own_are_for_nobody_else(
    umask: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others in the group could put a command for alerts there, or a preset."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    umask(0)
    presets.save("mine", Settings())
    theme.keep("nord")
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {path.name for path in made} >= {"config", "gptoss", "presets", "state"}
    assert {_mode(path) for path in made} == {0o700}
    assert all(_mode(path) & 0o022 == 0 for path in tmp_path.rglob("*"))


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_own(tmp_path)
    make_own(tmp_path / "one" / "two")
    assert [_mode(path) for path in (tmp_path, tmp_path / "one", tmp_path / "one" / "two")] == [0o755, 0o700, 0o700]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/null", "/proc/self/fd/1"])
def test_a_device_is_not_replaced_by_a_file(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Root could."""
    with pytest.raises(OSError, match="a device cannot be replaced"):
        write_atomic(Path(path), "text")
    assert main(["doctor", "--save-machine", path]) == ExitCode.BAD_INPUT
    assert "a device cannot be replaced" in capsys.readouterr().err


def test_parquet_is_written_like_the_others(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    victim, link = tmp_path / "victim", tmp_path / "x.parquet"
    victim.write_text("precious")
    link.symlink_to(victim)
    exports.write_metrics(RunRecord(name="night", settings=Settings(), records=()), link)
    assert victim.read_text() == "precious"


def test_scripts_that_were_half_written_are_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = presets.find("rehearsal").settings
    plan = make_plan(settings, detect())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as no_room:
        no_room.setattr(exported._Export, "_scripts", full)
        with pytest.raises(RunError, match="No space left"):
            exported.export(settings, plan, tmp_path / "scripts")
    assert exported.export(settings, plan, tmp_path / "scripts")[0]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "years.tex").touch()
    with pytest.raises(RunError, match="is not empty"):
        exported.export(settings, plan, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "years.tex").exists()


def test_what_could_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as told:
        write_atomic(tmp_path / "state.json", "{}")
    assert told.value.filename == str(tmp_path / "state.json")
    with pytest.raises(RunError, match="check its disk|No space") as refused:
        labels.write(tmp_path, labels.Labels())
    assert refused.value.hint == "check its disk"
