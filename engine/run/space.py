"""Room for the next checkpoint: how much it takes, and what may go before a save would be cut short."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from engine import models
from engine.checkpoints import training
from engine.errors import SettingsError
from engine.plan import finetune
from engine.run import rotation, validation
from engine.run.directory import RunDirectory
from engine.settings import Settings

GIB = 1 << 30
CHECKPOINT_BYTES = {"bf16": 14, "fp32": 12}
"""Bytes per parameter of a checkpoint: bf16 weights, fp32 master weights and two fp32 moments;
in fp32 the weights are their own master."""
NEAR_S = 30.0
"""How long before the next save the room is made sure of."""
LASTS_S = 1.5
"""How long a shortage must last: more than one look."""


def checkpoint_bytes(settings: Settings) -> int:
    """What one checkpoint takes by the number of trained parameters; 0 when the model is not known."""
    try:
        model = models.find(settings)
    except SettingsError:
        return 0
    return finetune.trained_parameters(settings, model) * CHECKPOINT_BYTES[settings.training.precision]


class SpaceGuard:
    """Judges, as a save comes near, whether it can be written."""

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        self._run, self._settings = run, settings
        self.need_bytes = checkpoint_bytes(settings)
        """Measured as soon as there is a checkpoint."""
        self._measured: int | None = None
        self._last: tuple[int, float] | None = None
        self._iteration_s: float | None = None
        self._short_since: float | None = None

    def look(self, iteration: int | None, now: float | None = None) -> str | None:
        """Call it about once a second; a sentence once the next save would surely be cut short."""
        now = time.monotonic() if now is None else now
        self._measure()
        self._note_pace(iteration, now)
        if iteration is None or not self._expects_save(iteration) or self.free_bytes() is None:
            self._short_since = None
            return None
        if self._has_room() or self._make_room():
            self._short_since = None
            return None
        self._short_since = now if self._short_since is None else self._short_since
        if now - self._short_since < LASTS_S:
            return None
        free, last = self.free_bytes() or 0, self._run.last_checkpoint()
        return (
            f"no room for the checkpoint of iteration {self._next_save(iteration)}: it takes "
            f"{self.need_bytes / GIB:,.1f} GiB and {free / GIB:,.1f} GiB are free; the last one is of iteration "
            f"{last if last is not None else 'none'}"
        )

    def _expects_save(self, iteration: int) -> bool:
        """True when a save comes near that is neither done nor under way."""
        last = self._run.last_checkpoint()
        is_over = last is not None and last >= self._settings.training.iterations
        return not is_over and self._is_near(iteration) and not self._is_saving()

    def free_bytes(self) -> int | None:
        """What the disk has left, or None while it does not answer."""
        try:
            return shutil.disk_usage(self._run.path).free
        except OSError:
            return None

    def _has_room(self) -> bool:
        free = self.free_bytes()
        return free is None or free >= self.need_bytes

    def _make_room(self) -> bool:
        """Delete as much as is needed of what the rotation would delete anyway, or nothing where that is too little.

        Never the newest whole checkpoint.
        """
        aside = sorted(self._run.checkpoints.glob(training.ASIDE + "iter_*"))
        older = rotation.may_go(self._run, self._settings, 1) if self._settings.output.keep_checkpoints else []
        candidates = [*aside, *(training.directory(self._run.checkpoints, iteration) for iteration in older)]
        if (self.free_bytes() or 0) + sum(map(_size_bytes, candidates)) < self.need_bytes:
            return False
        for candidate in candidates:
            if self._has_room():
                break
            shutil.rmtree(candidate, ignore_errors=True)
        return self._has_room()

    def _measure(self) -> None:
        newest = self._run.last_checkpoint()
        if newest is None or newest == self._measured:
            return
        # One that was cut short is smaller than the next one will be.
        if rotation.is_whole(self._run, self._settings, newest):
            size = _size_bytes(training.directory(self._run.checkpoints, newest))
            self.need_bytes = size or self.need_bytes
        self._measured = newest

    def _note_pace(self, iteration: int | None, now: float) -> None:
        if iteration is None:
            return
        if self._last and iteration > self._last[0]:
            self._iteration_s = (now - self._last[1]) / (iteration - self._last[0])
        if self._last is None or iteration != self._last[0]:
            self._last = (iteration, now)

    def _next_save(self, iteration: int) -> int:
        chosen = self._settings.training
        return min((iteration // chosen.checkpoint_interval + 1) * chosen.checkpoint_interval, chosen.iterations)

    def _is_near(self, iteration: int) -> bool:
        left = self._next_save(iteration) - iteration
        return left <= 1 or (self._iteration_s is not None and left * self._iteration_s <= NEAR_S)

    def _is_saving(self) -> bool:
        """True while a checkpoint is written, or older ones are being removed after that."""
        there = training.iterations(self._run.checkpoints)
        keep = self._settings.output.keep_checkpoints
        kept = keep + (validation.spared(self._run, self._settings) is not None)
        return bool(there) and (there[0] != self._run.last_checkpoint() or bool(keep and len(there) > kept))


def _size_bytes(checkpoint: Path) -> int:
    try:
        return training.size_bytes(checkpoint)
    except OSError:
        return 0  # it was just removed
