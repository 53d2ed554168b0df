"""`python -m tests.fuzz.run`: many cases for each harness, by mutation of real inputs, or guided by coverage.

    python -m tests.fuzz.run --cases 1000000 [HARNESS ...]   # `make fuzz`
    python -m tests.fuzz.run --atheris --seconds 600 [HARNESS ...]  # needs `pip install atheris`

A case that raises, or takes more than a second of processor time, is written to a file and ends the harness.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.harnesses import ALL, BY_NAME, WORDS, Harness

LIMIT_S = 1.0


def mutate(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds with a few changes."""
    data = bytearray(chance.choice(seeds))
    if chance.random() < 0.5 and len(data) > 400:
        at = chance.randrange(len(data) - 200)
        data = data[at : at + chance.randrange(1, 400)]  # short ones are faster, and change more of what is read
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at:at] = chance.choice(WORDS)
            case 1:
                del data[at : at + chance.randrange(1, 16)]
            case 2 if at < len(data):
                data[at] = chance.randrange(256)
            case 3 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 32)] * chance.randrange(1, 4)
            case _:
                word = chance.choice(WORDS)
                data[at : at + len(word)] = word
    return bytes(data)


class TooSlow(Exception):
    """A case took longer than a second of processor time."""


def _too_slow(number: int, frame: object) -> None:
    raise TooSlow(f"a case took more than {LIMIT_S} s of processor time")


def limited(harness: Harness, data: bytes) -> None:
    """One case. Raises what the harness raises, and TooSlow."""
    signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        harness(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def fuzz(harness: Harness, cases: int, seconds: float, seed: int) -> int:
    """Run up to `cases` cases for up to `seconds`; return how many. Raises what a case raised, its input kept."""
    chance, seeds = random.Random(seed), harness.seeds()
    began = told = time.monotonic()
    done = 0
    while done < cases and (done % 256 or time.monotonic() < began + seconds):
        if done % 256 == 0 and time.monotonic() > told + 60:
            told = time.monotonic()
            print(f"{harness.name}: {done:,} cases of seed {seed} so far", flush=True)
        data = mutate(chance, seeds)
        try:
            limited(harness, data)
        except BaseException:
            kept = Path(f"fuzz-{harness.name}.case")
            kept.write_bytes(data)
            print(f"{harness.name}: case {done} of seed {seed} is in {kept}", flush=True)
            raise
        done += 1
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument("harness", nargs="*", help=", ".join(BY_NAME))
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop each harness after this long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="by coverage instead of at random, for --seconds")
    arguments = parser.parse_args()
    # Few variables, for all are looked through at every redaction; one of them is a secret.
    os.environ.clear()
    os.environ.update(HOME="/nonexistent", HF_TOKEN="hf_" + "canary" * 6)
    chosen = [BY_NAME[name] for name in arguments.harness] or list(ALL)
    if arguments.atheris:
        for harness in chosen:
            command = [sys.executable, "-m", "tests.fuzz.guided", harness.name, str(min(arguments.seconds, 1e9))]
            subprocess.run(command, check=True)
        return 0
    for harness in chosen:
        began = time.monotonic()
        done = fuzz(harness, arguments.cases, arguments.seconds, arguments.seed)
        print(f"{harness.name}: {done:,} cases in {time.monotonic() - began:,.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
