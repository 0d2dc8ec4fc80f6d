"""The machine as it is now, for the commands that say what a model would be like on it."""

from __future__ import annotations

from localchat.client import measured
from localchat.client.local import held_by_engine
from localchat.machine import Machine
from localchat.models.assess import Circumstances


def circumstances(machine: Machine, context: int | None) -> Circumstances:
    """What holds now with these figures; what an engine of ours holds counts as free, as it takes one model at a time.

    Devices are looked for only where some were measured: that starts a process. `context` (tokens) None: the usual one.
    """
    return Circumstances.now(
        machine=machine, context=context, freed=held_by_engine(), devices=measured.gpus() if machine.devices else ()
    )
