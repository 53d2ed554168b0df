"""The container launcher: the local command inside docker or podman.

Everything is mounted under the path it has outside, so that settings, reports and checkpoints
mean the same on both sides. Our source is mounted too: nothing is built.
"""

from __future__ import annotations

import glob
import re
import shlex
from dataclasses import replace
from pathlib import Path

from engine.errors import SettingsError
from engine.launch import local, reference, signals
from engine.launch.command import Command, Quoter, StepRequest, Words
from engine.launch_settings import LaunchSettings
from engine.paths import expanded
from engine.settings import HUB_PREFIX

IMAGES = {
    "bridge": "nvcr.io/nvidia/nemo:26.08",
    "megatron-lm": "nvcr.io/nvidia/nemo:26.08",
    "tutorial": "nvcr.io/nvidia/pytorch:25.12-py3",
}
"""NVIDIA's image for each route. Megatron-Bridge 0.6 is in nemo:26.08, the tutorial names the other one."""

PASSED_BY_NAME = ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "NCCL_DEBUG",
                  "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # fmt: skip
"""Given without a value: the client takes it from its own environment, so no token is ever written down."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}")
_DETACH_KEYS = "ctrl-@,ctrl-@"


def command(request: StepRequest) -> Command:
    """The step as a container command. Raises SettingsError for an image or mount that cannot be."""
    inner = local.command(request)
    if request.step == "train" and request.settings.launch.route == "tutorial":
        return _tutorial(request, inner)
    image = image_for(request.settings.launch)
    mounts = [mount for path in mounted(request) for mount in bind(path, path)]
    return replace(
        inner,
        argv=(
            "$CONTAINER_RUNTIME", *run_options(request),
            *(word for key, value in inner.env.items() for word in ("--env", f"{key}={value}")),
            *(word for name in PASSED_BY_NAME for word in ("--env", name)),
            *home(request),
            *mounts,
            *extra_mounts(request.settings.launch),
            *extra_options(request.settings.launch),
            "--workdir", str(inner.cwd or request.run),
            "$IMAGE", *inner.argv,
        ),
        env={},
        variables={"CONTAINER_RUNTIME": request.runtime, "IMAGE": image, **inner.variables},
        makes=(request.attempt, *request.caches),
        stop=stop(request), kill=kill(request), stacks=stacks(request) if inner.reports else (),
    )  # fmt: skip


def _tutorial(request: StepRequest, inner: Command) -> Command:
    """The tutorial's own command, with its paths inside the container."""
    places = reference.Places.in_container()
    settings = request.settings
    mounts = [
        (reference.checkout(request), places.checkout),
        (request.run / "checkpoints", places.checkpoints),
        (request.run / "tensorboard", places.tensorboard),
        (request.env_file, places.env_file),
        (request.attempt, str(request.attempt)),
    ]
    if settings.data.source == "prefix":
        mounts.append((expanded(settings.data.path).absolute().parent, places.data))
    if settings.data.source == "prefix" and settings.data.tokenizer:
        mounts.append((expanded(settings.data.tokenizer).absolute(), places.tokenizer))
    return replace(
        inner,
        argv=(
            "$CONTAINER_RUNTIME", *run_options(request),
            *(word for key in ("GPTOSS_ATTEMPT", "PYTHONUNBUFFERED") for word in ("--env", f"{key}={inner.env[key]}")),
            *(word for name in PASSED_BY_NAME for word in ("--env", name)),
            *home(request),
            *(word for source, target in mounts for word in bind(source, target)),
            *extra_mounts(settings.launch),
            *extra_options(settings.launch),
            "--workdir", places.checkout,
            "$IMAGE", *reference.tutorial_argv(request, places),
        ),
        env={},
        cwd=None,
        variables={"CONTAINER_RUNTIME": request.runtime, "IMAGE": image_for(settings.launch)},
        makes=(request.attempt, request.run / "checkpoints", request.run / "tensorboard"),
        stop=stop(request), kill=kill(request),
    )  # fmt: skip


def image_for(launch: LaunchSettings) -> str:
    """The image to start. Raises SettingsError for a text that names none."""
    image = launch.image or IMAGES[launch.route]
    if not _IMAGE.fullmatch(image):
        raise SettingsError(f"launch.image = {image!r} does not name an image", f"for example {IMAGES['bridge']}")
    return image


def run_options(request: StepRequest) -> Words:
    """The options before mounts and environment; those of the tutorial and what they lack."""
    words: list[str] = ["run", "--rm", "--name", request.name]
    # docker's own detach keys, Ctrl+P Ctrl+Q, are keys that people type.
    words += ["--detach-keys", _DETACH_KEYS, "--ipc=host", "--network=host"]
    if request.runtime == "podman":
        words += ["--security-opt=label=disable"]
    if request.runtime == "podman" and request.user[0] != 0:
        words += ["--ulimit=host"]  # without root podman cannot raise a limit above its caller's
    else:
        words += ["--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]
    if request.runtime != "podman":
        words += ["--init"]  # docker brings it along, podman needs a package for it
    if request.device == "gpu":
        words += ["--device", "nvidia.com/gpu=all"] if request.runtime == "podman" else ["--gpus", "all"]
    return (*words, *user_options(request))


def user_options(request: StepRequest) -> Words:
    """Who runs inside: the person, so that no file of the run becomes root's."""
    user, group = request.user
    if request.runtime == "podman" and user != 0:
        return ("--userns=keep-id",)
    return ("--user", f"{user}:{group}")


def home(request: StepRequest) -> Words:
    """A home for a user whom the image does not know: caches need one, and torch asks for the name."""
    words: Words = ("--env", "HOME=/tmp", "--env", "USER=gptoss")
    return (*words, "--env", f"HF_HOME={request.caches[0]}") if request.caches else words


def stop(request: StepRequest) -> tuple[str, ...]:
    """Signal the ranks inside; failing that, torchrun, which passes it on."""
    quote = Quoter(request.run)
    name, script = quote(request.name), quote(str(request.attempt / signals.NAME))
    return (
        f'"$CONTAINER_RUNTIME" exec {name} bash {script} stop ||',
        f'  "$CONTAINER_RUNTIME" stop --time {request.settings.launch.grace_s} {name}',
    )


def stacks(request: StepRequest) -> tuple[str, ...]:
    quote = Quoter(request.run)
    return (
        f'"$CONTAINER_RUNTIME" exec {quote(request.name)} bash {quote(str(request.attempt / signals.NAME))} stacks',
    )


def kill(request: StepRequest) -> tuple[str, ...]:
    return (f'"$CONTAINER_RUNTIME" rm --force {Quoter(request.run)(request.name)}',)


def mounted(request: StepRequest) -> tuple[Path, ...]:
    """What the step reads and writes outside the image, without what lies within another one."""
    settings = request.settings
    wanted = [request.run, *request.caches]
    checkout = settings.launch.megatron_lm if settings.launch.route != "bridge" else ""
    for text in (settings.model.path, settings.model.checkpoint, settings.data.tokenizer, checkout):
        if text:
            wanted.append(expanded(text).absolute())
    if settings.data.path and not settings.data.path.startswith(HUB_PREFIX):
        path = expanded(settings.data.path).absolute()
        # A prefix or a pattern is no file itself: its directory is.
        path = path.parent if settings.data.source == "prefix" else path
        while glob.has_magic(str(path)):
            path = path.parent
        wanted.append(path)
    return tuple(path for path in dict.fromkeys(wanted) if not any(other in path.parents for other in wanted))


def bind(source: Path, target: Path | str, *, read_only: bool = False) -> Words:
    """One mount. `--mount` refuses a missing source; `-v` would make an empty directory that is root's.

    Raises SettingsError for a path that the option's own syntax cannot hold.
    """
    for path in (str(source), str(target)):
        if any(letter in path for letter in ',"\n') or ":" in path:
            raise SettingsError(f"{path!r} cannot be mounted: it holds a comma, colon or quote", "rename the directory")
    end = ",readonly" if read_only else ""
    return ("--mount", f"type=bind,source={source},target={target}{end}")


def extra_options(launch: LaunchSettings) -> Words:
    """The words of `launch.container_options`. Raises SettingsError for an open quote or no option."""
    try:
        words = shlex.split(launch.container_options)
    except ValueError as error:
        raise SettingsError(f"launch.container_options: {error}", "close the quote") from error
    if words and not words[0].startswith("-"):
        raise SettingsError(f"launch.container_options: {words[0]!r} is no option", "for example --memory 64g")
    return tuple(words)


def extra_mounts(launch: LaunchSettings) -> Words:
    """The mounts of `launch.mounts` as options. Raises SettingsError for one that is not SOURCE:TARGET[:ro]."""
    return tuple(word for source, target, read_only in parse_mounts(launch)
                 for word in bind(source, target, read_only=read_only))  # fmt: skip


def parse_mounts(launch: LaunchSettings) -> list[tuple[Path, str, bool]]:
    """Source, target and whether it is only read, of each of `launch.mounts`. Raises SettingsError."""
    found = []
    for text in filter(None, (part.strip() for part in launch.mounts.split(","))):
        parts = text.split(":")
        if len(parts) not in (2, 3) or not parts[1].startswith("/") or parts[2:] not in ([], ["ro"], ["rw"]):
            raise SettingsError(
                f"launch.mounts: {text!r} is not SOURCE:TARGET or SOURCE:TARGET:ro", "for example /data:/data:ro"
            )
        found.append((expanded(parts[0]).absolute(), parts[1], parts[2:] == ["ro"]))
    return found
