"""`localchat cache`: what is kept of prompts that models have read, and how to be rid of it."""

from __future__ import annotations

import time

import click
import msgspec

from localchat.cli.following import confirmed, files
from localchat.cli.progress import size
from localchat.errors import LocalchatError
from localchat.models import store
from localchat.paths import paths
from localchat.prefixes import PrefixStore, known_hashes
from localchat.safe_text import json_text, safe_line
from localchat.settings import settings, size_bytes

_HELP = {"help_option_names": ["-h", "--help"]}


class _Model(msgspec.Struct, frozen=True):
    """What is kept of one model: bytes, prompts (or their last known ends), tokens, seconds since 1970."""

    name: str | None
    sha256: str
    prompts: int
    tokens: int
    size: int
    used: float


class _Cache(msgspec.Struct, frozen=True):
    """All that is kept; `cap` is the most that may be."""

    folder: str
    size: int
    cap: int
    models: list[_Model]


@click.group(context_settings=_HELP, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; sizes are bytes.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show what is kept of prompts that models have read, so that they need not read them again.

    It holds what was said, for your account alone. What was of no use for 30 days goes by itself.
    """
    if context.invoked_subcommand is not None:
        return
    found = _look()
    if as_json:
        print(json_text(found))
        return
    limit = f"of at most {size(found.cap)}" if found.cap else 'switched off: prefix_cache = "0" in settings.toml'
    print(f"{safe_line(found.folder)}: {size(found.size)}, {limit}")
    rows = [
        (
            safe_line(one.name) if one.name else f"unknown model {one.sha256[:12]}…",
            f"{one.prompts:,} prompt{'s'[: one.prompts != 1]}",
            f"{one.tokens:,} token{'s'[: one.tokens != 1]}",
            size(one.size),
            f"used {_when(one.used)}",
        )
        for one in found.models
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *figures, used in rows:
        cells = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=False)]
        print("  ".join([f"{name:<{widths[0]}}", *cells, used]))


@command.command(context_settings=_HELP)
@click.option("--older-than", type=click.IntRange(min=1), metavar="DAYS", help="Only what was of no use for so long.")
@click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
def clear(older_than: int | None, yes: bool) -> None:
    """Remove what is kept. Models then read their prompts again; nothing else is lost.

    A running engine forgets what it was about to keep, too.
    """
    kept = PrefixStore(paths().prefixes, 0)
    days = "" if older_than is None else f"{older_than:,} day{'s'[: older_than != 1]}"
    which = f"what was of no use for {days}" if days else "everything that is kept"
    if not kept.files():
        if older_than is None:
            kept.clear()  # an engine may have something in memory that it has not written yet
        print("Nothing is kept.")
        return
    if not confirmed(f"Remove {which} of prompts?", yes, "localchat cache clear"):
        print("Nothing was removed.")
        return
    count, freed, left = kept.clear(older_than or 0)
    print(f"{files(count)} removed, {size(freed)} freed.")
    if left:
        folder = safe_line(str(paths().prefixes))
        raise LocalchatError(f"{files(left)} could not be removed: see who owns {folder} and whether it can be written")


def _look() -> _Cache:
    kept = PrefixStore(paths().prefixes, 0)
    kept.load(tidy=False)
    names = {str(known[0]): path for path, known in known_hashes(paths().prefixes).items() if known}
    names |= {model.sha256: model.name for model in store.installed() if model.sha256}
    by_model: dict[str, _Model] = {}
    parents = {entry.header.parent for entry in kept.index.entries()}
    for entry in kept.index.entries():
        sha256 = entry.header.model
        before = by_model.get(sha256) or _Model(names.get(sha256), sha256, 0, 0, 0, 0.0)
        is_prompt = entry.id not in parents and entry.header.kind != "checkpoint"
        by_model[sha256] = _Model(
            before.name,
            sha256,
            before.prompts + is_prompt,
            before.tokens + (len(entry.tokens) if entry.header.kind != "checkpoint" else 0),
            before.size + entry.size,
            max(before.used, entry.used / 1e9),
        )
    models = sorted(by_model.values(), key=lambda one: one.used, reverse=True)
    return _Cache(str(paths().prefixes), kept.index.total(), size_bytes(settings().prefix_cache), models)


def _when(at: float) -> str:
    """A moment as far as it matters: the time for today, else the date."""
    try:
        then = time.localtime(at)
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"
    today = time.strftime("%F", then) == time.strftime("%F")
    return time.strftime("today %H:%M" if today else "%F", then)
