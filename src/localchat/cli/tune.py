"""`localchat tune`: find the settings with which the engine is fastest here with one model, and keep them."""

from __future__ import annotations

from collections.abc import Iterator

import click

from localchat import trials as kept_trials
from localchat.cli import trying
from localchat.cli.bars import bar, figure, table
from localchat.cli.bench import faster_sentence
from localchat.cli.progress import ProgressLine
from localchat.client import trials
from localchat.errors import UsageError
from localchat.models import comparing
from localchat.models.comparing import Compared
from localchat.safe_text import json_text, safe_line
from localchat.settings import settings
from localchat.trials import Tried, Tuned, Turn
from localchat.tuning import KvType, Tuning


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False, default="", metavar="[MODEL]")
@click.option(
    "--kv",
    "kv_type",
    type=click.Choice(["f16", "q8_0"]),
    help="The KV cache: q8_0 takes half the memory and rounds what the model remembers, so it is never taken unasked.",
)
@click.option("--quick", is_flag=True, help="Try less of everything.")
@click.option("--show", "show", is_flag=True, help="Show what is kept for the model, and try nothing.")
@click.option("--undo", is_flag=True, help="Forget it: the engine computes as it does by itself again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, kv_type: KvType | None, quick: bool, show: bool, undo: bool, as_json: bool) -> None:
    """Find what is fastest on this machine with a model: a minute or two.

    Threads for answering and for reading, the micro-batch, flash attention, and whether another quantization of the
    model would be faster. What gains three percent or more is kept for this model, and the engine goes by it from the
    next question on. Without MODEL it is that of the settings, else the one fetched or verified last.
    """
    if (show or undo) and (kv_type or quick or (show and undo)):
        raise UsageError("--show and --undo try nothing: give one of them alone")
    if undo:
        _undo(model, as_json)
    elif show:
        _show(model, as_json)
    else:
        _tune(model, kv_type, quick, as_json)


def _tune(model: str, kv_type: KvType | None, quick: bool, as_json: bool) -> None:
    with ProgressLine() as progress:
        file = trying.here(model, progress)
        now = trying.surroundings(progress)
        one = comparing.subject(file, now)
        tuned = trying.run(trials.tune, "tune", one, progress, quick=quick, kv_type=kv_type)
        # What is best while others compute is not what is best: fewer threads, mostly.
        kept = not tuned.was_busy
        if kept:
            trying.keep(one, progress, tuned=tuned)
    compared = comparing.quantizations(one, now)
    if as_json:
        print(_as_json(file.name, tuned, kept, comparing.better(compared)))
        return
    print("\n\n".join(_report(file.name, tuned, kept, compared)))


def _undo(model: str, as_json: bool) -> None:
    name, kept = trying.known(model)
    forgotten = kept is not None and kept_trials.forget_tuning(kept.model)
    if as_json:
        print(json_text({"model": name, "forgotten": forgotten}))
    elif forgotten:
        print(safe_line(f"The tuning of {name} is forgotten: the engine computes as it does by itself."))
    else:
        print(safe_line(f"Nothing is kept for {name}: the engine computes as it does by itself."))


def _show(model: str, as_json: bool) -> None:
    name, kept = trying.known(model)
    tuned = kept.tuned if kept else None
    if as_json:
        print(_as_json(name, tuned, tuned is not None, None))
    elif tuned:
        print("\n\n".join([_table(tuned, kept=True), "\n".join(_verdict(name, tuned, kept=True))]))
    else:
        print(safe_line(f"Nothing is kept for {name}: `localchat tune {name}` finds what is fastest here."))


def _as_json(name: str, tuned: Tuned | None, kept: bool, better: Compared | None) -> str:
    return json_text({"model": name, "tuned": tuned, "kept": kept, "faster_quantization": better})


def _report(name: str, tuned: Tuned, kept: bool, compared: list[Compared]) -> Iterator[str]:
    yield _table(tuned, kept=kept)
    yield "\n".join(_verdict(name, tuned, kept=kept))
    if better := comparing.better(compared):
        yield faster_sentence(better, compared)


def _table(tuned: Tuned, *, kept: bool) -> str:
    """Everything that was tried; speeds are tokens/s."""
    most = max((one.decode or 0.0 for one in tuned.tried), default=0.0)
    rows = [["TRIED", "READS", "ANSWERS", "IN THE WINDOW", ""]]
    for one in tuned.tried:
        mark = " +" if one.taken and kept else " *" if one.is_default else ""
        deep = f"{one.depth:,}" if one.depth else ""
        read, said = (figure(value) if value else "" for value in (one.prefill, one.decode))
        rows.append([f"{_named(one)}{mark}", read, said, deep, bar(one.decode, most)])
    return table(rows) + "\n* as the engine does by itself   + taken   (tokens/s)"


def _named(one: Tried) -> str:
    if one.setting == "threads":
        return f"{one.value} thread{'s'[: one.value != '1']}"
    return f"{one.setting} {one.value}"


def _verdict(name: str, tuned: Tuned, *, kept: bool) -> Iterator[str]:
    """What it gained, what is kept, and what else there is to know."""
    found = describe(tuned.tuning)
    if tuned.was_busy:
        yield trying.busy_sentence(tuned.others, "nothing is kept")
        return
    if not found:
        yield safe_line(f"{name} is fastest as the engine runs it by itself: nothing gains 3 % or more.")
        return
    yield safe_line(f"{'Kept' if kept else 'Found'} for {name}: {found}.")
    yield f"{gains(tuned.before, tuned.after)}. `localchat tune --undo {safe_line(name)}` forgets it."
    if settings().threads and (tuned.tuning.decode_threads or tuned.tuning.prefill_threads):
        yield f"Your settings say {settings().threads} threads, and that wins."


def describe(tuning: Tuning) -> str:
    """A tuning in words; "" for what the engine does by itself."""
    said = []
    if tuning.decode_threads:
        said.append(f"{tuning.decode_threads} thread{'s'[: tuning.decode_threads != 1]} for answering")
    if tuning.prefill_threads:
        said.append(f"{tuning.prefill_threads} thread{'s'[: tuning.prefill_threads != 1]} for reading")
    if tuning.micro_batch:
        said.append(f"micro-batches of {tuning.micro_batch} tokens")
    if tuning.flash_attention is not None:
        said.append("flash attention" if tuning.flash_attention else "no flash attention")
    if tuning.kv_type:
        said.append(f"a KV cache of {tuning.kv_type}, as you chose")
    return ", ".join(said)


def gains(before: Turn, after: Turn) -> str:
    """Before and after, measured in turns."""
    parts = [
        f"It reads {_change(before.prefill, after.prefill)}",
        f"answers {_change(before.decode, after.decode)}",
    ]
    if before.decode_at_depth and after.decode_at_depth:
        parts.append(f"and {_change(before.decode_at_depth, after.decode_at_depth)} after {after.depth:,} tokens")
    return ", ".join(parts)


def _change(before: float, after: float) -> str:
    return f"{figure(after)} tokens/s instead of {figure(before)} ({after / before - 1:+.0%})"
