"""`localchat bench`: measure this machine with a real model, show it, and keep it for the estimates."""

from __future__ import annotations

import click

from localchat.cli import trying
from localchat.cli.bars import bar, figure, table, times
from localchat.cli.progress import ProgressLine, size
from localchat.client import trials
from localchat.models import comparing
from localchat.models.assess import Circumstances
from localchat.models.comparing import Compared, Subject
from localchat.models.fit import moved_bytes
from localchat.safe_text import json_text, safe_line
from localchat.trials import Bench
from localchat.tuning import Tuning


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False, default="", metavar="[MODEL]")
@click.option("--quick", is_flag=True, help="Measure less of everything: some fifteen seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, quick: bool, as_json: bool) -> None:
    """Measure how fast this machine is with a model: about a minute.

    Reading and answering with each number of threads and with more in the window, several answers together, bringing
    back what was read, and the model's quantizations beside each other. What was measured is kept, and `localchat
    models` and `pull` go by it. Without MODEL it is that of the settings, else the one fetched or verified last.
    """
    with ProgressLine() as progress:
        file = trying.here(model, progress)
        now = trying.surroundings(progress)
        one = comparing.subject(file, now)
        bench = trying.predicted(one, trying.run(trials.bench, "bench", one, progress, quick=quick))
        trying.keep(one, progress, bench=bench)
    compared = comparing.quantizations(one, now)
    print(_as_json(one, now, bench, compared) if as_json else "\n\n".join(_shown(one, now, bench, compared)))


def moved_per_second(one: Subject, bench: Bench) -> float | None:
    """Bytes that answering reads a second, in a chat of some hundred tokens; None: the model's shape is not known."""
    if not one.shape or bench.gpu_layers:
        return None
    return moved_bytes(one.shape, one.weights, bench.read_tokens, tuning=bench.tuning) * bench.speeds.decode


def _as_json(one: Subject, now: Circumstances, bench: Bench, compared: list[Compared]) -> str:
    moved, bandwidth = moved_per_second(one, bench), now.machine.processor.bandwidth
    return json_text(
        {
            "model": one.file.name,
            "path": str(one.file.path),
            "quantization": one.file.quantization,
            "size": one.file.size,
            "cpu": now.machine.cpu,
            "bench": bench,
            "speeds": bench.speeds,
            "was_busy": bench.was_busy,
            "bandwidth": bandwidth,
            "bandwidth_is_guess": now.machine.is_guess,
            "moved_bytes_per_second": moved,
            "bandwidth_share": moved / bandwidth if moved else None,
            "quantizations": compared,
        }
    )


def _shown(one: Subject, now: Circumstances, bench: Bench, compared: list[Compared]) -> list[str]:
    """The paragraphs of the report; speeds in them are tokens/s."""
    tuned = "" if bench.tuning == Tuning() else ", as it was tuned"
    on_gpu = f", {bench.gpu_layers} layers on the GPU" if bench.gpu_layers else ""
    rounds = "one round" if bench.rounds == 1 else f"medians of {bench.rounds} rounds"
    parts = [
        safe_line(
            f"{one.file.name} ({one.file.quantization or '?'}, {size(one.file.size)}) on {now.machine.cpu}"
            f"{tuned}{on_gpu}; tokens/s, {rounds}"
        ),
        _threads(bench),
        _depths(bench),
        _together(bench),
        _restored(bench),
        _quantizations(compared),
        _limit(one, now, bench),
        trying.busy_sentence(bench.others, "no estimate goes by them") if bench.was_busy else "",
    ]
    return [part for part in parts if part]


def _threads(bench: Bench) -> str:
    most = max(each.decode for each in bench.threads)
    rows = [["THREADS", f"READS {bench.read_tokens}", f"ANSWERS {bench.answer_tokens}", ""]]
    for each in bench.threads:
        mark = " *" if each.threads == bench.used_threads else ""
        rows.append([f"{each.threads}{mark}", figure(each.prefill), figure(each.decode), bar(each.decode, most)])
    return table(rows) + "\n* what the engine takes on a quiet machine"


def _depths(bench: Bench) -> str:
    if not bench.depths:
        return ""
    speeds = bench.speeds
    most = max(speeds.decode, *(each.decode for each in bench.depths))
    rows = [["IN THE WINDOW", "READS", "ANSWERS", ""]]
    rows.append(
        [f"{bench.read_tokens:,} tokens", figure(speeds.prefill), figure(speeds.decode), bar(speeds.decode, most)]
    )
    for each in bench.depths:
        rows.append([f"{each.tokens:,} tokens", figure(each.prefill), figure(each.decode), bar(each.decode, most)])
    return table(rows)


def _together(bench: Bench) -> str:
    most = max((each.decode for each in bench.batches), default=0.0)
    rows = [["TOGETHER", "ALL", "EACH", ""]]
    for each in bench.batches:
        count = f"{each.sequences} answer{'s'[: each.sequences != 1]}"
        rows.append([count, figure(each.decode), figure(each.decode / each.sequences), bar(each.decode, most)])
    return table(rows) if bench.batches else ""


def _restored(bench: Bench) -> str:
    if not (back := bench.restored):
        return ""
    rows = [["READ ONCE", "SECONDS", ""]]
    rows.append([f"reading {back.tokens:,} tokens", f"{back.read:.3f}", ""])
    rows.append(["  from memory", f"{back.restore:.3f}", f"{times(back.read / back.restore)} as fast"])
    rows.append(["  from disk", f"{back.load:.3f}", f"{times(back.read / back.load)} as fast"])
    return table(rows) + f"\nSaved as {size(back.bytes)} in {back.save:.3f} s, on the disk in {back.write:.3f} s."


def _quantizations(compared: list[Compared]) -> str:
    if not compared:
        return ""
    most = max(each.decode or 0.0 for each in compared)
    rows = [["QUANTIZATION", "SIZE", "READS", "ANSWERS", ""]]
    for each in compared:
        name = each.label + (" *" if each.measured else "")
        speeds = [figure(each.prefill), figure(each.decode)]
        rows.append([name, size(each.size), *speeds, bar(each.decode, most)])
    said = "* measured with the model itself; the others from the measured kernels of each type"
    better = comparing.better(compared)
    return "\n".join([table(rows), said, *([faster_sentence(better, compared)] if better else [])])


def faster_sentence(better: Compared, compared: list[Compared]) -> str:
    """What another quantization would gain, and how to have it."""
    mine = next(each for each in compared if each.is_this)
    gains = []
    if better.prefill and mine.prefill:
        gains.append(f"read {times(better.prefill / mine.prefill)} as fast")
    if better.decode and mine.decode:
        gains.append(f"answer {times(better.decode / mine.decode)} as fast")
    return safe_line(f"{better.label} would {' and '.join(gains)} here: `localchat pull {better.pull}` fetches it.")


def _limit(one: Subject, now: Circumstances, bench: Bench) -> str:
    moved, bandwidth = moved_per_second(one, bench), now.machine.processor.bandwidth
    if not moved:
        return ""
    guess = " (a guess)" if now.machine.is_guess else ""
    return (
        f"Answering reads {moved / 1e9:.1f} GB/s of weights and cache, {moved / bandwidth:.0%} of the "
        f"{bandwidth / 1e9:.1f} GB/s that this machine's memory gives{guess}: each token needs all of them once, so "
        "that is the limit for a model larger than the processor's caches."
    )
