"""What all tests of the engine share."""

from __future__ import annotations

import math

import pytest

from localchat.engine import seats


@pytest.fixture(autouse=True)
def many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy models weigh nothing, so any score is dear beside their weights: let many run together all the same."""
    monkeypatch.setattr(seats, "_FLOPS_PER_BYTE", math.inf)
