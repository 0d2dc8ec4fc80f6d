"""Which models can be chosen, and what is said of each: the picker's content, with no widget in it.

What it knows of this machine takes a second to find out, so `look` is for a thread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localchat.safe_text import safe_line
from localchat.tui.downloads import Download, circumstances
from localchat.tui.words import size

if TYPE_CHECKING:
    from localchat.models.overview import Row

_NAME = re.compile(r"[\w.+-]+/[\w.+/@-]+(:[\w.+-]+)?|[\w.+-]+:[\w.+-]+|https?://\S+", re.ASCII)
_READABLE = 7.0  # tokens/s; slower than one reads is not what anybody should begin with
_OFFERED = 3


@dataclass(frozen=True)
class Overview:
    """What `look` found: the models, which of them (by name) is the starter, free memory (bytes), and whether the
    speeds are a guess because this machine was not measured yet.
    """

    rows: tuple[Row, ...]
    starter: str
    available: int
    is_guess: bool


@dataclass(frozen=True)
class Heading:
    """A line above models."""

    text: str


@dataclass(frozen=True)
class Typed:
    """What the person typed, taken as the name of a model to fetch."""

    name: str


def look() -> Overview:
    """The models that are here and those that could be. Slow; raises `LocalchatError` (a catalogue that is wrong)."""
    from localchat.client import measured
    from localchat.errors import NoSuchModel
    from localchat.models import overview
    from localchat.models.catalogue import catalogue

    now = circumstances(measured.quick())
    try:
        starter = catalogue().starter.name
    except NoSuchModel:
        starter = ""
    return Overview(tuple(overview.rows(now)), starter, now.available, now.machine.is_guess)


def lines(overview: Overview, words: str) -> list[Heading | Row | Typed]:
    """What the picker lists: models that are here, then those that fit; all that match `words`, where some are typed.

    What is typed is offered as a name of its own where it can be one.
    """
    wanted = words.lower().split()

    def matches(row: Row) -> bool:
        about = " ".join([row.name, row.quantization, *row.abilities, row.license or ""]).lower()
        return all(word in about for word in wanted)

    here = [row for row in overview.rows if row.installed and matches(row)]
    others = [row for row in overview.rows if not row.installed and matches(row)]
    fitting = [row for row in others if row.fits != "no"]
    found: list[Heading | Row | Typed] = []
    if here:
        found += [Heading("On this machine"), *here]
    if best := [row for row in fitting if row.recommended]:
        found += [Heading("Recommended for this machine"), *best]
    if rest := [row for row in fitting if not row.recommended]:
        found += [Heading("To fetch"), *rest]
    if wanted and (large := [row for row in others if row.fits == "no"]):
        found += [Heading("Too large for the memory that is free"), *large]
    name = words.strip()
    if _NAME.fullmatch(name) and not any(row.name == name for row in (*here, *others)):
        found += [Heading("By its name"), Typed(name)]
    return found


def path_typed(words: str) -> str | None:
    """The absolute path of a GGUF file that the person typed."""
    words = words.strip()
    if not words.startswith(("/", "~", "./", "../")):
        return None
    path = Path(words).expanduser().absolute()
    return str(path) if path.is_file() else None


def recommended(overview: Overview) -> list[Row]:
    """What to offer on a machine without a model, the best first: the one recommended, and smaller, quicker ones."""
    best = next((row for row in overview.rows if row.recommended), None)
    good = [
        row
        for row in overview.rows
        if row.fits == "yes"
        and "chat" in row.abilities
        and (row.tokens_per_second or 0) >= _READABLE
        and row.parameters
    ]
    good.sort(key=lambda row: (row.parameters or 0, row is best), reverse=True)
    chosen = [best] if best else []
    for row in good:
        if len(chosen) == _OFFERED:
            break
        if row.name != overview.starter and (not chosen or (row.parameters or 0) * 2 <= (chosen[-1].parameters or 0)):
            chosen.append(row)
    return chosen


def about(row: Row, overview: Overview) -> str:
    """What there is to know about a model beyond its line."""
    facts = []
    if row.recommended:
        facts.append(f"recommended here: {row.recommended}")
    if row.memory:
        need = f"needs {'about ' if row.estimated else ''}{size(row.memory)} of memory with a context of "
        from localchat.models.assess import is_capped

        state = "left for it under --max-ram" if is_capped(overview.available) else "free"
        verdict = {"yes": "it fits", "tight": "it fits tightly", "no": "it does not fit"}.get(row.fits or "", "")
        there = f"{size(overview.available)} are {state}"
        facts.append(f"{need}{row.context:,} tokens, {there}" + (f": {verdict}" if verdict else ""))
    if row.gpu_layers:
        facts.append(f"{row.gpu_layers} of {row.layers} layers on the GPU")
    if row.trained:
        facts.append(f"context up to {row.trained:,} tokens")
    if row.abilities:
        facts.append(", ".join(row.abilities))
    if row.license:
        facts.append(f"license {row.license}")
    if overview.is_guess and row.tokens_per_second:
        facts.append("the speed is a guess until this machine is measured")
    return safe_line("; ".join(facts))


def speed(row: Row) -> str:
    """Expected tokens/s, as far as known."""
    found = row.gpu_tokens_per_second or row.tokens_per_second
    return f"{found:.0f}" if found else "?"


def remark(row: Row | Typed, current: str, download: Download | None) -> tuple[str, str]:
    """The word at the end of a model's line, and the name of its colour."""
    if download and download.running:
        moving = download.stage in ("fetching", "verifying")
        return (f"{download.share:.0%}" if moving else "waits" if download.stage == "waiting" else "begins"), "$accent"
    if isinstance(row, Typed):
        return ("failed", "$error") if download and download.stage == "failed" else ("", "$muted")
    if is_current(row, current):
        return "in use", "$accent"
    if download and download.stage == "failed":
        return "failed", "$error"
    if download and download.stage == "stopped":
        return "stopped", "$muted"
    if row.recommended:
        return "recommended", "$accent"
    if row.installed:
        return ("" if row.verified else "not verified yet"), "$muted"
    return {"tight": "fits tightly", "no": "does not fit"}.get(row.fits or "", ""), "$muted"


def is_current(row: Row, current: str) -> bool:
    """Whether a model is the one that answers now."""
    return bool(current) and row.installed and current in (row.name, row.path)


def place_of(found: Sequence[Heading | Row | Typed], name: str) -> int | None:
    """Where the model `name` stands among the lines."""
    for place, line in enumerate(found):
        if not isinstance(line, Heading) and line.name == name:
            return place
    return None
