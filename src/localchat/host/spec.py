"""From a name to what the engine loads: the one place where the host asks the store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from localchat.engine.job import ModelSpec, version_of
from localchat.engine.offload import Weights
from localchat.errors import NoSuchModel
from localchat.models import store
from localchat.paths import check_utf8
from localchat.safe_text import safe_line
from localchat.trials import key_of, tuning_of
from localchat.tuning import Tuning


def spec_of(name: str, *, may_hash: bool = True) -> ModelSpec:
    """What the engine must know of the model that goes by `name` ("" is the one verified last).

    Without `may_hash`, raises `NeedsVerification` where a file would have to be read to its end first; raises what
    `store.resolve` raises, and `UsageError` for a file whose name cannot be said in JSON.
    """
    file = store.resolve(name, may_hash=may_hash)
    check_utf8(file.path)
    try:
        version = version_of(file.path.stat())
    except OSError as error:
        # Another process removes models too.
        raise NoSuchModel(f"{safe_line(file.name)} cannot be read any more ({error.strerror}): ask again") from error
    tuning = tuning_of(key_of(file.sha256, file.path, file.size))
    weights: Callable[[], Weights] = partial(_weights, file.path, tuning)
    return ModelSpec(file.name, file.path, file.sampling, version, weights, file.sha256 or "", tuning)


def _weights(path: Path, tuning: Tuning) -> Weights:
    """Where the model's bytes are, and how many of its layers fit a GPU. Raises `DamagedFile`."""
    from localchat.models import fit, shape
    from localchat.models.gguf import joined, read_header, shards

    header = joined([read_header(part) for part in shards(path)])
    of_model = shape.of_header(header)
    head = sum(header.weights.get("embedding" if header.is_tied else "head", {}).values())

    def fitting(context: int, room: int) -> int:
        window = min(context, header.context or context)
        return fit.layers_on_gpu(of_model, header.layer_bytes, head, window, room, tuning=tuning)

    return Weights(header.layer_bytes, head, header.is_tied, fitting)
