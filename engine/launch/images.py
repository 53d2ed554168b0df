"""A step in an image without a daemon: apptainer and enroot.

Both run as the caller and in the caller's process tree, so that signals and `signal.sh` reach the ranks from outside.
Everything is mounted under the path it has outside, as in `container.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.errors import SettingsError
from engine.launch import container, local
from engine.launch.command import Command, StepRequest, Words
from engine.launch_settings import LaunchSettings
from engine.paths import expanded

FILES = (".sif", ".sqsh")
"""Endings of images that are files: apptainer's and enroot's."""

# enroot starts what was unpacked once; a second run of the same name finds it there.
_UNPACK = """\
if ! enroot list | grep -qxF -- "$CONTAINER"; then
  file="$IMAGE"
  if [[ "$file" != *.sqsh ]]; then
    file="$RUN_DIR"/image.sqsh
    [ -f "$file" ] || enroot import --output "$file" "docker://$IMAGE"
  fi
  enroot create --name "$CONTAINER" "$file"
fi"""


def apptainer(request: StepRequest) -> Command:
    """The step as an apptainer command. Raises SettingsError for an image or mount that cannot be."""
    inner = local.on_node(request)
    return replace(
        inner,
        argv=(*apptainer_words(request, inner.cwd), "$IMAGE", *inner.argv),
        env={**inner.env, **_cache(request)},  # apptainer passes its caller's environment on
        cwd=None,
        variables={"IMAGE": source(request.settings.launch, "apptainer"), **inner.variables},
        makes=(request.attempt, *request.caches),
    )


def apptainer_words(request: StepRequest, cwd: Path | None = None) -> Words:
    """`apptainer exec` with its options, up to the image."""
    flag = ("--nv",) if request.device == "gpu" else ()
    return ("apptainer", "exec", *flag, "--bind", ",".join(mounts(request)), "--pwd", str(cwd or request.run))


def enroot(request: StepRequest) -> Command:
    """The step as an enroot command. Raises SettingsError for an image or mount that cannot be."""
    inner = local.on_node(request)
    environment = {**inner.env, "HOME": "/tmp", "USER": "gptoss", **_cache(request)}
    for mount in (found := mounts(request)):
        if len(mount.split()) != 1:
            raise SettingsError(f"enroot cannot mount {mount!r}: it holds white space", "rename the directory")
    return replace(
        inner,
        argv=(
            "enroot", "start", "--rw",
            *(word for mount in found for word in ("--mount", mount)),
            *(word for key, value in environment.items() for word in ("--env", f"{key}={value}")),
            *(word for name in container.PASSED_BY_NAME for word in ("--env", name)),
            # It has no option for the working directory.
            "$CONTAINER", "env", f"--chdir={inner.cwd or request.run}", *inner.argv,
        ),
        env={},
        cwd=None,
        variables={"IMAGE": source(request.settings.launch, "enroot"), "CONTAINER": request.run_label,
                   **inner.variables},
        makes=(request.attempt, *request.caches),
        once=tuple(_UNPACK.splitlines()),
    )  # fmt: skip


def mounts(request: StepRequest) -> list[str]:
    """SOURCE:TARGET[:ro] of everything that the step reads and writes. Raises SettingsError for one that cannot be."""
    paths = container.mounted(request)
    for path in paths:
        container.bind(path, path)
    extra = container.parse_mounts(request.settings.launch)
    return [f"{path}:{path}" for path in paths] + [
        f"{source}:{target}" + (":ro" if read_only else "") for source, target, read_only in extra
    ]


def source(launch: LaunchSettings, program: str) -> str:
    """What `apptainer`, `enroot` or `pyxis` is told to start. Raises SettingsError for what names no image."""
    if launch.image.endswith(FILES):
        file = str(expanded(launch.image))
        container.bind(Path(file), file)
        return file
    image = container.image_for(launch)
    if program == "apptainer":
        return f"docker://{image}"
    # enroot, and pyxis through it, write the registry before a '#'.
    registry, slash, name = image.partition("/")
    return f"{registry}#{name}" if slash and "." in registry else image


def _cache(request: StepRequest) -> dict[str, str]:
    return {"HF_HOME": str(request.caches[0])} if request.caches else {}
