"""The verbs as people and scripts use them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.cli import checkpoints
from gptoss_tui.__main__ import main
from tests.convert import models
from tests.convert.conftest import MakeSource


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_convert_inspect_verify_export(source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin, made = source("mxfp4", 64), tmp_path / "m"
    assert answer(capsys, "convert", origin, made)["parameters"] == 349_808
    facts = answer(capsys, "checkpoint", "inspect", made)
    assert (facts["kind"], facts["iteration"], facts["parameters"]) == ("streaming", 0, 349_808)
    assert facts["is_complete"] and facts["layout"] == {"tp": 1, "pp": 1, "cp": 1, "ep": 1}
    assert answer(capsys, "verify", made, "--against", origin, "--no-logits")["is_verified"]
    # The manifest knows where the config is.
    assert answer(capsys, "export", made, tmp_path / "hf")["tensors"] == 71
    facts = answer(capsys, "checkpoint", "inspect", tmp_path / "hf")
    assert (facts["kind"], facts["dtypes"], facts["is_complete"]) == ("hugging-face", ["bfloat16"], True)


def test_a_run_stands_for_its_checkpoints(
    source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.workers.stream.convert import convert

    convert(source("bf16", 64), tmp_path / "run" / "checkpoints", "bf16")
    (tmp_path / "run" / "settings.toml").touch()
    assert answer(capsys, "checkpoint", "inspect", tmp_path / "run")["iteration"] == 0
    assert main(["checkpoint", "inspect", str(tmp_path / "run")]) == 0
    assert re.search(r"^  size +\d+\.\d\d MB$", capsys.readouterr().out, re.MULTILINE)
    assert answer(capsys, "verify", tmp_path / "run")["files_compared"] > 8


def test_what_is_there_is_not_replaced_unasked(
    source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").touch()
    assert main(["convert", str(source("bf16", 64)), str(tmp_path / "m")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "m" / "precious").exists()
    assert main(["convert", str(source("bf16", 64)), str(tmp_path / "m"), "--overwrite"]) == 0
    assert not (tmp_path / "m" / "precious").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["convert", "absent/model", "OUT"], 4, "neither a directory nor in the Hugging Face cache"),
        (["export", "TMP", "OUT", "--reference", "SOURCE"], 4, "no Megatron checkpoint"),
        (["export", "TMP", "OUT"], 4, "it is not known which model"),
        (["verify", "TMP"], 4, "no Megatron checkpoint"),
        (["checkpoint", "inspect", "TMP"], 4, "is no checkpoint"),
        (["convert", "SOURCE", "OUT", "--python", "/absent/python"], 1, "cannot be started"),
        (["convert", "SOURCE", "OUT", "--python", "/bin/false"], 1, "convert ended with code 1"),
    ],
)
def test_errors_are_told(
    source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    places = {"TMP": str(tmp_path), "OUT": str(tmp_path / "out"), "SOURCE": str(source("bf16", 64))}
    assert main([places.get(word, word) for word in arguments]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["SOURCE", "SOURCE/inside", "SOURCE/..", "LINK/m"])
def test_what_is_read_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    origin = models.make(tmp_path / "all" / "hf")
    (tmp_path / "link").symlink_to(origin)
    before = {path: path.read_bytes() for path in origin.iterdir()}
    out = place.replace("SOURCE", str(origin)).replace("LINK", str(tmp_path / "link"))
    assert main(["convert", str(origin), out, "--overwrite"]) == 2
    assert "which is read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in origin.iterdir()} == before


def test_an_export_keeps_off_all_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.workers.stream.convert import convert

    origin, made = models.make(tmp_path / "hf"), tmp_path / "m"
    convert(origin, made, "bf16")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (made, made / "iter_0000000", origin):
        assert main(["export", str(made), str(out), "--overwrite"]) == 2
        assert "which is read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_other_kind_of_checkpoint_is_named(
    source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.workers.stream.convert import convert

    origin, made, out = str(source("bf16", 64)), str(tmp_path / "m"), str(tmp_path / "out")
    convert(Path(origin), Path(made), "bf16")
    for words, says, hint in (
        (["convert", made, out], "is a Megatron checkpoint and not a Hugging Face one", "gptoss export"),
        (["verify", made, "--against", made], "is a Megatron checkpoint and not a Hugging Face one", "gptoss export"),
        (["export", origin, out], "is a Hugging Face checkpoint and not a Megatron one", "gptoss convert"),
        (["verify", origin], "is a Hugging Face checkpoint and not a Megatron one", "--against"),
    ):
        assert main(words) == 2, words
        told = capsys.readouterr().err
        assert says in told and hint in told, told


class Terminal(io.StringIO):
    """Stands for stderr on a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What wraps is not taken back by a carriage return: the screen would fill with halves of lines."""
    terminal, long = Terminal(), "100.00 of 234.00 GB, 0.85 GB/s, 15 min left  " + "decoder.layers." * 6
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    lines = [{"progress": long, "done": 1, "total": 2}, {"result": {"is": "there"}}]
    assert checkpoints._listen(io.StringIO("".join(json.dumps(one) + "\n" for one in lines))) == {"is": "there"}
    assert terminal.getvalue().split("\r\x1b[K") == ["", long[:79], ""]


def test_a_log_gets_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]

    def later() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr("engine.cli.checkpoints.time.monotonic", later)
    lines = [{"progress": f"{done} of 100", "done": done, "total": 100} for done in range(1, 101)]
    assert checkpoints._listen(io.StringIO("".join(json.dumps(one) + "\n" for one in lines))) is None
    assert capsys.readouterr().err.splitlines() == [f"{done} of 100" for done in (*range(1, 100, 10), 100)]


def test_hundreds_of_differences_are_counted(
    source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.workers.stream.convert import convert

    convert(source("bf16", 64), tmp_path / "m", "bf16")
    words = ["verify", str(tmp_path / "m"), "--against", str(source("mxfp4", 64)), "--no-logits"]
    assert main(words) == 1
    told = capsys.readouterr().out.splitlines()
    assert len(told) < 20 and told[-1].endswith("more; --json names them all")
    assert main([*words, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) > 50


def test_a_lora_adapter_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.checkpoints.safetensors_file import make_header

    head, _ = make_header({"base_model.model.lora_A.weight": (2, 3)}, "BF16")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(head + bytes(12))
    facts = answer(capsys, "checkpoint", "inspect", tmp_path)
    assert (facts["kind"], facts["parameters"]) == ("lora-adapter", 6)


def test_a_step_on_gpus_compares_in_a_process_of_its_own(source: MakeSource, tmp_path: Path) -> None:
    """That process computes as `gptoss verify` does; here only its answers are looked at."""
    from engine.errors import StepFailed
    from engine.workers import verify
    from engine.workers.stream.convert import convert

    origin = source("bf16", 64)
    convert(origin, tmp_path / "m", "bf16")
    told: list[str] = []

    class Report:
        """Stands for a step's report."""

        def progress(self, message: str, done: int, total: int, unit: str) -> None:
            told.append(message)

    report: Any = Report()
    found = verify.in_child(report, tmp_path / "m", origin, None, with_logits=False)
    assert found["is_verified"] and found["tensors_compared"] == 71
    assert told[-1] == "71 of 71 tensors compared"
    with pytest.raises(StepFailed, match="no Megatron checkpoint"):
        verify.in_child(report, tmp_path, origin, None, with_logits=False)


def test_the_command_line_loads_no_torch() -> None:
    code = "import engine.cli.checkpoints, sys; print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
