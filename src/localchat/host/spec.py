"""From a name to what the engine loads: the one place where the host asks the store."""

from __future__ import annotations

from localchat.engine.job import ModelSpec
from localchat.models import store


def spec_of(name: str, *, may_hash: bool = True) -> ModelSpec:
    """What the engine must know of the model that goes by `name` ("" is the one used last).

    Without `may_hash`, raises `NeedsVerification` where a file would have to be read to its end first.
    """
    file = store.resolve(name, may_hash=may_hash)
    status = file.path.stat()
    return ModelSpec(file.name, file.path, file.sampling, (status.st_size, status.st_mtime_ns, status.st_ino))
