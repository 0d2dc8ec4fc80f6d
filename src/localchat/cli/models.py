"""`localchat models`: what is installed, and what the catalogue offers."""

from __future__ import annotations

from typing import Any

import click

from localchat.cli.progress import size as in_words
from localchat.models import store
from localchat.models.catalogue import Entry, catalogue
from localchat.paths import paths
from localchat.safe_text import safe_json, safe_line

_COLUMNS = ("MODEL", "QUANTIZATION", "SIZE", "CONTEXT", "LICENSE", "STATE")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(as_json: bool) -> None:
    """List the models on this machine, and those that localchat knows how to fetch."""
    rows = _rows()
    if as_json:
        import msgspec

        print(safe_json(msgspec.json.encode(rows)))
        return
    table = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"\nInstalled models are kept under {paths().models}; any GGUF file can be used with -m path/to/file.gguf.")


def _rows() -> list[dict[str, Any]]:
    """Installed models first, then what is only in the catalogue. Sizes are bytes, context is tokens."""
    rows = []
    places = set()
    for file in store.installed():
        place = file.path.relative_to(paths().models).as_posix()
        places.add(place)
        known = catalogue().by_place.get(place)
        rows.append(_row(file.name, file.quantization, file.size, known[0] if known else None, file))
    for entry, quantization in catalogue().files():
        if str(entry.place(quantization)) not in places:
            rows.append(_row(entry.short_name(quantization), quantization.label, quantization.size, entry, None))
    return rows


def _row(
    name: str, quantization: str, size: int | None, entry: Entry | None, file: store.ModelFile | None
) -> dict[str, Any]:
    return {
        "name": name,
        "quantization": quantization,
        "size": size,
        "context": entry.context if entry else None,
        "license": entry.license if entry else None,
        "installed": file is not None,
        "verified": file is not None and file.sha256 is not None,
        "path": str(file.path) if file else None,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = (
        "installed" if row["verified"] else "to be verified when first used" if row["installed"] else "can be fetched"
    )
    return tuple(
        safe_line(cell)
        for cell in (
            row["name"],
            row["quantization"] or "?",
            in_words(row["size"]) if row["size"] else "?",
            f"{row['context']:,}" if row["context"] else "?",
            row["license"] or "?",
            state,
        )
    )
