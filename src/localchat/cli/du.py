"""`localchat du`: what takes room on the disk."""

from __future__ import annotations

import click

from localchat.cli.progress import size
from localchat.models.upkeep.usage import Use, usage
from localchat.safe_text import json_text, safe_line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; sizes are bytes.")
def command(as_json: bool) -> None:
    """Show what each model, partial downloads, logs and the rest take, and what the disk has left."""
    found = usage()
    if as_json:
        print(json_text(found))
        return
    rows = [(size(one.size), safe_line(one.name), _remark(one)) for one in found.lines]
    rows.append((size(found.total), "in all", ""))
    if found.shared:
        rows.append((size(found.shared), "of it linked elsewhere too: removing that frees nothing", ""))
    rows.append((size(found.free), "free on this disk", ""))
    width = max(len(row[0]) for row in rows)
    for room, name, remark in rows:
        print(f"{room:>{width}}  {name}{remark}")
    print(f"\nModels are kept under {safe_line(found.folder)}.")


def _remark(one: Use) -> str:
    if one.repeated:
        return " (the same file again, not counted)"
    return " (linked elsewhere too)" if one.shared else ""
