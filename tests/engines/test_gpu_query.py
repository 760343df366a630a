"""What the driver is asked about the GPU, with a driver that is not one."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from liveedit.engines import gpu


class Driver:
    """CUDA's calls for one card. ``broken`` is the call that fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA L40S"
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 13020
            return int(name == self.broken)

        return call


def test_the_first_card_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert gpu.compute_capability() == "sm89"
    assert gpu.name_and_driver() == ("NVIDIA L40S", "13.2")


@pytest.mark.parametrize("broken", ["cuInit", "cuDeviceGet"])
def test_a_call_that_fails_means_no_card(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(broken))
    assert gpu.compute_capability() is None
    assert gpu.name_and_driver() is None


def test_no_driver_means_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.compute_capability() is None
    assert gpu.name_and_driver() is None
