"""Take over what a person has already: distributed_config.env files, launch scripts, command lines.

Everything is read as text and nothing is run. `read` gives settings and an account of what was understood, what was
ignored, and what cannot be had here and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import env_file, megatron_flags, shell_words
from engine.errors import NotFoundError, SettingsError
from engine.megatron_flags import Reading, Told
from engine.options import Value
from engine.settings import Settings
from engine.shell_words import Word

MAX_BYTES = 100_000
"""A launch script is a few kilobytes; the time to read one grows with the square of a word's length."""
_TRAINER, _TUTORIAL = "pretrain_gpt.py", "02_train.sh"
_STARTERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
_CONTAINERS = ("docker", "podman", "nerdctl")
_SBATCH = re.compile(r"^[ \t]*#SBATCH[ \t]+(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Settings that were found, and what became of everything else."""

    values: dict[str, Value]
    """By `table.name`: only what was found."""
    understood: tuple[Told, ...]
    ignored: tuple[Told, ...]
    impossible: tuple[Told, ...]

    @property
    def settings(self) -> Settings:
        """What was found, over the defaults."""
        return Settings().with_values(self.values)


def read(paths: Sequence[Path]) -> Imported:
    """What the files say, later ones over earlier ones.

    Raises NotFoundError, and SettingsError for a file that is neither an env file nor a launch script.
    """
    if not paths:
        raise SettingsError("no file was given", "for example: gptoss import distributed_config.env 02_train.sh")
    reading = Reading()
    for path in paths:
        text = _text(path)
        try:
            if _is_env_file(path, text):
                _read_env_file(path, text, reading)
            else:
                _read_script(text, reading)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error.message}", error.hint) from error
    return _result(reading)


def read_command_line(text: str) -> Imported:
    """What one command line says, as it was typed. Raises SettingsError when it starts no training."""
    reading = Reading()
    _read_script(text, reading)
    return _result(reading)


def _result(reading: Reading) -> Imported:
    return Imported(
        values=dict(reading.values),
        understood=tuple(reading.understood),
        ignored=tuple(reading.ignored),
        impossible=tuple(reading.impossible),
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path} is larger than {MAX_BYTES:,} bytes", "give an env file or a launch script")
        return path.read_bytes().decode("utf-8")  # read_text would translate line ends, which matter to bash
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "give an env file or a launch script") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "give a readable text file") from error


def _is_env_file(path: Path, text: str) -> bool:
    if path.suffix == ".env":
        return True
    lines = [line.strip(" \t") for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    names = {line.partition("=")[0] for line in lines if "=" in line}
    return bool(lines) and bool(names & set(env_file.KEYS)) and all(re.match(r"\w+=\S*$", line) for line in lines)


def _read_env_file(path: Path, text: str, reading: Reading) -> None:
    values = env_file.parse(text)
    for key, name in env_file.NAMES.items():
        if key in values:
            reading.set(name, values[key], f"{key}={values[key]}")
    further = [key for key in values if key not in env_file.KEYS]
    if further:
        reading.values["launch.env_file"] = str(path.absolute())
        reading.understood += [
            Told(text=f"{key}={values[key]}", key="launch.env_file", why="every step gets it") for key in further
        ]


def _read_script(text: str, reading: Reading) -> None:
    """A launch script or a command line. Raises SettingsError when it starts no training."""
    script = shell_words.read(text.replace("\r\n", "\n"))
    launches = [command for command in script.commands if _start_of(command) is not None]
    if not launches:
        raise SettingsError(
            f"nothing in it starts {_TRAINER} or {_TUTORIAL}", "give the command line that starts the training"
        )
    for command in launches[:-1]:
        reading.ignore(_said(command)[:80], "the last command that starts a training counts")
    if lines := _SBATCH.findall(text):
        reading.set("launch.launcher", "slurm", "#SBATCH …")
    further = [option for line in lines for option in _read_sbatch(line, reading)]
    if further:
        reading.values["launch.slurm_options"] = " ".join(further)
    _read_launch(launches[-1], reading)
    for word in sorted(script.skips):
        reading.ignore(f"{word} …", "blocks of this kind are not followed")
    for name, value in script.exported.items():
        reading.ignore(
            f"{name}={value.text if value.is_known else '…'}",
            "the ranks' environment is gptoss's own; to keep it, put it into an env file and set launch.env_file",
        )


def _start_of(command: list[Word]) -> int | None:
    """Where the program that trains is named in a command; None when it starts no training."""
    if not command or command[0].text in ("echo", "[", "[[", "cat", "test", "tee", "grep"):
        return None
    names = [_name(word) for word in command]
    found = [position for position, name in enumerate(names) if name in (_TRAINER, _TUTORIAL)]
    return found[0] if found else None


def _read_launch(command: list[Word], reading: Reading) -> None:
    at = _start_of(command)
    assert at is not None  # it was chosen for that
    before, after = command[:at], command[at + 1 :]
    place = _outside(before, reading)
    program = command[0].text
    if program == "srun":
        reading.set("launch.launcher", "slurm", "srun")
    after = [Word(place(word.text), word.is_known) for word in after]
    starter = [position for position, word in enumerate(before) if _name(word) in _STARTERS]
    if starter:
        megatron_flags.read_torchrun(megatron_flags.split(before[starter[-1] + 1 :]), reading)
    if _name(command[at]) == _TUTORIAL:
        _read_tutorial(after, reading)
    else:
        megatron_flags.read_training(megatron_flags.split(after), reading)


class _Places:
    """From a path inside a container to the one outside."""

    def __init__(self, mounts: Iterable[tuple[str, str]] = ()) -> None:
        # The deepest mount first: it hides those above it.
        self._mounts = sorted(mounts, key=lambda mount: -len(mount[1]))

    def __call__(self, path: str) -> str:
        for source, target in self._mounts:
            if path == target or path.startswith(target.rstrip("/") + "/"):
                return source.rstrip("/") + path[len(target.rstrip("/")) :]
        return path

    def source_of(self, target: str) -> str:
        return next((source for source, mounted in self._mounts if mounted == target), "")


def _outside(before: list[Word], reading: Reading) -> _Places:
    """Read the container command in front, if there is one."""
    names = [_name(word) for word in before]
    position = next((names.index(name) for name in _CONTAINERS if name in names), None)
    if position is None or names[position + 1 : position + 2] != ["run"]:
        return _Places()
    said = f"{names[position]} run"
    reading.set("launch.launcher", "container", said)
    reading.set("launch.runtime", names[position] if names[position] in ("docker", "podman") else "auto", said)
    words = before[position + 2 :]
    # What the container starts follows the image.
    starts = ("bash", "sh", "python", "python3", *_STARTERS)
    image = next((n for n, word in enumerate(words) if n and _name(word) in starts), len(words)) - 1
    if 0 <= image and words[image].is_known and not words[image].text.startswith("-"):
        reading.set("launch.image", words[image].text, words[image].text)
    elif 0 <= image:
        reading.refuse(words[image].text, "the image is not known without running the shell", "launch.image")
    places = _Places(_mounts(words[:image], reading))
    if checkout := places.source_of("/workspace/megatron-lm"):
        reading.set("launch.megatron_lm", checkout, f"{checkout}:/workspace/megatron-lm")
    reading.ignore(said + " …", "mounts, user, limits and devices are gptoss's own; see launch.container_options")
    return places


def _mounts(words: list[Word], reading: Reading) -> list[tuple[str, str]]:
    found = []
    for option, word in zip(words, words[1:], strict=False):
        if option.text not in ("-v", "--volume"):
            continue
        source, _, target = word.text.partition(":")
        if not word.is_known:
            reading.refuse(f"{option.text} {word.text}", "the shell would fill in this path: set it by hand")
        elif target:
            found.append((source, target.partition(":")[0]))
    return found


def _read_tutorial(words: list[Word], reading: Reading) -> None:
    """02_train.sh's own five options."""
    reading.set("launch.route", "tutorial", _TUTORIAL, "the script unchanged: a toy, see the traps that are told")
    reading.values.update({"output.export": False, "training.goal": "pretrain"})
    reading.understood.append(
        Told(text=_TUTORIAL, key="output.export", why="what it trains cannot be exported to Hugging Face")
    )
    flags = megatron_flags.split(words)
    for name, given in flags.items():
        is_mock = given.value == "MOCK"
        if not given.is_known:
            reading.refuse(given.said, "the shell would compute it, and nothing is run here: set it by hand")
        elif name == "--data" and not is_mock:
            reading.set("data.source", "prefix", given.said)
            reading.values["data.path"] = given.value
        elif name == "--tokenizer" and not is_mock:
            reading.set("data.tokenizer", given.value, given.said)
        elif name in ("--data", "--tokenizer"):
            reading.set("data.source", "mock", given.said)
        elif name == "--distributed-config-file":
            reading.ignore(given.said, "one is written for each attempt; import the file itself too")
        else:
            reading.ignore(given.said, "a run keeps its files in its own directory (output.directory)")
    if not {"--data", "--tokenizer"} & set(flags):
        reading.set("data.source", "mock", "no --data")


def _read_sbatch(line: str, reading: Reading) -> list[str]:
    """One `#SBATCH` line; returns what is for sbatch itself."""
    further = []
    try:
        words = [Word(text) for text in shell_words.words_of(line)]
    except ValueError:
        reading.refuse(f"#SBATCH {line}", "its quotes do not close")
        return []
    for name, given in megatron_flags.split(words).items():
        said = f"#SBATCH {given.said}"
        if name in _SBATCH_NAMES:
            reading.set(_SBATCH_NAMES[name], given.value, said)
        elif name in ("--output", "--error", "--job-name", "--exclusive", "--mem", "--ntasks-per-node", "--open-mode"):
            reading.ignore(said, "gptoss writes its own")
        else:
            option = f"{name}={given.value}".rstrip("=")
            if reading.set("launch.slurm_options", option, said):
                further.append(option)
    return further


_SBATCH_NAMES = {
    "--nodes": "machine.nodes",
    "--gpus-per-node": "machine.gpus_per_node",
    "--partition": "launch.partition",
    "--account": "launch.account",
    "--qos": "launch.qos",
    "--time": "launch.time_limit",
    "--mail-user": "launch.mail",
}


def _name(word: Word) -> str:
    """The last part of a path: what the program is called."""
    return word.text.rpartition("/")[2]


def _said(command: list[Word]) -> str:
    return " ".join(word.text for word in command)
