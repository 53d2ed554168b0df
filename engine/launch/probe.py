"""What a node of the ssh launcher is asked before the start, and what its answers mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.findings import Finding, error, warning

MAX_CLOCK_DIFFERENCE_S = 2.0
PACKAGES = ("python", "torch", "megatron-core", "megatron-bridge", "transformers", "transformer-engine")

SCRIPT = r"""
set -u
python="$1" token="$2" address="$3" port="$4"
echo "time=$(date +%s.%N)"
echo "gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' 2>/dev/null | wc -l)"
echo "shared=$(cat -- "$token" 2>/dev/null)"
reached="$(timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$address" "$port" 2>&1)"
case "$?:$reached" in
  0:*) echo "master=open" ;;
  *refused*) echo "master=free" ;;
  124:*) echo "master=no answer" ;;
  *) echo "master=${reached##*: }" ;;
esac
"$python" - <<'END' || echo "python=$python cannot be started"
import platform, importlib.metadata as m
print("python=" + platform.python_version())
for name in ("torch", "megatron-core", "megatron-bridge", "transformers", "transformer-engine"):
    try: print(name + "=" + m.version(name))
    except m.PackageNotFoundError: print(name + "=missing")
END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one node said."""

    host: str
    failure: str = ""
    """What ssh said when the node could not be asked."""
    asked_at: float = 0.0
    """Unix seconds here, half way between question and answer."""
    facts: Mapping[str, str] = field(default_factory=dict)


def parse(text: str) -> dict[str, str]:
    """The facts of an answer; lines of a login banner are passed over."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip() for name, equals, value in pairs if equals and name in _NAMES}


_NAMES = {"time", "gpus", "shared", "master", *PACKAGES}


def judge(answers: Sequence[Answer], *, token: str, gpus: int, address: str, port: int) -> tuple[Finding, ...]:
    """What would keep these nodes from training together."""
    dead = [answer for answer in answers if answer.failure]
    if dead:
        return tuple(_unreachable(answer) for answer in dead)
    found = [_unshared(answer) for answer in answers if answer.facts.get("shared") != token]
    found += _clocks(answers)
    found += _versions(answers)
    found += [_gpus(answer, gpus) for answer in answers if gpus and answer.facts.get("gpus") != str(gpus)]
    found += [
        _master(answer, answers[0].host, address, port) for answer in answers if answer.facts.get("master") != "free"
    ]
    return tuple(found)


def _unreachable(answer: Answer) -> Finding:
    fix = f"try: ssh -o BatchMode=yes {answer.host} true"
    if "Permission denied" in answer.failure:
        fix = f"give it your key: ssh-copy-id {answer.host}"
    elif "resolve" in answer.failure:
        fix = "correct the name in machine.hosts, or use its address"
    return error("ssh.reach", f"{answer.host} cannot be reached: {answer.failure}", "Every node must answer.", fix)


def _unshared(answer: Answer) -> Finding:
    return error(
        "ssh.shared",
        f"{answer.host} does not see the run's directory",
        "All nodes read the data and write the checkpoint in one place.",
        "--set output.directory=DIR on storage that every node mounts under the same path",
    )


def _clocks(answers: Sequence[Answer]) -> list[Finding]:
    offsets: dict[str, float] = {}
    for answer in answers:
        try:
            offsets[answer.host] = float(answer.facts["time"]) - answer.asked_at
        except (KeyError, ValueError):
            continue
    if not offsets:
        return []
    apart = max(offsets.values()) - min(offsets.values())
    if apart <= MAX_CLOCK_DIFFERENCE_S:
        return []
    late, early = min(offsets, key=offsets.__getitem__), max(offsets, key=offsets.__getitem__)
    what = f"the clocks of {late} and {early} are {apart:.1f} s apart"
    return [
        warning("ssh.clock", what, "The earliest error among the ranks cannot be told then.", "start chrony or ntpd")
    ]


def _versions(answers: Sequence[Answer]) -> list[Finding]:
    found = []
    for package in PACKAGES:
        versions = {answer.host: answer.facts.get(package, "unknown") for answer in answers}
        if len(set(versions.values())) <= 1:
            continue
        usual = Counter(versions.values()).most_common(1)[0][0]
        others = ", ".join(f"{version} on {host}" for host, version in versions.items() if version != usual)
        found.append(error("ssh.versions", f"{package} is {usual} on most nodes, but {others}",
                           "Ranks of different versions hang or compute different things.",
                           "install the same environment everywhere, or share it", ignorable=True))  # fmt: skip
    return found


def _gpus(answer: Answer, gpus: int) -> Finding:
    what = f"{answer.host} has {answer.facts.get('gpus', 'an unknown number of')} GPUs and the plan uses {gpus} a node"
    fix = "set machine.gpus_per_node to the smallest number"
    return error("ssh.gpus", what, "Every node starts as many ranks.", fix, ignorable=True)


def _master(answer: Answer, first: str, address: str, port: int) -> Finding:
    said = answer.facts.get("master", "no answer")
    if said == "open":
        return error("ssh.port", f"port {port} of {address} is taken", "The ranks could not meet there.",
                     "--set launch.master_port=N with a free one")  # fmt: skip
    return error("ssh.master", f"{answer.host} cannot reach {address}, the first node's address: {said}",
                 "The ranks meet there.", "--set launch.master_addr=ADDRESS with one of "
                 f"{first} that every node reaches, and open its ports")  # fmt: skip
