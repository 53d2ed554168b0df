"""Everything generated for bash: what was put in comes out, and nothing of it is carried out."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.launch.command import Command, Quoter

PRINT = ("bash", "-c", 'printf "%s\\0" "$EXTRA" "$@"', "print")
NASTY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.sampled_from(
    ["$(touch hit)", "`touch hit`", "; touch hit", "'", '"', "\\", "a b", "\n", "$HOME", "${HOME}", "!!", "*", "~",
     "-n", "&& touch hit", "$RUN_DIR", "\u202e", "\x1b]0;x\x07", "é", "$'x'", "%s", "", "}", "{a,b}", "#x", "=", "\r\n"]
)  # fmt: skip


def _read_back(command: Command, directory: Path) -> list[str]:
    """EXTRA and the words after PRINT, as the script's command saw them."""
    path = directory / "attempts" / "01-x" / "command.sh"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(command.script(path).encode("utf-8", "surrogatepass"))
    done = subprocess.run(["bash", str(path)], capture_output=True, cwd=directory, check=True)
    assert not list(directory.rglob("hit"))
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(NASTY, min_size=1, max_size=40), extra=NASTY, variable=NASTY)
@example(words=["$(touch hit)", "`touch hit`"], extra='"; touch hit; "', variable="}$(touch hit){")
def test_words_environment_and_variables_come_out_as_they_went_in(tmp_path, words, extra, variable):
    command = Command(
        argv=(*PRINT, *words, "$VARIABLE"),
        title="a test",
        run=tmp_path,
        env={"EXTRA": extra},
        variables={"VARIABLE": variable},
    )
    assert _read_back(command, tmp_path) == [extra, *words, variable]


def test_the_run_s_own_path_moves_with_the_script(tmp_path):
    old, new = tmp_path / "old place", tmp_path / 'new\'s "place"'
    old.mkdir()
    words = (str(old), f"{old}/a b", f"{old}:{old}/x:ro", f"type=bind,source={old},target={old}", f"{old}er", f"x{old}")
    command = Command(argv=(*PRINT, *words), title="a test", run=old, env={"EXTRA": ""})
    path = old / "attempts" / "01-x" / "command.sh"
    path.parent.mkdir(parents=True)
    path.write_text(command.script(path))
    old.rename(new)
    done = subprocess.run(
        ["bash", str(new / "attempts/01-x/command.sh")], capture_output=True, text=True, check=True, cwd="/"
    )
    expected = [
        str(new),
        f"{new}/a b",
        f"{new}:{new}/x:ro",
        f"type=bind,source={new},target={new}",
        f"{old}er",
        f"x{old}",
    ]
    assert done.stdout.split("\0")[1:-1] == expected


@given(st.text(max_size=20))
def test_only_known_names_are_left_for_bash(word):
    quote = Quoter(Path("/run"), {"KNOWN"})
    assert quote("$KNOWN") == '"$KNOWN"'
    if "$" in word:
        assert quote(word).startswith("'") or "'" in quote(word)


def test_ten_thousand_random_words_come_out_as_they_went_in(tmp_path):
    chance = random.Random(7)
    pieces = [
        *"abc 019'\"\\$`(){}[]<>|&;*?!#~=%-\n\t\r",
        "$(touch hit)",
        "`touch hit`",
        "${x:-$(touch hit)}",
        "é",
        "漢",
    ]
    for _ in range(25):
        words = ["".join(chance.choices(pieces, k=chance.randint(0, 12))) for _ in range(400)]
        command = Command(argv=(*PRINT, *words), title="a test", run=tmp_path, env={"EXTRA": words[0]})
        assert _read_back(command, tmp_path) == [words[0], *words]
