"""`localchat models`: what is installed, what could be fetched, and how each would do on this machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import click

from localchat.cli.circumstances import circumstances
from localchat.cli.progress import size as in_words
from localchat.client import measured
from localchat.models import overview
from localchat.models.assess import USUAL_CONTEXT, Circumstances, is_capped
from localchat.models.overview import Row
from localchat.paths import paths
from localchat.safe_text import json_text, safe_line

_SEARCHED = 20
_USUAL = f"else context in the settings, else {USUAL_CONTEXT:,}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--all", "every", is_flag=True, help="Show every quantization of the catalogue's models.")
@click.option("--search", "words", metavar="WORDS", help="Look for GGUF models at the hub.")
@click.option(
    "--context", type=click.IntRange(min=1), metavar="N", help=f"Compute memory for a window of N tokens ({_USUAL})."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(every: bool, words: str | None, context: int | None, as_json: bool) -> None:
    """List models: those on this machine, and those that can be fetched.

    Memory, fit and speed are for this machine as it is now: against the memory that is free, with its measured speed.
    FITS is yes, no, or tight: less than a twentieth of the free memory, or than 512 MiB, would be left. TOKENS/S is the
    speed of an answer, ON GPU (where there is one) that with the GPU; ~ is an estimate, ? is not known, * is
    recommended. CAN lists what a model was made for; localchat gives it text only, also where that says vision.
    """
    now = circumstances(measured.quick(), context)
    if words is not None:
        rows = overview.searched(words, now, _SEARCHED)
    else:
        rows = overview.rows(now, every_quantization=every)
    if as_json:
        print(json_text(rows))
        return
    if words is not None and not rows:
        print(f"The hub has no GGUF model that matches {safe_line(words)!r}.")
        return
    print(_table(rows))
    print("\n" + "\n".join(safe_line(line) for line in _remarks(rows, now, words)))


def _speed(row: Row) -> str:
    return f"{row.tokens_per_second:.0f}" if row.tokens_per_second else "?"


def _with_gpu(row: Row) -> str:
    if not row.gpu_layers:
        return "-"
    speed = f"{row.gpu_tokens_per_second:.0f}" if row.gpu_tokens_per_second else "?"
    return speed if row.gpu_layers == row.layers else f"{speed} ({row.gpu_layers} of {row.layers} layers)"


def _state(row: Row) -> str:
    if row.installed:
        return "here" if row.verified else "here, not verified yet"
    if row.downloads is not None:
        downloads = f"{row.downloads:,} download" + ("" if row.downloads == 1 else "s")
        return downloads + (", gated" if row.gated else "")
    return ""


_ON_GPU = "ON GPU"

# Header, cell, and how soon the column gives way where the terminal is narrow (0: never).
_COLUMNS: tuple[tuple[str, Callable[[Row], str], int], ...] = (
    ("", lambda row: "*" if row.recommended else "", 0),
    ("MODEL", lambda row: row.name, 0),
    ("QUANT", lambda row: row.quantization or "?", 1),
    ("SIZE", lambda row: in_words(row.size) if row.size else "?", 0),
    ("CONTEXT", lambda row: f"{row.trained:,}" if row.trained else "?", 4),
    ("CAN", lambda row: ", ".join(row.abilities) or "?", 3),
    ("LICENSE", lambda row: row.license or "?", 5),
    ("MEMORY", lambda row: ("~" if row.estimated else "") + in_words(row.memory) if row.memory else "?", 2),
    ("FITS", lambda row: row.fits or "?", 0),
    ("TOKENS/S", _speed, 0),
    (_ON_GPU, _with_gpu, 0),
    ("STATE", _state, 0),
)


def _table(rows: list[Row]) -> str:
    """The rows in columns; where a terminal is too narrow, the least needed columns are left out."""
    has_gpu = any(row.gpu_layers for row in rows)
    columns = [column for column in _COLUMNS if has_gpu or column[0] != _ON_GPU]
    while True:
        table = [[header for header, _, _ in columns]]
        table += [[safe_line(cell(row)) for _, cell, _ in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        spare = [column for column in columns if column[2]]
        if not room or sum(widths) + 2 * len(widths) <= room or not spare:
            break
        columns.remove(max(spare, key=lambda column: column[2]))
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table)
    return "\n".join(lines)


def _remarks(rows: list[Row], now: Circumstances, words: str | None) -> list[str]:
    """What the figures stand on, what is recommended, and where things are."""
    remarks = []
    best = next((row for row in rows if row.recommended), None)
    if best:
        fetch = "" if best.installed else f"; `localchat pull {best.name}` fetches it"
        remarks.append(f"* {best.name} is recommended here: {best.recommended}{fetch}.")
    state = "left for it under --max-ram" if is_capped(now.available) else "free now"
    remarks.append(f"Memory is for a context of {now.context:,} tokens; {in_words(now.available)} are {state}.")
    if now.machine.is_guess:
        remarks.append("Speeds are a guess until `localchat doctor` or `localchat pull` has measured this machine.")
    if measured_here := [row.name for row in rows if row.measured]:
        names = ", ".join(measured_here)
        remarks.append(f"Speeds of {names} were measured with the model itself (`localchat bench NAME`).")
    if words is not None:
        remarks.append(
            "`localchat pull OWNER/REPO` fetches one in the quantization shown, OWNER/REPO:QUANT in another."
        )
    else:
        remarks.append(
            f"Installed models are under {paths().models}; any GGUF file can be used with -m path/to/file.gguf."
        )
    return remarks
