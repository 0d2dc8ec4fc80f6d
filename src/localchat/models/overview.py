"""The overview of models: what is here and what could be, each with what it would be like on this machine.

One row a model: installed files first, then the catalogue in its order, or what a search of the hub found.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

import msgspec

from localchat import trials
from localchat.errors import FetchError, LocalchatError
from localchat.models import about, plan, store
from localchat.models.about import About
from localchat.models.assess import READABLE_DECODE, Assessment, Circumstances, assess
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.fit import Verdict
from localchat.models.store import ModelFile
from localchat.models.upkeep import projectors

if TYPE_CHECKING:
    from localchat.models.repos import Repo

_ASKED_AT_ONCE = 8
_SEARCH_S = 30.0
# A model that thinks before each answer says several times as many tokens.
_THINKING_TAKES = 2.0


class Row(msgspec.Struct, kw_only=True):
    """One model in one quantization. Sizes and memory are bytes, contexts tokens, speeds tokens/s; None: not known.

    `memory` is what it needs with a window of `context` tokens (`trained` is the largest). `estimated`: the figures
    stand on what is usual, as its size or shape is not known yet. `measured`: the speed was measured with this model
    (`localchat bench`), not concluded from the machine's kernels. `recommended` is the reason, for the one that is.
    """

    name: str
    quantization: str
    size: int | None
    trained: int | None = None
    abilities: list[str] = []
    license: str | None = None
    parameters: int | None = None
    context: int = 0
    memory: int | None = None
    fits: Verdict | None = None
    tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None
    gpu_tokens_per_second: float | None = None
    gpu_layers: int | None = None
    layers: int | None = None
    estimated: bool = False
    measured: bool = False
    recommended: str = ""
    installed: bool = False
    verified: bool = False
    path: str | None = None
    downloads: int | None = None
    gated: bool = False


def rows(circumstances: Circumstances, *, every_quantization: bool = False) -> list[Row]:
    """What is installed, then what the catalogue offers: of each model the quantization that suits, or all of them."""
    here = store.installed()
    facts = about.of_files([file.path for file in here])
    found = []
    known: set[tuple[str, str]] = set()
    for file in here:
        hit = store.known_as(file)
        if hit:
            known.add((hit[0].name, hit[1].name))
        found.append(_installed(file, hit, facts.get(file.path), circumstances))
    offered = []
    for entry in catalogue().model:
        if every_quantization:
            every = [one for one in entry.quantization if (entry.name, one.name) not in known]
            offered += [
                _offered(entry, one, f"{entry.name}:{one.name}", plan.assess_entry(entry, one, circumstances))
                for one in every
            ]
        elif not any(name == entry.name for name, _ in known):
            quantization, how, _ = plan.suited(entry, circumstances)
            offered.append(_offered(entry, quantization, entry.name, how))
    found += offered
    _recommend(found)
    return found


def searched(words: str, circumstances: Circumstances, limit: int) -> list[Row]:
    """Repos of the hub with GGUF files that match `words`, each in the quantization that suits. Raises `FetchError`."""
    from localchat.models import repos  # brings what opens connections

    names = repos.search(words, limit)

    def look(name: str) -> Row | None:
        try:
            return _remote(repos.listing(name), circumstances)
        except LocalchatError:
            return None  # hidden, withdrawn, or without a model: nothing that could be pulled

    found = _at_once(look, names)
    return [row for name in names if (row := found.get(name))]


def _at_once(look: Callable[[str], Row | None], names: Sequence[str]) -> dict[str, Row | None]:
    """What `look` finds under each name, several at a time; what takes too long is left out.

    Nobody waits for the threads: whoever stops the search is not held up by a hub that says nothing.
    """
    left, found = deque(names), dict[str, Row | None]()
    failed: list[Exception] = []

    def work() -> None:
        with suppress(IndexError):
            while True:
                name = left.popleft()
                try:
                    found[name] = look(name)
                except Exception as error:  # whatever it is crosses to the thread that waits
                    failed.append(error)

    threads = [Thread(target=work, name="localchat-search", daemon=True) for _ in names[:_ASKED_AT_ONCE]]
    until = time.monotonic() + _SEARCH_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if failed:
        raise failed[0]
    if names and not found:
        raise FetchError(f"the hub says nothing more of what it found within {_SEARCH_S:.0f} s: try again later")
    return dict(found)


def _installed(
    file: ModelFile, hit: tuple[Entry, Quantization] | None, facts: About | None, circumstances: Circumstances
) -> Row:
    entry = hit[0] if hit else None
    trained = (facts.context if facts else 0) or (entry.context if entry else None)
    shape = (facts.shape if facts else None) or (entry.shape if entry else None)
    how = assess(
        circumstances,
        label=file.quantization,
        size=file.size,
        shape=shape,
        trained=trained,
        weights=facts.weights if facts else None,
        kept=trials.of_model(trials.key_of(file.sha256, file.path, file.size)),
        correction=trials.correction(entry.name) if entry else None,
    )
    abilities: list[str] = list(entry.abilities) if entry else []
    if not abilities and facts:
        abilities = ["thinking"] if facts.thinks else []
        abilities += ["vision"] if projectors.in_folder(file.path.parent) else []
    return _row(
        Row(
            name=file.name,
            quantization=file.quantization,
            size=file.size,
            trained=trained,
            abilities=abilities,
            license=entry.license if entry else (facts.license or None) if facts else None,
            parameters=(facts.parameters or None) if facts else entry.parameters if entry else None,
            installed=True,
            verified=file.sha256 is not None,
            path=str(file.path),
        ),
        how,
    )


def _offered(entry: Entry, quantization: Quantization, name: str, how: Assessment) -> Row:
    return _row(
        Row(
            name=name,
            quantization=quantization.label,
            size=quantization.size,
            trained=entry.context,
            abilities=list(entry.abilities),
            license=entry.license,
            parameters=entry.parameters,
        ),
        how,
    )


def _remote(repo: Repo, circumstances: Circumstances) -> Row:
    chosen = plan.of_repo(repo, circumstances)
    return _row(
        Row(
            name=repo.name,
            quantization=chosen.label,
            size=chosen.size,
            trained=chosen.trained,
            license=repo.license or None,
            downloads=repo.downloads,
            gated=repo.gated,
        ),
        chosen.assessment,
    )


def _row(row: Row, how: Assessment) -> Row:
    row.context = how.context
    row.memory = how.memory.total if how.memory else None
    row.fits = how.fits
    row.tokens_per_second = how.speed.decode
    row.prefill_tokens_per_second = how.speed.prefill
    row.estimated = how.estimated
    row.measured = how.measured
    if how.gpu:
        row.gpu_tokens_per_second = how.gpu.speed.decode
        row.gpu_layers, row.layers = how.gpu.layers, how.gpu.of
    return row


def _recommend(found: Iterable[Row]) -> None:
    """Mark the largest model that fits well and answers about as fast as one reads."""

    def is_fast(row: Row) -> bool:
        needed = READABLE_DECODE * (_THINKING_TAKES if "thinking" in row.abilities else 1)
        return _best(row) >= needed

    def _best(row: Row) -> float:
        return row.gpu_tokens_per_second or row.tokens_per_second or 0

    good = [row for row in found if row.fits == "yes" and is_fast(row) and "chat" in row.abilities and row.parameters]
    if not good:
        return
    best = max(good, key=lambda row: row.parameters or 0)
    best.recommended = (
        f"the largest that fits well and answers about as fast as one reads ({_best(best):,.0f} tokens/s)"
    )
