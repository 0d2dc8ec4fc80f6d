"""`localchat ask`: one prompt, one answer. stdout carries the answer and nothing else."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from localchat import protocol
from localchat.chats.records import ChatSettings, Node
from localchat.chats.reply import Reply
from localchat.chats.requests import request
from localchat.cli.figures import drafts, from_cache
from localchat.cli.input import compose
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
from localchat.cli.progress import ProgressLine, describe, write_aside
from localchat.client import engine_at
from localchat.errors import LocalchatError, NeedsVerification, NoSuchModel, UsageError
from localchat.safe_text import safe_json, safe_text
from localchat.settings import settings

if TYPE_CHECKING:
    from localchat.cli.keeping import Continued, Log
    from localchat.client.local import LocalEngine
    from localchat.client.remote import RemoteEngine
    from localchat.client.stream import ChatStream


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", nargs=-1)
@MODEL_OPTION
@SYSTEM_OPTION
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="Put this text or PDF file before the prompt."
)
@click.option(
    "-c", "--continue", "go_on", is_flag=True, help="Continue the last question, with its model and settings."
)
@click.option("--chat", "chat", type=int, metavar="ID", help="Continue this chat or question (see `localchat chats`).")
@click.option("-n", "--no-log", is_flag=True, help="Keep nothing of this question and its answer.")
@SET_OPTION
@MAX_TOKENS_OPTION
@TEMPERATURE_OPTION
@SEED_OPTION
@click.option("--stats", is_flag=True, help="Print one line of figures on stderr.")
@click.option("--show-thinking", is_flag=True, help="Print on stderr what the model thinks first.")
@click.option("-x", "--extract", is_flag=True, help="Print only the first fenced code block of the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, reasoning, usage, timings, chat.")
@ENGINE_OPTION
@click.pass_obj
def command(
    implicit: bool,
    prompt: tuple[str, ...],
    model: str,
    system: str | None,
    files: tuple[str, ...],
    go_on: bool,
    chat: int | None,
    no_log: bool,
    options: tuple[tuple[str, str], ...],
    max_tokens: str | None,
    temperature: str | None,
    seed: str | None,
    stats: bool,
    show_thinking: bool,
    extract: bool,
    as_json: bool,
    engine: str | None,
) -> int:
    """Answer one prompt.

    Text that is piped in, and files given with -f, stand before the prompt.
    """
    pairs = options + named_options(max_tokens, temperature, seed)
    wanted = wishes(model, system, pairs)
    if implicit and not prompt and not files and sys.stdin.isatty():
        from localchat.cli.chat import open_chat

        return open_chat(wanted, engine, go_on=go_on, chat=chat)
    if go_on and chat is not None:
        raise UsageError("-c continues the last question and --chat another one: give one of the two")
    with ProgressLine() as progress:
        log = _log(progress, keeps=settings().keep_asks and not no_log, reads=go_on or chat is not None)
        answer = _Answer(_Printer(show_thinking or settings().show_thinking, extract, as_json), progress, log)
        try:
            words, attachments = compose(" ".join(prompt), files)
            if not words.strip() and not attachments:
                raise UsageError('there is no prompt: type `localchat ask "a question"`, or pipe text in')
            where = engine_at(engine or settings().engine)
            before = log.continued(chat) if log and (go_on or chat is not None) else None
            if before:
                wanted = _continuing(before, wishes(model, system, pairs, before.info.settings), where.is_local)
            if log and log.keeps:
                log.question(words, attachments, wanted, before)
            question = Node(0, None, protocol.Message("user", words), attachments=attachments)
            path = [*(before.path if before else ()), question]
            answer.ask(where, request(path, wanted, keep=log is not None and log.keeps))
        finally:
            # What has not ended by now was ended by Ctrl+C, or by a reader of the answer that had enough.
            answer.reply.stop(time.monotonic())
            if log:
                log.close(answer.reply)
        if stats:
            progress.note(answer.stats())
    return answer.exit_code


def _log(progress: ProgressLine, *, keeps: bool, reads: bool) -> Log | None:
    """What keeps the question, or finds the one that is continued; None where nothing is kept or read.

    It opens the file at once, on its own thread, while the prompt is read and the engine found.
    """
    if not (keeps or reads):
        return None
    from localchat.cli.keeping import Log

    return Log(progress.note, keeps=keeps)


def _continuing(before: Continued, wanted: ChatSettings, is_local: bool) -> ChatSettings:
    """Where no model was ever named, the one that answered goes on; another machine's need not be here."""
    model = wanted.model or (before.model if is_local else "")
    return msgspec.structs.replace(wanted, model=model)


def open_stream(
    engine: LocalEngine | RemoteEngine, request: protocol.ChatRequest, progress: ProgressLine
) -> ChatStream:
    """Begin to stream; where this machine has no model yet, or has not verified it, that is done first."""
    if not engine.is_local:
        return engine.chat(request)
    extras = request.localchat or protocol.Extras()
    try:
        return engine.chat(
            msgspec.structs.replace(request, localchat=msgspec.structs.replace(extras, verified_only=True))
        )
    except (NoSuchModel, NeedsVerification):
        from localchat.cli.fetching import make_ready

        make_ready(request.model, progress)
        return engine.chat(request)


class _Printer:
    """Puts the answer on stdout in the form that was asked for, and the thinking on stderr."""

    def __init__(self, show_thinking: bool, extract: bool, as_json: bool) -> None:
        self._show_thinking = show_thinking
        self._extract = extract
        self._as_json = as_json
        self._thinking_open = False
        self._last = ""
        self.exit_code = 0
        # A locale without Unicode must not break an answer that has some.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")

    @property
    def streams(self) -> bool:
        """Whether text is printed as it comes."""
        return not (self._extract or self._as_json)

    def thinking(self, text: str) -> None:
        """A piece of what the model thinks."""
        if self._show_thinking and not self._as_json:
            dim = sys.stderr.isatty() and "NO_COLOR" not in os.environ
            write_aside(f"\x1b[2m{safe_text(text)}\x1b[0m" if dim else safe_text(text))
            self._thinking_open = True

    def content(self, text: str) -> None:
        """A piece of the answer."""
        if self._thinking_open:
            write_aside("\n\n")
            self._thinking_open = False
        if self.streams:
            shown = safe_text(text)
            sys.stdout.write(shown)
            sys.stdout.flush()
            self._last = shown[-1:] or self._last

    def end(self, answer: _Answer) -> None:
        """The last line end; or, where the answer was not streamed, all of it. What broke off is not lost either."""
        if self._thinking_open:
            write_aside("\n")
        if self.streams:
            if self._last and self._last != "\n":
                sys.stdout.write("\n")
        elif answer.is_complete or (self._as_json and (answer.reply.text or answer.reply.reasoning)):
            text = _first_code_block(answer.reply.text) if self._extract else answer.reply.text
            if text is None and answer.is_complete:
                self.exit_code = 1
                write_aside(safe_text(answer.reply.text).rstrip("\n") + "\n")
                raise LocalchatError(
                    "the answer has no fenced code block: it stands above, ask for code or leave out -x"
                )
            text = text or ""
            print(safe_json(answer.as_json(text)) if self._as_json else safe_text(text))
        elif answer.reply.text:
            write_aside(safe_text(answer.reply.text).rstrip("\n") + "\n")
        sys.stdout.flush()


class _Answer:
    """An answer on its way to the person and to the disk, and its figures."""

    def __init__(self, printer: _Printer, progress: ProgressLine, log: Log | None) -> None:
        self._printer = printer
        self._progress = progress
        self._log = log
        self._began = time.monotonic()
        self._first_token = 0.0
        self.reply = Reply(self._began)

    @property
    def is_complete(self) -> bool:
        """Whether it came to its own end."""
        return self.reply.state == "done"

    @property
    def exit_code(self) -> int:
        """What the process exits with where nothing was raised."""
        return self._printer.exit_code

    def ask(self, engine: LocalEngine | RemoteEngine, asked: protocol.ChatRequest) -> None:
        """Ask, and follow the answer to its end, whatever that is."""
        reply = self.reply
        reply.model = asked.model
        try:
            with open_stream(engine, asked, self._progress) as stream:
                self._read(stream)
            reply.finish(time.monotonic())
        except LocalchatError as error:
            reply.fail(error, time.monotonic())
            raise
        finally:
            self._printer.end(self)

    def _read(self, stream: ChatStream) -> None:
        for chunk in stream:
            now = time.monotonic()
            self.reply.take(chunk, now)
            if report := chunk.localchat:
                self._follow(report)
            for choice in chunk.choices:
                self._show(choice.delta, now)
            if self._log and chunk.choices:
                self._log.write(self.reply, now)

    def _follow(self, report: protocol.Report) -> None:
        if report.progress:
            self._progress.show(describe(report.progress, self.reply.model))
            return
        for warning in report.warnings:
            self._progress.note(warning)
        if report.dropped_messages:
            self._progress.note(f"{report.dropped_messages} earlier messages no longer fit and were left out")

    def _show(self, delta: protocol.Delta, now: float) -> None:
        if not (delta.content or delta.reasoning_content):
            return
        self._first_token = self._first_token or now
        self._progress.clear()
        if delta.reasoning_content:
            self._printer.thinking(delta.reasoning_content)
        if delta.content:
            self._printer.content(delta.content)

    def timings(self) -> protocol.Timings:
        """The engine's figures, or what can be seen from here of a server that tells none."""
        if self.reply.timings:
            return self.reply.timings
        now = time.monotonic()
        first = self._first_token or now
        decoded = (self.reply.usage.completion_tokens - 1) if self.reply.usage else 0
        return protocol.Timings(
            first_token_ms=(first - self._began) * 1000,
            tokens_per_second=decoded / (now - first) if decoded > 0 and now > first else 0.0,
            total_ms=(now - self._began) * 1000,
        )

    def cached_tokens(self) -> int:
        """Prompt tokens that did not have to be read."""
        if self.reply.cached_tokens is not None:
            return self.reply.cached_tokens
        details = self.reply.usage.prompt_tokens_details if self.reply.usage else None
        return (details and details.cached_tokens) or 0

    def as_json(self, text: str) -> bytes:
        """The object that `--json` prints; times in milliseconds, rates in tokens per second."""
        usage = self.reply.usage or protocol.Usage(0, 0, 0)
        value: dict[str, Any] = {
            "text": text,
            "reasoning": self.reply.reasoning,
            "model": self.reply.model,
            "finish_reason": self.reply.finish_reason,
            "seed": self.reply.seed,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": self.cached_tokens(),
                "completion_tokens": usage.completion_tokens,
            },
            "restored_from": self.reply.restored_from,
            "saved_ms": round(self.reply.saved_ms, 2),
            "drafted_tokens": self.reply.drafted_tokens,
            "accepted_tokens": self.reply.accepted_tokens,
            "timings": {key: round(figure, 2) for key, figure in msgspec.structs.asdict(self.timings()).items()},
            "chat": self._log.chat if self._log else None,
        }
        return msgspec.json.encode(value)

    def stats(self) -> str:
        """The line that `--stats` prints."""
        usage, timings = self.reply.usage or protocol.Usage(0, 0, 0), self.timings()
        parts = [
            self.reply.model,
            f"{usage.prompt_tokens:,} prompt tokens ({from_cache(self.reply, self.cached_tokens())})",
            f"{usage.completion_tokens:,} answer tokens",
            f"{timings.first_token_ms / 1000:.2f} s to the first",
            f"{timings.tokens_per_second:.1f} tokens/s",
        ]
        if self.reply.drafted_tokens:
            parts.append(drafts(self.reply))
        if self.reply.seed is not None:
            parts.append(f"seed {self.reply.seed}")
        if self.reply.finish_reason:
            parts.append(f"ended by {self.reply.finish_reason}")
        return ", ".join(parts)


def _first_code_block(text: str) -> str | None:
    """The content of the first fenced code block (CommonMark: closed by a fence as long, or by the end)."""
    import re

    opened = re.search(r"^ {0,3}(`{3,}|~{3,})[^\n`]*\n", text, re.MULTILINE)
    if not opened:
        return None
    rest = text[opened.end() :]
    closing = re.search(rf"^ {{0,3}}{re.escape(opened[1])}{re.escape(opened[1][0])}*[ \t]*$", rest, re.MULTILINE)
    return (rest[: closing.start()] if closing else rest).rstrip("\n")
