"""What `bench` and `tune` share: the model that is tried, the machine around it, and how a trial is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import msgspec

from localchat import trials as kept_trials
from localchat.cli.circumstances import circumstances
from localchat.cli.fetching import make_ready
from localchat.cli.options import wishes
from localchat.cli.progress import ProgressLine, bar
from localchat.client import measured, trials
from localchat.errors import DamagedFile, Interrupted, LocalchatError, NeedsVerification, NoSuchModel
from localchat.machine import compute_threads
from localchat.models import store
from localchat.models.assess import Circumstances
from localchat.models.comparing import Subject
from localchat.models.store import ModelFile
from localchat.paths import check_utf8, paths
from localchat.settings import max_ram, settings
from localchat.trials import Bench, Order, Tuned
from localchat.tuning import KvType, Tuning

Result = TypeVar("Result", Bench, Tuned)
Trial = Callable[[Order, trials.OnProgress, trials.OnNotice], Result]


def here(name: str, progress: ProgressLine) -> ModelFile:
    """The model that `name` ("": the usual one) means, fetched and verified first where need be, as `ask` does it.

    Raises `UsageError` where it, or what is kept of it, lies in a place whose name cannot be said in JSON.
    """
    name = wishes(name, None, ()).model
    try:
        file = store.resolve(name, may_hash=False)
    except (NoSuchModel, NeedsVerification):
        make_ready(name, progress)
        file = store.resolve(name)
    for place in (file.path, paths().cache):
        check_utf8(place)
    return file


def known(name: str) -> tuple[str, kept_trials.Kept | None]:
    """The name of the model that `name` means, and what is kept of it; nothing is fetched or hashed.

    What is kept of a model that was removed, or cannot be used, is found by its name. Raises what `store.resolve` does.
    """
    name = wishes(name, None, ()).model
    try:
        file = store.resolve(name, may_hash=False)
    except NeedsVerification:
        # Most often it is what it was, and only its time is another: the engine will go by what is kept of it.
        file = store.remembered(name)
    except (NoSuchModel, DamagedFile):
        if kept := kept_trials.tuned_as(name):
            return kept.name, kept
        raise
    return file.name, kept_trials.of_model(kept_trials.key_of(file.sha256, file.path, file.size))


def surroundings(progress: ProgressLine) -> Circumstances:
    """The machine as it is now; its kernels are measured once, where they never were."""
    machine = measured.machine(
        on_progress=lambda share: progress.show(f"measuring this machine's kernels, once: {share:.0%}")
    )
    progress.clear()
    return circumstances(machine or measured.quick(), None)


def run(
    trial: Trial[Result], what: str, one: Subject, progress: ProgressLine, *, quick: bool, kv_type: KvType | None = None
) -> Result:
    """Have the model tried, with progress on stderr. Raises what the engine raises."""
    layers = settings().gpu_layers
    kept = kept_trials.of_model(one.key)
    order = Order(
        path=str(one.file.path),
        what=what,
        threads=compute_threads(),
        cache=str(paths().cache),
        # What the engine would do by itself is what a tune is compared with.
        tuning=kept_trials.tuning_of(one.key) if what == "bench" else Tuning(),
        gpu_layers=one.gpu_layers if layers is None else min(layers, one.gpu_layers or layers),
        quick=quick,
        kv_type=kv_type or (kept.tuning.kv_type if kept else None),
        max_ram=max_ram(),
    )

    def on_progress(share: float, doing: str) -> None:
        progress.show(f"{bar(share)}{share:.0%}, {doing}", also_plain=True)

    with stopped_cleanly(), trials.alone(progress.note):
        found = trial(order, on_progress, progress.note)
    progress.clear()
    return found


@contextmanager
def stopped_cleanly() -> Iterator[None]:
    """Say, where Ctrl+C ends a trial, that nothing half is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped: nothing was kept") from None


def keep(one: Subject, progress: ProgressLine, *, bench: Bench | None = None, tuned: Tuned | None = None) -> None:
    """Keep what was found; where that cannot be, it is said and shown all the same."""
    try:
        kept_trials.keep(one.key, name=one.file.name, entry=one.entry, bench=bench, tuned=tuned)
    except (OSError, LocalchatError) as error:
        reason = error.message if isinstance(error, LocalchatError) else error.strerror or str(error)
        progress.note(f"what was found cannot be kept ({reason}): see that {paths().tunings.parent} can be written")


def busy_sentence(others: float, consequence: str) -> str:
    """What to know of figures that were taken while other programs computed."""
    return (
        f"Other programs had {others:.0%} of the processor meanwhile, so these figures are too low and {consequence}: "
        "try again when the machine is quiet (`top` shows who it is)."
    )


def predicted(one: Subject, bench: Bench) -> Bench:
    """The same with what the machine's kernels had promised."""
    expected = one.predicted
    if not expected.decode or not expected.prefill:
        return bench
    with suppress(ValueError):
        return msgspec.structs.replace(bench, predicted=kept_trials.Speeds(expected.prefill, expected.decode))
    return bench
