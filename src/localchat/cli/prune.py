"""`localchat prune`: remove partial downloads and other leftovers."""

from __future__ import annotations

import click

from localchat.cli import batch_journal
from localchat.cli.following import can_ask, confirmed
from localchat.cli.progress import ProgressLine, size
from localchat.models.upkeep import housekeeping
from localchat.paths import paths
from localchat.safe_text import safe_line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--old-revisions", is_flag=True, help="Also models fetched at a revision that the catalogue left behind.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
def command(old_revisions: bool, dry_run: bool, yes: bool) -> None:
    """Remove partial downloads, damaged files that were set aside, records without a file, temporary files, and the
    answers that are kept of batches which were broken off.

    What is being fetched right now is left alone, and so is every file that localchat did not name itself. A partial
    download that you want to go on with is gone after this: `localchat pull` begins it anew, and `localchat batch` too.
    """
    found, busy = housekeeping.leftovers(old_revisions=old_revisions)
    with ProgressLine() as line:
        for path in busy:
            line.note(f"{path.name} is being fetched right now and left alone")
    rows: list[tuple[str, int, str]] = [
        (one.kind, one.size, one.path.relative_to(paths().models).as_posix()) for one in found
    ]
    batches = batch_journal.leftover()
    if batches:
        rows.append(("unfinished batch", batches[1], str(batches[0])))
    if not rows:
        print("There is nothing to remove.")
        return
    kinds = max(len(kind) for kind, _, _ in rows)
    width = max(len(size(room)) for _, room, _ in rows)
    for kind, room, place in rows:
        print(f"{kind:<{kinds}}  {size(room):>{width}}  {safe_line(place)}")
    if dry_run or not (yes or can_ask()):
        how = "" if dry_run else ": `localchat prune --yes` removes them"
        with ProgressLine() as line:
            line.note(f"nothing was removed{how}")
        return
    what = "it" if len(rows) == 1 else f"these {len(rows)}"
    if not confirmed(f"Remove {what}?", yes, "localchat prune"):
        print("Nothing was removed.")
        return
    freed = housekeeping.remove_leftovers(found)
    if batches:
        freed += batch_journal.forget()
    print(f"{size(freed)} freed.")
