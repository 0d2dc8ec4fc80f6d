"""What the tests of the chats share: a real file in a folder of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from localchat.chats.store import Chats

# Noisy machines: a slow example is not a failed one. A failure prints what reproduces it.
hypothesis.settings.register_profile("chats", deadline=None, print_blob=True)
hypothesis.settings.load_profile("chats")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chats" / "chats.db"


@pytest.fixture
def chats(file: Path) -> Iterator[Chats]:
    store = Chats(file)
    yield store
    store.close()


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("LOCALCHAT_TEST_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    return random.Random(seed)
