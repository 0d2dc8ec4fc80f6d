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
from localchat.cli.input import compose
from localchat.cli.options import (
    ENGINE_OPTION,
    MODEL_OPTION,
    SET_OPTION,
    SYSTEM_OPTION,
    Wishes,
    wishes,
)
from localchat.cli.progress import ProgressLine, describe, write_aside
from localchat.client import engine_at
from localchat.errors import LocalchatError, NeedsVerification, NoSuchModel, UsageError
from localchat.safe_text import safe_json, safe_text
from localchat.settings import settings

if TYPE_CHECKING:
    from localchat.client.local import LocalEngine
    from localchat.client.remote import RemoteEngine
    from localchat.client.stream import ChatStream


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", nargs=-1)
@MODEL_OPTION
@SYSTEM_OPTION
@click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="Put this text file before the prompt.")
@SET_OPTION
@click.option("--max-tokens", metavar="N", help="At most this many tokens in the answer (as -o max_tokens).")
@click.option("--temperature", metavar="T", help="0 takes the likeliest token each time (as -o temperature).")
@click.option("--seed", metavar="N", help="The same seed gives the same answer (as -o seed).")
@click.option("--stats", is_flag=True, help="Print one line of figures on stderr.")
@click.option("--show-thinking", is_flag=True, help="Print on stderr what the model thinks first.")
@click.option("-x", "--extract", is_flag=True, help="Print only the first fenced code block of the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, reasoning, usage, timings.")
@ENGINE_OPTION
@click.pass_obj
def command(
    implicit: bool,
    prompt: tuple[str, ...],
    model: str,
    system: str | None,
    files: tuple[str, ...],
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
    named = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    pairs = options + tuple((key, value) for key, value in named.items() if value is not None)
    wanted = wishes(model, system, pairs)
    if implicit and not prompt and not files and sys.stdin.isatty():
        from localchat.cli.chat import open_chat

        return open_chat(wanted, engine)
    text = compose(" ".join(prompt), files)
    if not text.strip():
        raise UsageError('there is no prompt: type `localchat ask "a question"`, or pipe text in')
    request = make_request(text, wanted)
    printer = _Printer(show_thinking or settings().show_thinking, extract, as_json)
    with ProgressLine() as progress:
        answer = _Answer(printer, progress)
        try:
            with open_stream(engine_at(engine or settings().engine), request, progress) as stream:
                answer.read(stream)
        finally:
            printer.end(answer)
        if stats:
            progress.note(answer.stats())
    return printer.exit_code


def make_request(text: str, wanted: Wishes) -> protocol.ChatRequest:
    """The request for one question."""
    other = wanted.other
    messages = [protocol.Message("system", wanted.system)] if wanted.system else []
    return protocol.ChatRequest(
        messages=[*messages, protocol.Message("user", text)],
        model=wanted.model,
        stream=True,
        max_tokens=other.max_tokens,
        stop=other.stop or None,
        localchat=protocol.Extras(
            thinking=other.thinking, context=other.context, gpu_layers=other.gpu_layers, progress=True
        ),
        **msgspec.structs.asdict(wanted.sampling),
    )


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
        elif answer.is_complete or (self._as_json and (answer.text or answer.reasoning)):
            text = _first_code_block(answer.text) if self._extract else answer.text
            if text is None and answer.is_complete:
                self.exit_code = 1
                write_aside(safe_text(answer.text).rstrip("\n") + "\n")
                raise LocalchatError(
                    "the answer has no fenced code block: it stands above, ask for code or leave out -x"
                )
            text = text or ""
            print(safe_json(answer.as_json(text)) if self._as_json else safe_text(text))
        elif answer.text:
            write_aside(safe_text(answer.text).rstrip("\n") + "\n")
        sys.stdout.flush()


class _Answer:
    """What has come of an answer so far, and its figures."""

    def __init__(self, printer: _Printer, progress: ProgressLine) -> None:
        self._printer = printer
        self._progress = progress
        self._began = time.monotonic()
        self._first_token = 0.0
        self.text = ""
        self.reasoning = ""
        self.model = ""
        self.finish_reason: str | None = None
        self.is_complete = False
        self.usage: protocol.Usage | None = None
        self.report = protocol.Report()

    def read(self, stream: ChatStream) -> None:
        """Follow the stream to its end."""
        for chunk in stream:
            self.model = chunk.model or self.model
            self.usage = chunk.usage or self.usage
            if chunk.localchat:
                self._follow(chunk.localchat)
            for choice in chunk.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
                self._take(choice.delta)
        self.is_complete = True

    def _follow(self, report: protocol.Report) -> None:
        if report.progress:
            self._progress.show(describe(report.progress, self.model))
            return
        self.report = report
        for warning in report.warnings:
            self._progress.note(warning)
        if report.dropped_messages:
            self._progress.note(f"{report.dropped_messages} earlier messages no longer fit and were left out")

    def _take(self, delta: protocol.Delta) -> None:
        if not (delta.content or delta.reasoning_content):
            return
        self._first_token = self._first_token or time.monotonic()
        self._progress.clear()
        if delta.reasoning_content:
            self.reasoning += delta.reasoning_content
            self._printer.thinking(delta.reasoning_content)
        if delta.content:
            self.text += delta.content
            self._printer.content(delta.content)

    def timings(self) -> protocol.Timings:
        """The engine's figures, or what can be seen from here of a server that tells none."""
        if self.report.timings:
            return self.report.timings
        now = time.monotonic()
        first = self._first_token or now
        decoded = (self.usage.completion_tokens - 1) if self.usage else 0
        return protocol.Timings(
            first_token_ms=(first - self._began) * 1000,
            tokens_per_second=decoded / (now - first) if decoded > 0 and now > first else 0.0,
            total_ms=(now - self._began) * 1000,
        )

    def cached_tokens(self) -> int:
        """Prompt tokens that did not have to be read."""
        if self.report.cached_tokens is not None:
            return self.report.cached_tokens
        details = self.usage.prompt_tokens_details if self.usage else None
        return (details and details.cached_tokens) or 0

    def as_json(self, text: str) -> bytes:
        """The object that `--json` prints; times in milliseconds, rates in tokens per second."""
        usage = self.usage or protocol.Usage(0, 0, 0)
        value: dict[str, Any] = {
            "text": text,
            "reasoning": self.reasoning,
            "model": self.model,
            "finish_reason": self.finish_reason,
            "seed": self.report.seed,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": self.cached_tokens(),
                "completion_tokens": usage.completion_tokens,
            },
            "timings": {key: round(figure, 2) for key, figure in msgspec.structs.asdict(self.timings()).items()},
        }
        return msgspec.json.encode(value)

    def stats(self) -> str:
        """The line that `--stats` prints."""
        usage, timings = self.usage or protocol.Usage(0, 0, 0), self.timings()
        parts = [
            self.model,
            f"{usage.prompt_tokens:,} prompt tokens ({self.cached_tokens():,} from cache)",
            f"{usage.completion_tokens:,} answer tokens",
            f"{timings.first_token_ms / 1000:.2f} s to the first",
            f"{timings.tokens_per_second:.1f} tokens/s",
        ]
        if self.report.seed is not None:
            parts.append(f"seed {self.report.seed}")
        if self.finish_reason:
            parts.append(f"ended by {self.finish_reason}")
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
