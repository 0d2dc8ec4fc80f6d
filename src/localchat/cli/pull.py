"""`localchat pull`: fetch a model by name, repo or address; say beforehand what comes, and refuse what cannot run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from localchat.cli.circumstances import circumstances
from localchat.cli.fetching import kept_when_stopped, show_fetch
from localchat.cli.progress import ProgressLine, size, write_aside
from localchat.client import measured
from localchat.errors import NoSuchModel, UsageError
from localchat.models import plan as plans
from localchat.models import sources, store
from localchat.models.assess import USUAL_CONTEXT, is_capped
from localchat.models.fetch import THIS_MACHINE, FetchProgress, fetch_files
from localchat.models.plan import Plan
from localchat.paths import paths
from localchat.safe_text import json_text, safe_line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Fetch it even where it does not fit in memory.")
@click.option("--dry-run", is_flag=True, help="Only show what would be fetched.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"The window it must fit with, in tokens (else context in the settings, else {USUAL_CONTEXT:,}).",
)
@click.option("--sha256", metavar="HEX", help="The hash that the file must have (for one NAME of one file).")
@click.option("--json", "as_json", is_flag=True, help="Print what is fetched as JSON.")
def command(
    names: tuple[str, ...], force: bool, dry_run: bool, context: int | None, sha256: str | None, as_json: bool
) -> None:
    """Fetch models.

    NAME is a catalogue name (qwen3-4b, qwen3-4b:q8_0), a hub's repo (owner/repo, owner/repo:Q4_K_M,
    owner/repo@revision, owner/repo/file.gguf) or a web address. Where no quantization is named, the one that suits
    this machine is taken. Asking again goes on where it stopped.
    """
    if sha256 is not None:
        sha256 = _hash(sha256, names)
    with ProgressLine() as progress:
        # What is misspelt or does not fit is found before the first of them is fetched.
        planned = [_plan(name, context, sha256, progress) for name in names]
        for plan in () if dry_run or force else planned:
            plan.check_fit()
        for plan in planned:
            if dry_run:
                if not as_json:
                    print("\n  ".join(safe_line(line) for line in _described(plan)))
                continue
            first, *rest = _described(plan)
            progress.note(first)
            write_aside("".join(f"  {safe_line(line)}\n" for line in rest))
            _fetch(plan, progress)
    if as_json:
        print(json_text([_as_json(plan) for plan in planned]))


def _plan(name: str, context: int | None, sha256: str | None, progress: ProgressLine) -> Plan:
    def on_progress(done: float) -> None:
        progress.show(f"measuring this machine, once, to choose what is fast here: {done:.0%}")

    try:
        plan = plans.make(name, circumstances(measured.quick(), context), sha256=sha256)
    except NoSuchModel:
        # It may be a model that is here under a name of its own.
        with suppress(NoSuchModel):
            where = safe_line(str(store.find(name).path))
            raise UsageError(f"{safe_line(name)} is on this machine already ({where}): nothing to fetch") from None
        raise
    if not plan.why or plan.is_here or measured.machine(may_measure=False):
        return plan
    # There was a choice, and what is fast here was only guessed.
    machine = measured.machine(on_progress=on_progress) or measured.quick()
    progress.clear()
    return plans.make(name, circumstances(machine, context), sha256=sha256)


def _fetch(plan: Plan, progress: ProgressLine) -> None:
    was_here = plan.is_here

    def on_progress(state: FetchProgress) -> None:
        nonlocal was_here
        was_here = was_here and state.source == THIS_MACHINE
        show_fetch(state, progress)

    with kept_when_stopped():
        file = fetch_files(plan.files, on_progress=on_progress)
    state = "was here already and is verified" if was_here else "is here and verified"
    progress.note(f"{file.name} {state} ({size(file.size)}): `localchat chat -m {file.name}` talks to it")


def _described(plan: Plan) -> list[str]:
    """The plan in a few lines: what, from where to where, what it needs, how fast it will be."""
    first = plan.files[0]
    amount = size(plan.size) if plan.size is not None else "a size that only the source knows"
    parts = f" in {len(plan.files)} files" if len(plan.files) > 1 else ""
    where = paths().models / first.place.parent
    lines = [
        f"{plan.name}: {plan.why or plan.label}",
        f"{amount}{parts} from {' or '.join(map(sources.label, first.sources))} to {where}",
    ]
    assessment = plan.assessment
    if assessment.memory:
        about = "about " if assessment.estimated else ""
        need = f"{about}{size(assessment.memory.total)} of memory with a context of {assessment.context:,} tokens"
        state = "left for it under --max-ram" if is_capped(plan.available) else "free"
        lines.append(f"needs {need}; {size(plan.available)} are {state}: {_VERDICTS[assessment.fits or 'tight']}")
    speed, gpu = assessment.best_speed, assessment.gpu
    if speed.decode:
        prefill = f", reads about {speed.prefill:,.0f}" if speed.prefill else ""
        share = f" with {gpu.layers} of {gpu.of} layers on the GPU" if gpu else ""
        lines.append(f"answers with about {speed.decode:,.0f} tokens/s{prefill} on this machine{share}")
    if plan.license or plan.gated:
        gated = "; it must be accepted on the model's page first, and HF_TOKEN set" if plan.gated else ""
        lines.append(f"license {plan.license or 'unknown'}{gated}")
    return lines


_VERDICTS = {"yes": "it fits", "tight": "it fits tightly", "no": "it does not fit"}


def _as_json(plan: Plan) -> dict[str, Any]:
    assessment = plan.assessment
    return {
        "name": plan.name,
        "quantization": plan.label,
        "why": plan.why,
        "files": [
            {
                "path": str(paths().models / file.place),
                "size": file.size,
                "sha256": file.sha256,
                "sources": [sources.label(source) for source in file.sources],
            }
            for file in plan.files
        ],
        "size": plan.size,
        "installed": plan.is_here,
        "memory": assessment.memory.total if assessment.memory else None,
        "available": plan.available,
        "context": assessment.context,
        "fits": assessment.fits,
        "tokens_per_second": assessment.speed.decode,
        "prefill_tokens_per_second": assessment.speed.prefill,
        "gpu_layers": assessment.gpu.layers if assessment.gpu else None,
        "gpu_tokens_per_second": assessment.gpu.speed.decode if assessment.gpu else None,
        "license": plan.license or None,
        "gated": plan.gated,
    }


def _hash(text: str, names: tuple[str, ...]) -> str:
    text = text.strip().lower()
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise UsageError("--sha256 takes 64 hex digits, as `sha256sum` prints them")
    if len(names) > 1:
        raise UsageError("--sha256 is the hash of one file: name one model")
    return text
