"""A call that does not come back holds up nobody."""

from __future__ import annotations

import threading

import pytest

from engine import patience
from engine.patience import NoAnswer, Patient


@pytest.fixture
def gate():
    """Calls wait at it until the test is over."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_an_answer_and_an_error_pass_through():
    assert patience.within(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        patience.within(lambda: open("/nowhere/at/all"))


def test_one_that_is_silent_is_given_up_and_the_others_are_asked(gate):
    def call(item: str) -> str:
        if item.startswith("silent"):
            gate.wait()
        return item.upper()

    found = dict(patience.each(["near", "silent-1", "silent-2", "far"], call, 0.2))
    assert (found["near"], found["far"]) == ("NEAR", "FAR")
    assert isinstance(found["silent-1"], NoAnswer) and "no answer within" in str(found["silent-2"])


def test_what_has_not_come_back_is_not_asked_again(gate):
    asked = threading.Semaphore(0)

    def call(item: str) -> None:
        asked.release()
        gate.wait()

    before = threading.active_count()
    for _ in range(5):
        [(_, answer)] = patience.each(["asked once"], call, 0.1)
        assert isinstance(answer, NoAnswer)
    assert asked.acquire(blocking=False) and not asked.acquire(blocking=False)
    assert threading.active_count() <= before + 1


def test_one_line_of_calls_goes_on_when_the_silence_ends(gate):
    patient = Patient(0.1)
    with pytest.raises(NoAnswer):
        patient.call(gate.wait)
    with pytest.raises(NoAnswer):
        patient.call(lambda: 1)
    gate.set()
    while patient.is_waiting:
        pass
    patient.seconds = 60
    assert patient.call(lambda: 2) == 2
    patient.close()
