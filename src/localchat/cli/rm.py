"""`localchat rm`: remove models from this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from localchat.cli.following import confirmed, files
from localchat.cli.progress import size, write_aside
from localchat.client.local import LocalEngine
from localchat.errors import LocalchatError, NoSuchModel, UsageError
from localchat.models import store
from localchat.models.catalogue import catalogue
from localchat.models.upkeep import housekeeping
from localchat.models.upkeep.housekeeping import Removal
from localchat.paths import paths
from localchat.prefixes import PrefixStore
from localchat.safe_text import safe_line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Remove without asking.")
def command(names: tuple[str, ...], yes: bool) -> None:
    """Remove models: files, records, partial downloads, and a projector that no other model needs.

    A file that was linked from another program stays there. You are asked first; a script must say --yes.
    """
    removals = {one.model.path: one for one in map(_removal, names)}
    for one in removals.values():
        lines = "".join(f"  {safe_line(str(file))}\n" for file in one.files)
        if not yes:
            write_aside(f"{safe_line(one.model.name)} ({size(one.model.size)}{_shared(one)}):\n{lines}")
    what = "it" if len(removals) == 1 else f"these {len(removals)} models"
    if not confirmed(f"Remove {what}?", yes, f"localchat rm {' '.join(names)}"):
        print("Nothing was removed.")
        return
    held = _held_by_engine()
    for one in removals.values():
        housekeeping.remove_model(one)
        _forget_prompts(one)
        freed = f"{size(one.frees)} freed" if one.frees else "no room is freed"
        print(f"{safe_line(one.model.name)} is removed ({files(len(one.files))}, {freed}{_shared(one)}).")
        if held in one.files:
            print("The engine still holds it in memory, and on the disk: `localchat stop` lets go of it.")


def _forget_prompts(one: Removal) -> None:
    """What the model had read is of no use without it."""
    kept = PrefixStore(paths().prefixes, 0)
    kept.load(tidy=False)
    kept.remove_model(one.model.sha256 or "")


def _shared(one: Removal) -> str:
    return f"; {size(one.shared)} are linked elsewhere too, and stay there" if one.shared else ""


def _removal(name: str) -> Removal:
    """What removing `name` means. Raises `UsageError` where it means several models."""
    try:
        found = store.matching(name)
    except NoSuchModel:
        if _is_partly_here(name):
            raise NoSuchModel(
                f"{safe_line(name)} is only partly here: `localchat prune` removes partial downloads"
            ) from None
        raise
    exact = [one for one in found if one.name.lower() == name.strip().lower()] or found
    if len(exact) > 1:
        some = ", ".join(safe_line(one.name) for one in exact)
        raise UsageError(f"{safe_line(name)} means {len(exact)} models here: name one of {some}")
    return housekeeping.removal(exact[0])


def _is_partly_here(name: str) -> bool:
    hit = catalogue().find(name)
    wanted = name.strip().lower().partition(":")[0]
    places = {str(hit[0].place(one)) for one in hit[0].quantization} if hit else set()
    for one in housekeeping.leftovers()[0]:
        place = one.belongs_to.relative_to(paths().models).as_posix()
        if one.kind == "unfinished download" and (place in places or place.lower().startswith(f"{wanted}/")):
            return True
    return False


def _held_by_engine() -> Path | None:
    """The file that the engine has loaded, if one runs and answers."""
    with suppress(LocalchatError, OSError):
        status = LocalEngine().status()
        if status and status.model:
            return Path(status.model.path)
    return None
