"""The exception tree and the exit codes. Every branch is something a person can act on.

EngineError
├── SettingsError    a value, a preset or a file that a person wrote is wrong
├── PlanError        the settings contradict each other or the machine
├── PreflightError   a check before the start refused the run
├── NotFoundError    a run, a preset or a file that was named does not exist
├── RunError         a run directory cannot be used as asked (exists, busy, newer, read-only)
├── CheckpointError  a checkpoint is damaged, incomplete or of another kind
├── UnreadableError  a run or a checkpoint could not be read; it is both of these
├── LaunchError      a step could not be started
└── StepFailed       a step was started and failed
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What `gptoss` returns to the shell; documented in docs/cli.md."""

    DONE = 0
    STEP_FAILED = 1
    BAD_INPUT = 2
    PREFLIGHT_REFUSED = 3
    NOT_FOUND = 4
    INTERRUPTED = 130


class EngineError(Exception):
    """An error with a sentence for the person and the next thing to try."""

    exit_code = ExitCode.STEP_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(EngineError):
    exit_code = ExitCode.BAD_INPUT


class PlanError(EngineError):
    exit_code = ExitCode.BAD_INPUT


class PreflightError(EngineError):
    exit_code = ExitCode.PREFLIGHT_REFUSED


class NotFoundError(EngineError):
    exit_code = ExitCode.NOT_FOUND


class RunError(EngineError):
    exit_code = ExitCode.BAD_INPUT


class CheckpointError(EngineError):
    exit_code = ExitCode.BAD_INPUT


class UnreadableError(RunError, CheckpointError):
    """An I/O error or a missing right. It says nothing of what is there: nothing may be moved or made anew for it."""

    @classmethod
    def of(cls, path: object, error: OSError) -> UnreadableError:
        """What `error` means for `path`."""
        return cls(f"{path} cannot be read: {error.strerror or error}", "check its disk or share, and its permissions")


class LaunchError(EngineError):
    exit_code = ExitCode.STEP_FAILED


class StepFailed(EngineError):
    exit_code = ExitCode.STEP_FAILED
