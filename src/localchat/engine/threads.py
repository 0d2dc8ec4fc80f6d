"""How many threads compute: for decoding a token, and for reading a prompt."""

from __future__ import annotations

from localchat.hardware import usable_cores
from localchat.settings import settings


def compute_threads() -> int:
    """The person's choice, else one for each physical core that this process may use.

    llama.cpp's threads wait for each other by spinning, so one thread more than there are cores costs far more than it
    brings.
    """
    return settings().threads or usable_cores()
