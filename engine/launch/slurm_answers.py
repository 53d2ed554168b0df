"""What Slurm says of a job and of a refused one, in words. Reads text and asks nobody."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """What Slurm says of a job."""

    state: str
    """Slurm's own word: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, NODE_FAIL, PREEMPTED, …"""
    reason: str = ""
    start: str = ""
    """When it is expected to start, as Slurm prints it."""
    nodes: str = ""
    exit_code: str = ""

    @property
    def is_over(self) -> bool:
        return self.state not in _UNFINISHED

    @property
    def hopeless(self) -> tuple[str, str] | None:
        """Why a waiting job will never start, and what to change; None when it may."""
        return _HOPELESS.get(self.reason) if self.state == "PENDING" else None

    @property
    def sentence(self) -> str:
        """The state as a person says it."""
        if self.state == "PENDING":
            expected = (
                f"; expected to start {self.start}" if self.start and self.start not in ("N/A", "Unknown") else ""
            )
            return f"waiting in the queue ({_REASONS.get(self.reason, self.reason) or 'no reason given'}){expected}"
        if self.state == "RUNNING":
            return f"running on {self.nodes}"
        return _ENDINGS.get(self.state, self.state.lower().replace("_", " "))


_UNFINISHED = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD",
               "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
               "RESV_DEL_HOLD"}  # fmt: skip
_REASONS = {
    "None": "",
    "Resources": "no free nodes yet",
    "Priority": "other jobs come first",
    "Dependency": "another job must end first",
    "BeginTime": "it was put back and may start again in about two minutes",
    "QOSMaxJobsPerUserLimit": "your limit of running jobs is reached",
    "AssocGrpGRES": "the account's limit of GPUs is reached",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "launch failed requeued held": "a node could not start it; see `scontrol show job`",
    "JobHeldUser": "it is held; release it with scontrol release",
    "JobHeldAdmin": "an administrator holds it",
}
_HOPELESS = {
    "PartitionTimeLimit": ("launch.time_limit is longer than the partition allows", "compare with: sinfo -o '%P %l'"),
    "PartitionNodeLimit": ("the partition allows no job of so many nodes", "compare with: sinfo -o '%P %D %s'"),
    "PartitionConfig": ("the partition has no such nodes or not so many", "compare with: sinfo -o '%P %D %c %m %G'"),
    "BadConstraints": ("no node has what launch.slurm_options asks for", "compare with: sinfo -o '%P %f'"),
    "AccountNotAllowed": (
        "your account may not use this partition",
        "--set launch.account=NAME or launch.partition=NAME",
    ),
    "QOSNotAllowed": ("this quality of service may not use the partition", "--set launch.qos=NAME"),
    "InvalidAccount": ("Slurm does not know the account", "--set launch.account=NAME"),
    "InvalidQOS": ("Slurm does not know the quality of service", "--set launch.qos=NAME"),
    "PartitionDown": ("the partition is down", "see: sinfo; --set launch.partition=NAME"),
    "PartitionInactive": ("the partition is inactive", "see: sinfo; --set launch.partition=NAME"),
}
_ENDINGS = {
    "COMPLETED": "completed",
    "CANCELLED": "cancelled with scancel",
    "TIMEOUT": "ended by Slurm at its time limit: raise launch.time_limit or lower training.checkpoint_interval",
    "NODE_FAIL": "ended because a node failed",
    "PREEMPTED": "ended because a job of higher priority took its nodes",
    "OUT_OF_MEMORY": "ended because it used more memory than Slurm allows: --set launch.slurm_options=--mem=0",
    "BOOT_FAIL": "ended because a node did not boot",
    "DEADLINE": "ended at its deadline",
}


def parse_squeue(text: str) -> JobState | None:
    """The answer to `squeue --noheader --format '%T|%r|%S|%N'`; None when it knows no such job."""
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 4 and parts[0]:
            return JobState(state=parts[0], reason=parts[1].strip("()"), start=parts[2], nodes=parts[3])
    return None


def parse_job(text: str) -> JobState | None:
    """The answer to `scontrol --oneliner show job`."""
    facts = dict(re.findall(r"(\S+?)=(\S*)", text))
    if "JobState" not in facts:
        return None
    return JobState(
        state=facts["JobState"],
        reason=facts.get("Reason", ""),
        start=facts.get("StartTime", ""),
        nodes=facts.get("NodeList", ""),
        exit_code=facts.get("ExitCode", ""),
    )


def parse_sacct(text: str) -> JobState | None:
    """The answer to `sacct --noheader --parsable2 --allocations --format State,ExitCode`."""
    for line in text.splitlines():
        state, _, exit_code = line.strip().partition("|")
        if state:
            return JobState(state=state.split()[0], exit_code=exit_code)
    return None


def refusal(text: str) -> tuple[str, str]:
    """What sbatch's refusal means, and the next thing to try."""
    for pattern, meaning, fix in _REFUSALS:
        if pattern in text:
            return meaning, fix
    return (
        f"sbatch refused the job: {text.strip().splitlines()[-1] if text.strip() else 'no reason given'}",
        "man sbatch",
    )


_REFUSALS = (
    ("invalid partition", "Slurm has no such partition",
     "list them with: sinfo --summarize; --set launch.partition=NAME"),
    ("Invalid account", "Slurm refuses this account or partition for you",
     "list yours with: sacctmgr show associations user=$USER; --set launch.account=NAME"),
    ("Invalid qos", "Slurm has no such quality of service for you", "--set launch.qos=NAME"),
    ("node configuration is not available", "no node of the partition has what the job asks for",
     "compare with: sinfo -o '%P %D %c %m %G'; lower machine.gpus_per_node or choose another partition"),
    ("Node count specification invalid", "the partition allows no job of so many nodes", "lower machine.nodes"),
    ("Requested time limit is invalid", "the time limit is longer than the partition allows",
     "see: sinfo -o '%P %l'; --set launch.time_limit=HH:MM:SS"),
    ("Invalid --time", "Slurm cannot read the time limit", "--set launch.time_limit=HH:MM:SS"),
    ("Unable to contact slurm controller", "the Slurm controller does not answer", "try again, or ask: scontrol ping"),
)  # fmt: skip
