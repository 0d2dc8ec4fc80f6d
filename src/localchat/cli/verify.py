"""`localchat verify`: read models again and compare their sha256."""

from __future__ import annotations

import click

from localchat.cli.following import following
from localchat.cli.progress import ProgressLine, size
from localchat.errors import DamagedFile
from localchat.models.upkeep import checking, housekeeping
from localchat.models.upkeep.checking import Checked
from localchat.safe_text import json_text, safe_line

_WORDS = {
    "ok": "ok",
    "recorded": "ok, its hash is on record now",
    "corrected": "ok, its record was wrong and is corrected",
    "other revision": "ok, but not the revision that the catalogue names now",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(name: str | None, as_json: bool) -> int:
    """Read one model, or all, to the end, and compare the sha256 with the record and the catalogue.

    A file without a record gets one if it is sound. Exit code 8 where something is wrong.
    """
    found: list[Checked] = []
    with ProgressLine() as line:
        for one in checking.check(name, on_progress=following(line)):
            found.append(one)
            if not as_json:
                line.clear()
                file = safe_line(one.path.rpartition("/")[2])
                print(f"{safe_line(one.name)}: {_WORDS.get(one.state) or one.state.upper()} ({file}, {size(one.size)})")
        for left in housekeeping.leftovers()[0] if name is None else ():
            if left.kind == "record without a file":
                line.note(
                    f"{left.belongs_to.name} was removed, its record is still there: `localchat prune` removes it"
                )
    if as_json:
        print(json_text(found))
    elif not found:
        print("No model is installed.")
    wrong = [one for one in found if one.state not in checking.SOUND]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DamagedFile(f"{one_line(wrong[0])}{more}")
    return 0


def one_line(one: Checked) -> str:
    """What is wrong with a file, and what to do."""
    return f"{safe_line(one.path)}: {safe_line(one.problem)}"
