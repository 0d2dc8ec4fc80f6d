"""`localchat import`: take in a GGUF file, or find those that other programs on this machine hold."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from localchat.cli.following import ask, can_ask, files, following
from localchat.cli.progress import ProgressLine, size
from localchat.errors import Interrupted, LocalchatError, UsageError
from localchat.models import records, store
from localchat.models.upkeep import foreign
from localchat.models.upkeep.foreign import Foreign
from localchat.models.upkeep.importing import Imported, import_file
from localchat.safe_text import json_text, safe_line

_HOW = {
    "linked": "linked: it takes no extra room",
    "cloned": "cloned: it takes no extra room until one of the two changes",
    "copied": "copied",
}
_MOST_UNSOUND = 5
_COLUMNS = ("", "PROGRAM", "MODEL", "QUANTIZATION", "SIZE", "STATE")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--name", default="", metavar="OWNER/REPO", help="Where it goes, if not where its origin says.")
@click.option("--copy", is_flag=True, help="Copy the bytes instead of sharing them with the file that is there.")
@click.option("--scan", is_flag=True, help="List what other programs hold, and ask which of it to take in.")
@click.option("--yes", is_flag=True, help="With --scan: take in all of it without asking.")
@click.option("--json", "as_json", is_flag=True, help="With --scan: print what was found as a JSON list.")
def command(file: Path | None, name: str, copy: bool, scan: bool, yes: bool, as_json: bool) -> int:
    """Take in a GGUF file: checked, hashed, and linked rather than copied where the disk allows.

    All parts of a split file come along, and the projector (mmproj) beside it. A record beside the file, as `export`
    writes it, tells where it came from, and the bytes are compared with it. --scan looks where the hub cache, ollama,
    LM Studio, llama.cpp, Jan and GPT4All keep theirs; nothing of theirs is ever moved or changed.
    """
    if bool(file) == scan:
        raise UsageError("name one FILE, or use --scan to find those of other programs")
    if scan and name:
        raise UsageError("--name is for one file: --scan takes the names that the programs have")
    if not scan and (yes or as_json):
        raise UsageError("--yes and --json belong to --scan")
    with ProgressLine() as line:
        if file:
            _say(import_file(file.expanduser(), repo=name, copy=copy, on_progress=following(line)), line)
            return 0
        return _scan(line, copy, yes, as_json)


def _say(done: Imported, line: ProgressLine) -> None:
    line.clear()
    model = safe_line(done.model.name)
    if done.how is None:
        print(f"{model} is here already; nothing was done.")
    else:
        more = f", {files(done.files)}" if done.files > 1 else ""
        print(f"{model} is here ({size(done.model.size)}{more}), {_HOW[done.how]}.")
    print(f"  {safe_line(str(done.model.path))}")


def _scan(line: ProgressLine, copy: bool, yes: bool, as_json: bool) -> int:
    line.show("looking where other programs keep their models")
    found = foreign.find()
    here = _known(found.models)
    if as_json:
        line.clear()
        print(json_text([_row(model, here.get(model.identity)) for model in found.models]))
    for notice in [*found.notices, *found.unsound[:_MOST_UNSOUND]]:
        line.note(notice)
    if len(found.unsound) > _MOST_UNSOUND:
        line.note(f"and {len(found.unsound) - _MOST_UNSOUND:,} more files that are no whole model")
    if not as_json:
        line.clear()
        _table(found.models, here)
    new = [model for model in found.models if model.identity not in here]
    if not new:
        return 0
    if not yes and (as_json or not can_ask()):
        if not as_json:
            line.note("nothing was taken in: --yes takes in all that is new, `localchat import FILE` one of them")
        return 0
    chosen = new if yes else _chosen(found.models, here)
    worst = 0
    for model in chosen:
        try:
            _say(import_file(model.path, held=model, copy=copy, on_progress=following(line)), line)
        except Interrupted:
            raise
        except LocalchatError as error:
            # One that is damaged keeps nobody from the others.
            line.note(error.message)
            worst = max(worst, error.exit_code)
    return worst


def _known(models: list[Foreign]) -> dict[tuple[int, int], str]:
    """The names of those that the store has, as a link to the same file or with the same hash, by their identity."""
    files: dict[tuple[int, int], str] = {}
    hashes: dict[str, str] = {}
    for one in store.installed():
        with suppress(OSError):
            status = one.path.stat()
            files[status.st_dev, status.st_ino] = one.name
            record = records.read(one.path)
            if record and record.fits(status):
                hashes[record.sha256] = one.name
    found = {model.identity: files.get(model.identity) or hashes.get(model.sha256, "") for model in models}
    return {identity: name for identity, name in found.items() if name}


def _table(models: list[Foreign], here: dict[tuple[int, int], str]) -> None:
    if not models:
        print("No models of other programs were found.")
        return
    rows = [_COLUMNS]
    for number, model in enumerate(models, 1):
        state = "here" if model.identity in here else "new"
        cells = (str(number), model.program, model.name, model.quantization, size(model.size), state)
        rows.append(tuple(safe_line(cell) for cell in cells))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _chosen(models: list[Foreign], here: dict[tuple[int, int], str]) -> list[Foreign]:
    """Ask which ones: all, or some by number or name."""
    new = {str(number): model for number, model in enumerate(models, 1) if model.identity not in here}
    while True:
        answer = ask("Take in which? all, numbers such as 1 3, names, or nothing: ")
        if answer in ("all", "a", "y", "yes"):
            return list(new.values())
        chosen, unknown = [], []
        for word in answer.replace(",", " ").split():
            if word in ("n", "no", "none", "nothing"):
                continue
            hits = [new[word]] if word in new else [one for one in new.values() if word == one.name.lower()]
            chosen += [one for one in hits if one not in chosen]
            unknown += [] if hits else [word]
        if not unknown:
            return chosen
        print(f"There is no new model {safe_line(', '.join(unknown))}.")


def _row(model: Foreign, known: str | None) -> dict[str, Any]:
    return {
        "program": model.program,
        "name": model.name,
        "quantization": model.quantization,
        "size": model.size,
        "path": str(model.path),
        "projector": str(model.projector) if model.projector else None,
        "installed": known,
    }
