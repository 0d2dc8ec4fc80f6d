"""`localchat chats`: list, search, show, export, import and remove what was said, and mend the file it is in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localchat.chats import exporting
from localchat.chats.records import ChatInfo, Hit, Kind
from localchat.cli.progress import ProgressLine, write_aside
from localchat.errors import ChatsDamaged, LocalchatError, UsageError
from localchat.paths import paths
from localchat.safe_text import json_text, safe_line, safe_text

if TYPE_CHECKING:
    from localchat.chats.importing import Parsed, Taken
    from localchat.chats.store import Chats

_HELP = {"help_option_names": ["-h", "--help"]}
_JSON = click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
_ONE_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every branch.")
_NUMBERS = click.argument("ids", metavar="ID...", type=int, nargs=-1, required=True)


@click.group(context_settings=_HELP, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Find, show, export, import and remove your chats, and the questions that `ask` kept.

    Every chat has a number, its ID. Without a subcommand the chats are listed.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_command)


@command.command("list", context_settings=_HELP)
@click.option("--asks", is_flag=True, help="List the questions of `localchat ask` instead.")
@click.option("--all", "every", is_flag=True, help="List both.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N, the newest.")
@_JSON
def list_command(asks: bool, every: bool, limit: int | None, as_json: bool) -> None:
    """List chats: pinned ones first, then the newest."""
    if asks and every:
        raise UsageError("--asks lists questions and --all both: give one of the two")
    kind: Kind | None = None if every else "ask" if asks else "chat"
    with _open() as chats:
        found = chats.chats(kind, limit)
    if as_json:
        print(json_text(found))
    elif found:
        print(table(found, with_kind=every))
    else:
        print("No questions are kept yet." if asks else "There are no chats yet: `localchat` begins one.")


@command.command(context_settings=_HELP)
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="At most N.")
@_JSON
def search(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find messages with all of these words; "words in quotes" stand side by side."""
    with _open() as chats:
        # A shell takes the quotes away: what came as one word with spaces in it was a phrase.
        found = chats.search(
            " ".join(f'"{word}"' if " " in word and '"' not in word else word for word in words), limit
        )
    if as_json:
        print(json_text(found))
    elif found:
        print("\n".join(found_line(hit) for hit in found))
    else:
        print("Nothing was found.")


@command.command(context_settings=_HELP)
@click.argument("number", metavar="ID", type=int)
@click.option("--all", "every", is_flag=True, help="Show every branch, not only the one that was shown last.")
@_ONE_JSON
def show(number: int, every: bool, as_json: bool) -> None:
    """Show a chat, as Markdown where it is not for a terminal."""
    with _open() as chats:
        info, tree = chats.info(number), chats.tree(number)
    if as_json:
        print(json_text(exporting.WholeChat.of(info, tree)))
        return
    if every or not sys.stdout.isatty():
        print(safe_text(exporting.as_markdown(info, tree, every_branch=every)), end="")
        return
    from localchat.cli import labelled

    about = [exporting.date(info.created), *exporting.models(tree)]
    print(f"{safe_line(info.title) or 'Untitled'}\n{' · '.join(about)}")
    for paragraph in labelled.page(tree):
        print(f"\n{paragraph}")


@command.command(context_settings=_HELP)
@click.argument("ids", metavar="ID...", type=int, nargs=-1)
@click.option("--all", "every", is_flag=True, help="Export everything, the questions of `localchat ask` too.")
@click.option("--format", "form", type=click.Choice(["md", "json"]), help="Markdown (the default) or JSON.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A file for one chat or for JSON; for several chats as Markdown, a folder (made if it is not there).",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
def export(ids: tuple[int, ...], every: bool, form: str | None, output: Path | None, force: bool) -> None:
    """Write chats as Markdown, or as JSON with every branch and setting, which `chats import` takes back.

    One chat goes to standard output unless -o says where; so do several as one JSON document.
    """
    if bool(ids) == every:
        raise UsageError("name the chats to export by their IDs, or use --all")
    form = form or ("json" if output and output.suffix.lower() == ".json" else "md")
    with _open() as chats:
        infos = chats.chats(None) if every else [chats.info(number) for number in dict.fromkeys(ids)]
        # Whether --all makes a folder shall not depend on how many chats there are, unless the name says what it is.
        several = len(infos) > 1 or (every and not _names_markdown(output))
        if output and form == "md" and (several or output.is_dir()):
            _write_each(chats, infos, _folder(output), force)
            return
        if form == "json":
            whole = [exporting.WholeChat.of(info, chats.tree(info.id)) for info in infos]
            raw = exporting.as_json(whole)
            output = output / "localchat.json" if output and output.is_dir() else output
        elif len(infos) == 1:
            raw = exporting.as_markdown(infos[0], chats.tree(infos[0].id)).encode(errors="replace")
        else:
            raise UsageError("several chats as Markdown need a folder: name one with -o FOLDER, or use --format json")
    if output:
        write(output, raw, force)
        print(f"{_count(len(infos), 'chat')} written to {safe_line(str(output))}.")
    elif sys.stdout.isatty():
        sys.stdout.write(safe_text(raw.decode()))
    else:
        sys.stdout.buffer.write(raw)


@command.command("import", context_settings=_HELP)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_command(files: tuple[Path, ...]) -> int:
    """Take in chats: localchat's JSON, or conversations.json of ChatGPT or DeepSeek (the .zip with it does too).

    A chat that is here already is not taken twice; what it has gained since then is added. A file is taken whole, or
    nothing of it.
    """
    from localchat.chats.importing import parse, take_in

    worst = 0
    with _open() as chats, ProgressLine() as line:
        for file in files:
            try:
                line.show(f"reading {file.name}")
                parsed = parse(file.expanduser())
                taken = take_in(chats, parsed, partial(_show_progress, line, len(parsed.chats)))
            except UsageError as error:
                if len(files) == 1:
                    raise
                line.note(error.message)
                worst = error.exit_code
                continue
            line.clear()
            print(f"{safe_line(file.name)}: {_taken(parsed, taken)}")
    return worst


@command.command(context_settings=_HELP)
@_NUMBERS
def rm(ids: tuple[int, ...]) -> None:
    """Remove chats; for 30 days `localchat chats restore ID` brings them back."""
    # All of them or none: a number that is mistyped removes nothing.
    with _open() as chats, chats.together():
        infos = [chats.info(number) for number in dict.fromkeys(ids)]
        for info in infos:
            chats.delete(info.id)
    for info in infos:
        print(f"{_named(info)} is removed; `localchat chats restore {info.id}` brings it back.")


@command.command(context_settings=_HELP)
@_NUMBERS
def restore(ids: tuple[int, ...]) -> None:
    """Bring back chats that were removed."""
    with _open() as chats:
        with chats.together():
            for number in ids:
                chats.restore(number)
        infos = [chats.info(number) for number in dict.fromkeys(ids)]
    for info in infos:
        print(f"{_named(info)} is back.")


@command.command(context_settings=_HELP)
@click.argument("number", metavar="ID", type=int)
@click.argument("title", nargs=-1, required=True)
def rename(number: int, title: tuple[str, ...]) -> None:
    """Give a chat a title; an empty one stands for its first words."""
    with _open() as chats:
        chats.rename(number, " ".join(title))
        info = chats.info(number)
    print(f"{_named(info)} is its name now.")


@command.command(context_settings=_HELP)
@click.option("--yes", is_flag=True, help="Restore the newest backup without asking.")
def repair(yes: bool) -> None:
    """Look whether the file of the chats is whole, and put a backup in its place where it is not.

    What can still be read from the damaged file is added to the backup, and that file is kept.
    """
    from localchat.chats import backup
    from localchat.cli.following import confirmed

    try:
        backup.check()
    except ChatsDamaged as error:
        write_aside(f"localchat: {safe_text(error.message.partition(':')[0])}\n")
    else:
        print(f"{safe_line(str(paths().chats))} is whole: there is nothing to repair.")
        return
    copies = backup.backups()
    for place, copy in enumerate(copies, 1):
        where = safe_line(str(copy.path))
        print(f"backup {place}: {exporting.date(copy.made)}, {_count(copy.chats, 'chat')}, {where}")
    newest = copies[0] if copies else None
    question = "Restore backup 1" if newest else "There is no backup. Begin an empty file"
    if not confirmed(f"{question}, with what can still be read from the damaged one?", yes, "localchat chats repair"):
        print("Nothing was changed.")
        return
    done = backup.restore(newest)
    print(f"The chats are restored, with {_count(done.messages, 'message')} from the damaged file.")
    print(f"That one is kept: {safe_line(str(done.aside))}")


@contextmanager
def _open() -> Iterator[Chats]:
    from localchat.chats.store import Chats

    chats = Chats()
    try:
        yield chats
    finally:
        chats.close()


def table(found: list[ChatInfo], *, with_kind: bool = False) -> str:
    """One line a chat, cut to the terminal's width."""
    rows = [["", "ID", "DATE", *(["KIND"] if with_kind else []), "MESSAGES", "TITLE"]]
    for info in found:
        kind = [info.kind] if with_kind else []
        cells = ["*" if info.pinned else "", str(info.id), exporting.date(info.updated), *kind, f"{info.messages:,}"]
        rows.append([*cells, safe_line(info.title) or "Untitled"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = ("  ".join(cell.ljust(room) for cell, room in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(line[:width] for line in lines)


def found_line(hit: Hit) -> str:
    """What was found: where, and the line around it; on a terminal with the matches marked."""
    marked = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
    excerpt, at = "", 0
    for start, end in hit.marks if marked else []:
        excerpt += f"{safe_text(hit.excerpt[at:start])}\x1b[1m{safe_text(hit.excerpt[start:end])}\x1b[0m"
        at = end
    excerpt += safe_text(hit.excerpt[at:])
    who = {"user": "you", "assistant": "model"}.get(hit.role, hit.role)
    return f"{hit.chat}  {exporting.date(hit.created)}  {safe_line(hit.title) or 'Untitled'}  ({who})\n    {excerpt}"


def _named(info: ChatInfo) -> str:
    return f"{info.id} ({safe_line(info.title) or 'Untitled'})"


def _names_markdown(output: Path | None) -> bool:
    return output is not None and output.suffix.lower() in (".md", ".markdown")


def _folder(output: Path) -> Path:
    """The folder for several files, made if need be, for this user only. Raises `UsageError` where it is a file."""
    shown = safe_line(str(output))
    if not output.exists() and _names_markdown(output):
        raise UsageError(f"several chats as Markdown need a folder, and {shown} names a file: leave out its ending")
    try:
        output.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"several chats as Markdown need a folder, and {shown} is none: name another") from error
    except OSError as error:
        raise LocalchatError(f"cannot make {shown} ({error.strerror}): name another place with -o") from error
    return output


def _write_each(chats: Chats, infos: list[ChatInfo], folder: Path, force: bool) -> None:
    for info in infos:
        raw = exporting.as_markdown(info, chats.tree(info.id)).encode(errors="replace")
        write(folder / exporting.file_name(info, "md"), raw, force)
    print(f"{_count(len(infos), 'chat')} written to {safe_line(str(folder))}.")


def write(file: Path, raw: bytes, force: bool) -> None:
    """Write a file for the person's eyes only. Raises `UsageError` where one is there or it cannot be written."""
    shown = safe_line(str(file))
    try:
        exporting.write(file, raw, over=force)
    except FileExistsError as error:
        raise UsageError(f"{shown} is there already: name another file, or write over it with --force") from error
    except OSError as error:
        raise LocalchatError(f"cannot write {shown} ({error.strerror}): name another place with -o") from error


def _show_progress(line: ProgressLine, total: int, done: int) -> None:
    line.show(f"taking in {done:,} of {total:,} chats")


def _taken(parsed: Parsed, taken: Taken) -> str:
    said = [f"{_count(taken.new, 'chat')} taken in from {parsed.source} ({_count(taken.messages, 'message')})"]
    if taken.grown:
        said.append(f"{_count(taken.grown, 'chat')} had new messages")
    if taken.known:
        said.append(f"{_count(taken.known, 'chat')} {'was' if taken.known == 1 else 'were'} here already")
    if parsed.left_out:
        said.append("left out: " + ", ".join(f"{what} {count:,}" for what, count in parsed.left_out.items()))
    return "; ".join(said) + "."


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
