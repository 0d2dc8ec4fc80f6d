"""The lines of a batch: what a line asks, as a request, and what is answered, as a line.

A line is a prompt in quotes, an object with `prompt` or `messages`, or a request of OpenAI's batch format. What a line
says of itself (`temperature`, `system`, …) wins over the command line; what it does not say comes from there.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from localchat import protocol
from localchat.chats.records import Attachment, ChatSettings, Node
from localchat.chats.requests import composed, request
from localchat.cli.options import model_name
from localchat.errors import LocalchatError, UsageError
from localchat.protocol import ChatRequest, Message, PositiveCount
from localchat.safe_text import safe_json, safe_line
from localchat.settings import plainly

LINE_LIMIT_BYTES = 16 << 20
"""The longest line: many times what the window of any model holds."""

_CHAT_URL = "/v1/chat/completions"
_CLOSE = 0.8
_EMPTY = "the prompt is empty: write something into it"


class _Options(protocol.Sampling, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a line may say of how it is answered."""

    max_tokens: PositiveCount | None = None
    max_completion_tokens: PositiveCount | None = None
    stop: str | list[str] | None = None
    reasoning_effort: str | None = None
    thinking: bool | None = None
    overflow: Literal["error", "slide"] | None = None
    # What an engine may refuse, so that nobody believes that it was obeyed.
    n: int | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None


_OURS = ("thinking", "overflow")
_OPTIONS = _Options.__struct_fields__
_MAY_BE_MISSPELT = (*_OPTIONS, "system")
_KNOWN = ("id", "custom_id", "prompt", "messages", "system", "model", *_OPTIONS)
_HOSTED = ("top_logprobs", "store", "user", "metadata", "service_tier", "logit_bias", "stream", "stream_options")


class Usage(msgspec.Struct, frozen=True):
    """Token counts, as `ask --json` has them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Answer(msgspec.Struct, frozen=True):
    """What was answered to a line, as it is printed and kept."""

    text: str
    reasoning: str
    model: str
    finish_reason: str | None
    seed: int | None
    usage: Usage
    timings: protocol.Timings | None


class Model(NamedTuple):
    """What a request calls a model, and what tells its content from another's of that name."""

    name: str
    identity: str


@dataclass
class Line:
    """One line of the input: `number` counts all lines from 1, `place` those that are not empty from 0.

    It has a `request`, and the `key` of what is asked, or an `error`. `id` and `extra` (keys that are not ours) are
    carried to the answer. `attempts`: how often an engine died over it.
    """

    number: int
    place: int
    id: Any = None
    extra: dict[str, Any] = field(default_factory=dict)
    request: ChatRequest | None = None
    key: bytes = b""
    error: LocalchatError | None = None
    attempts: int = 0


class Form:
    """What all lines of a run have in common, to make a request of each.

    `resolve` says what a model's name means ("": what answers where none is named); with `model_wins` no line chooses
    its own. `where` names the engine: another engine's answer is another answer.
    """

    def __init__(
        self,
        settings: ChatSettings,
        attachments: Sequence[Attachment],
        resolve: Callable[[str], Model],
        *,
        where: str,
        model_wins: bool,
        keep: bool,
    ) -> None:
        self._attachments = attachments
        self._system = settings.system
        self._resolve = resolve
        self._where = where
        self._model_wins = model_wins
        # As `ask` would send it, but whole, and silent on the way.
        asked = request([Node(0, None, Message("user"))], msgspec.structs.replace(settings, system=None))
        extras = msgspec.structs.replace(asked.localchat or protocol.Extras(), progress=False, keep=keep, patient=True)
        self._base = msgspec.structs.replace(asked, stream=False, stream_options=None, localchat=extras)

    def line(self, raw: bytes, number: int, place: int) -> Line:
        """What a line of the input asks; what is wrong with it is its error. Raises what resolving "" does."""
        line = Line(number, place)
        try:
            value = self._read(raw, line)
            named = "" if self._model_wins else _converted(value.get("model") or "", str, "model")
            model = self._resolve(model_name(named)) if named else None
        except LocalchatError as error:
            line.error = error
            return line
        model = model or self._resolve("")
        try:
            line.request = self._asked(value, model)
            line.key = self._key(line.request, model)
        except LocalchatError as error:
            line.error = error
        return line

    def _read(self, raw: bytes, line: Line) -> dict[str, Any]:
        """The object that says what is asked; what goes with the line is put into it."""
        if len(raw) > LINE_LIMIT_BYTES:
            raise UsageError(f"the line is longer than {LINE_LIMIT_BYTES >> 20} MiB: shorten it")
        try:
            value = msgspec.json.decode(raw)
        except RecursionError:
            raise UsageError("the line is nested too deeply: it takes a prompt or messages") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the line is not valid JSON ({safe_line(str(error))}): `jq -R . FILE` makes JSON of plain lines"
            ) from None
        if isinstance(value, str):
            value = {"prompt": value}
        if isinstance(value, list):
            raise UsageError("a line takes one prompt, not a list: `jq -c '.[]' FILE` makes lines of a list")
        if not isinstance(value, dict):
            raise UsageError("a line takes a prompt in quotes, or an object with a prompt or messages")
        line.id = value.get("id", value.get("custom_id"))
        if isinstance(value.get("body"), dict) and "prompt" not in value and "messages" not in value:
            if value.get("url", _CHAT_URL) != _CHAT_URL:
                raise UsageError(f"only requests to {_CHAT_URL} can be answered, not to {safe_line(str(value['url']))}")
            ours = ("id", "custom_id", "method", "url", "body")
            line.extra = {key: one for key, one in value.items() if key not in ours}
            value = value["body"]
        else:
            line.extra = {key: one for key, one in value.items() if key not in _KNOWN}
        return {key: one for key, one in value.items() if one is not None}

    def _asked(self, given: dict[str, Any], model: Model) -> ChatRequest:
        for key in given:
            if key not in _KNOWN + _HOSTED and (close := difflib.get_close_matches(key, _MAY_BE_MISSPELT, 1, _CLOSE)):
                raise UsageError(f"there is no option {safe_line(key)!r}: did you mean {close[0]}?")
        options = _converted({key: given[key] for key in _OPTIONS if key in given}, _Options, "")
        said = {key: getattr(options, key) for key in _OPTIONS if key in given}
        system = _converted(given.get("system", self._system), str | None, "system")
        extras = msgspec.structs.replace(
            self._base.localchat or protocol.Extras(), **{key: said.pop(key) for key in _OURS if key in said}
        )
        return msgspec.structs.replace(
            self._base, messages=self._messages(given, system), model=model.name, localchat=extras, **said
        )

    def _messages(self, given: dict[str, Any], system: str | None) -> list[Message]:
        if ("prompt" in given) == ("messages" in given):
            many = "both a prompt and messages" if "prompt" in given else "neither a prompt nor messages"
            raise UsageError(f"the line has {many}: give it one of the two")
        if "prompt" in given:
            words = _converted(given["prompt"], str, "prompt")
            if not words.strip() and not self._attachments:
                raise UsageError(_EMPTY)
            messages = [Message("user", composed(words, self._attachments))]
        else:
            messages = _converted(given["messages"], list[Message], "messages")
            if not messages:
                raise UsageError("there are no messages: give the line at least one")
            last = messages[-1]
            if last.role == "assistant":
                raise UsageError("the last message is the assistant's: end with a question")
            if self._attachments:
                content = composed(last.text(), self._attachments)
                messages[-1] = msgspec.structs.replace(last, content=content)
        if system and not any(message.role in ("system", "developer") for message in messages):
            messages.insert(0, Message("system", system))
        return messages

    def _key(self, asked: ChatRequest, model: Model) -> bytes:
        """What tells a question from others: all that can change its answer, and nothing else."""
        extras = msgspec.structs.replace(asked.localchat or protocol.Extras(), keep=True, max_ram=None, patient=False)
        content = [self._where, model.identity, msgspec.structs.replace(asked, model="", localchat=extras)]
        return hashlib.sha256(msgspec.json.encode(content)).digest()[:16]


def _converted(value: Any, kind: Any, key: str) -> Any:
    """A value of a line as `kind`. Raises `UsageError` naming the key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        at = (key + where.rstrip("`")).lstrip(".") or "the line"
        raise UsageError(f"{safe_line(at)}: {safe_line(plainly(problem))}") from None


def answer_of(completion: protocol.Completion, model: str, total_ms: float) -> Answer:
    """An engine's answer as it is printed; `total_ms` counts where the engine tells no figures."""
    choice = completion.choices[0] if completion.choices else None
    message = choice.message if choice else protocol.CompletionMessage("")
    usage, report = completion.usage or protocol.Usage(), completion.localchat
    cached = report.cached_tokens if report else None
    if cached is None and usage.prompt_tokens_details:
        cached = usage.prompt_tokens_details.cached_tokens
    return Answer(
        text=message.content or "",
        reasoning=message.reasoning_content or "",
        model=completion.model or model,
        finish_reason=choice.finish_reason if choice else None,
        seed=report.seed if report else None,
        usage=Usage(usage.prompt_tokens, cached or 0, usage.completion_tokens),
        timings=_rounded(report.timings if report and report.timings else protocol.Timings(total_ms=total_ms)),
    )


def answered(line: Line, answer: bytes, *, with_key: bool) -> bytes:
    """The line that is printed for an encoded `Answer`, safe for a terminal; `with_key`, so that a file can go on."""
    value: dict[str, Any] = {"id": line.id, "line": line.number}
    if with_key:
        value["key"] = line.key.hex()
    return _encoded(value | msgspec.json.decode(answer) | _extra(line))


def failed(line: Line, error: LocalchatError) -> bytes:
    """The line that is printed for one that was not answered."""
    said = {"code": error.code, "message": safe_line(error.message)}
    return _encoded({"id": line.id, "line": line.number, "error": said} | _extra(line))


def _extra(line: Line) -> dict[str, Any]:
    return {"extra": line.extra} if line.extra else {}


def _encoded(value: dict[str, Any]) -> bytes:
    return safe_json(msgspec.json.encode(value)).encode() + b"\n"


def _rounded(timings: protocol.Timings) -> protocol.Timings:
    figures = {key: round(figure, 2) for key, figure in msgspec.structs.asdict(timings).items()}
    return protocol.Timings(**figures)


class _Printed(msgspec.Struct):
    """What is read of a printed line: which line's it is, and whether it is an answer."""

    line: int
    id: Any = None
    key: str = ""
    error: Any = None
    text: str | None = None


def printed(raw: bytes) -> tuple[_Printed, bytes | None] | None:
    """A line that an earlier run printed, with the encoded `Answer` in it where it can be used again.

    None where it is no line of ours.
    """
    try:
        found = msgspec.json.decode(raw, type=_Printed)
        if found.error is None and found.text is None:
            return None
        if found.error is not None or len(found.key) != 32:
            return found, None
        bytes.fromhex(found.key)
        return found, msgspec.json.encode(msgspec.json.decode(raw, type=Answer))
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
