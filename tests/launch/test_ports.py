"""The port that the ranks of one machine meet at."""

from __future__ import annotations

import random
import socket

import pytest

from engine.errors import LaunchError
from engine.launch import local


def test_a_seed_does_not_decide_the_port() -> None:
    def ports() -> list[int]:
        random.seed(7)
        return [local.free_port() for _ in range(4)]

    first, second = ports(), ports()
    assert first != second
    assert all(20_000 <= port < 32_000 for port in (*first, *second))  # below what outgoing connections take


def test_a_port_that_is_taken_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        taken.listen()
        assert local.free_port(port) != port
        monkeypatch.setattr(local, "_OWN_PORTS", (port, port + 1))
        with pytest.raises(LaunchError, match="are all in use"):
            local.free_port()
