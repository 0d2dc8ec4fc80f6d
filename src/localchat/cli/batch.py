"""`localchat batch`: many prompts, answered side by side. stdout carries the answers, one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from localchat.chats.records import ChatSettings
from localchat.cli.batch_journal import KEPT_DAYS, Journal
from localchat.cli.batch_lines import Form, Model
from localchat.cli.batch_output import FileOutput, Output, StdoutOutput, opened_input
from localchat.cli.batch_run import Run
from localchat.cli.fetching import make_ready
from localchat.cli.input import attached
from localchat.cli.options import (
    ENGINE_OPTION,
    MAX_TOKENS_OPTION,
    MODEL_OPTION,
    SEED_OPTION,
    SET_OPTION,
    SYSTEM_OPTION,
    TEMPERATURE_OPTION,
    named_options,
    wishes,
)
from localchat.cli.progress import ProgressLine
from localchat.client import engine_at
from localchat.client.local import LocalEngine
from localchat.client.remote import RemoteEngine
from localchat.errors import Interrupted, LocalchatError, NeedsVerification, NoSuchModel, UsageError
from localchat.models import store
from localchat.settings import settings

_LOCAL, _REMOTE = 20, 8
"""Questions at a time. This machine's engine computes up to 16 side by side; a few more wait, so that it never does."""

_NAMES = 64
"""Models that lines may name before the first of them is looked up again."""

_HELP = f"""Answer many prompts together: each line of FILE (or of standard input) is one.

\b
A line is one of
  "a prompt"
  {{"prompt": "…", "id": 7, "system": "…", "temperature": 0, "max_tokens": 64, "stop": […], "model": "…"}}
  {{"messages": [{{"role": "user", "content": "…"}}]}}
  {{"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {{…}}}}

What a line says wins over the options, except that -m answers all lines with one model. Each line is answered by one
line on standard output, with its "id", the number of its "line", "text", "usage" and more, or with an "error".

When it is broken off, the same command goes on: what was answered is kept until all is, or for {KEPT_DAYS} days, and
printed again at once. Exit code 0: all lines were answered; 1: some were not, and the same command asks those again.
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=_HELP)
@click.argument("prompts", required=False, metavar="[FILE]")
@MODEL_OPTION
@SYSTEM_OPTION
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="Put this text or PDF file before every prompt."
)
@click.option("--output", metavar="FILE", help="Write the answers to FILE, and go on with one that is there.")
@click.option("--as-completed", is_flag=True, help="Print each answer as soon as it is there, not in order.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    metavar="N",
    help=f"Ask so many at a time (usually {_LOCAL}, or {_REMOTE} with --engine).",
)
@click.option("-n", "--no-log", is_flag=True, help="Keep nothing, and ask all anew.")
@SET_OPTION
@MAX_TOKENS_OPTION
@TEMPERATURE_OPTION
@SEED_OPTION
@ENGINE_OPTION
def command(
    prompts: str | None,
    model: str,
    system: str | None,
    files: tuple[str, ...],
    output: str | None,
    as_completed: bool,
    parallel: int | None,
    no_log: bool,
    options: tuple[tuple[str, str], ...],
    max_tokens: str | None,
    temperature: str | None,
    seed: str | None,
    engine: str | None,
) -> int:
    """Answer many prompts together."""
    wanted = wishes(model, system, options + named_options(max_tokens, temperature, seed))
    if "-" in files and prompts in (None, "-"):
        raise UsageError("standard input cannot be both the prompts and a file before them: name a file for one")
    lines = opened_input(prompts)
    url = engine or settings().engine
    where = engine_at(url)
    with ProgressLine() as progress:
        journal = Journal(progress.note, keeps=not no_log)
        finished = False
        try:
            models = _Models(where, wanted, progress)
            form = Form(
                wanted,
                attached(files),
                models.resolve,
                where=url or "",
                model_wins=bool(model),
                keep=not no_log,
            )
            sink = _sink(output, journal, ordered=not as_completed)
            if isinstance(sink, FileOutput) and sink.is_same(lines):
                raise UsageError("the answers would overwrite the prompts: name another file with --output")
            run = Run(
                where,
                form,
                journal,
                sink,
                progress,
                models.load,
                parallel=parallel or (_LOCAL if where.is_local else _REMOTE),
                ordered=not as_completed,
            )
            finished = _followed(run, lines, progress, goes_on=journal.keeps or output is not None)
            sink.close()
        finally:
            journal.close(finished=finished)
    return 0 if finished else 1


def _sink(output: str | None, journal: Journal, *, ordered: bool) -> Output:
    return FileOutput(Path(output), journal, ordered=ordered) if output is not None else StdoutOutput()


def _followed(run: Run, lines: BinaryIO, progress: ProgressLine, *, goes_on: bool) -> bool:
    """Whether all lines were answered. However it ends, it is said how far it came, and how to go on."""
    again = "the same command goes on from there" if goes_on else "nothing is kept, as -n says"
    try:
        run.follow(lines)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at {run.tally.of}: {again}") from None
    except LocalchatError:
        if run.tally.done:
            progress.note(f"broken off at {run.tally.of}: {again}")
        raise
    progress.note(run.summary())
    if run.tally.failed and goes_on:
        progress.note("the same command asks only what failed again")
    return not run.tally.failed


class _Models:
    """What the names of models mean on the engine that is asked. A model that only a line names is not fetched: lines
    may come from anywhere.
    """

    def __init__(self, engine: LocalEngine | RemoteEngine, wanted: ChatSettings, progress: ProgressLine) -> None:
        self._engine = engine
        self._wanted = wanted
        self._progress = progress
        self._known: dict[str, Model] = {}

    def resolve(self, name: str) -> Model:
        """The model of that name; "" is the one that answers where a line names none: that is fetched if need be."""
        if name not in self._known:
            if len(self._known) > _NAMES:
                self._known.clear()
            self._known[name] = self._found(name)
        return self._known[name]

    def load(self) -> None:
        """Have the run's own model in memory, or raise what is wrong with it: that is no fault of a line."""
        if isinstance(self._engine, RemoteEngine) or "" not in self._known:
            return
        model = self._known[""].name
        self._progress.show(f"loading {model}")
        self._engine.load(model, self._wanted.context, self._wanted.gpu_layers)

    def _found(self, name: str) -> Model:
        wanted = name or self._wanted.model
        if isinstance(self._engine, RemoteEngine):
            wanted = wanted or self._engine.first_model()
            return Model(wanted, wanted)
        try:
            file = store.resolve(wanted, may_hash=False)
        except (NoSuchModel, NeedsVerification):
            if name:
                raise
            make_ready(wanted, self._progress)
            file = store.resolve(wanted, may_hash=False)
        status = file.path.stat()
        return Model(file.name, file.sha256 or f"{file.path} {status.st_size} {status.st_mtime_ns}")
