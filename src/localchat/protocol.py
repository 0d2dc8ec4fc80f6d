"""The messages that cross the socket: OpenAI chat completions, plus what localchat adds (always optional).

These structs are the one representation of a message: the faces build them, the client sends them, the host and the
engine read them. Field names are OpenAI's where OpenAI has one, llama.cpp's where it has (`top_k`, `min_p`,
`repeat_penalty`), and DeepSeek's for reasoning (`reasoning_content`). Times are milliseconds, sizes bytes.

Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
HEALTH_PATH = "/health"
STATUS_PATH = "/localchat/status"
LOAD_PATH = "/localchat/load"
UNLOAD_PATH = "/localchat/unload"
TOKENIZE_PATH = "/localchat/tokenize"
STOP_PATH = "/localchat/stop"

VERSION_HEADER = "X-Localchat-Version"
"""A client names its version with each request; a host of another version answers 409 and makes room for its own."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=10)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=253402214400)]  # until the end of the year 9999, wherever one is
PositiveCount = Annotated[int, msgspec.Meta(gt=0)]
RepeatPenalty = Annotated[float, msgspec.Meta(gt=0, le=10)]
TopK = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)]
RepeatWindow = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

T = TypeVar("T")

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length"]
Stage = Literal["queued", "loading", "reading"]


def _always(value: T) -> T:
    """A default that is sent too, where other defaults are left out: clients of other makers look for it."""
    field: T = msgspec.field(default_factory=lambda: value)
    return field


class Text(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    """One part of a message that came as a list of parts; localchat takes text only."""

    text: str


class Message(msgspec.Struct, omit_defaults=True, frozen=True):
    """One turn of a conversation. `reasoning_content` is what an assistant thought before it answered."""

    role: Role
    content: str | list[Text] | None = _always("")
    reasoning_content: str | None = None
    name: str | None = None

    def text(self) -> str:
        """The content as one string, whatever form it came in."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or [])


class _SamplingFields(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: RepeatWindow | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None


class Sampling(_SamplingFields, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How the next token is chosen; None means the model's recommended value, or the engine's.

    The meanings are llama.cpp's: `top_k` 0 and `top_p` 1 switch a filter off, `temperature` 0 always takes the
    likeliest token, `repeat_last_n` is in tokens. `seed` None is random, and the one that was drawn is reported.
    """


class Extras(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a request may ask of localchat beyond the standard.

    `context`: the context window wanted, in tokens. `gpu_layers`: how many layers shall lie on GPUs (0: none, None: as
    many as fit); a model that lies otherwise is loaded anew. `thinking`: switch a model's thinking on or off where its
    template can. `overflow` "slide": drop the oldest turns when the prompt does not fit, instead of refusing it.
    `progress`: send progress chunks (they have no choices, which foreign clients do not expect). `verified_only`:
    refuse a model file that has to be hashed first (`needs_verification`), so that the client can do that and show it.
    `continue_final`: the last message is an answer that broke off, and the model goes on where it ends. `keep` false:
    nothing of this request is saved on disk, not even what the model has read of it. `max_ram`: bytes that the engine
    may take altogether, for this request and those after it (None: what it was started with). `began`: when the
    conversation did, in seconds since 1970; a template that tells the date tells that one, so that what was read
    yesterday is still the beginning of today's prompt. `patient`: it is one of many, and lets those go first that a
    person waits for.
    """

    overflow: Literal["error", "slide"] = "error"
    thinking: bool | None = None
    context: PositiveCount | None = None
    gpu_layers: Count | None = None
    progress: bool = False
    verified_only: bool = False
    continue_final: bool = False
    keep: bool = True
    began: Moment | None = None
    max_ram: PositiveCount | None = None
    patient: bool = False


class StreamOptions(msgspec.Struct, omit_defaults=True, frozen=True):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ChatRequest(_SamplingFields, kw_only=True, frozen=True):
    """The body of `POST /v1/chat/completions`. Fields that only a hosted service knows are ignored."""

    messages: list[Message]
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: PositiveCount | None = None
    max_completion_tokens: PositiveCount | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    reasoning_effort: str | None = None
    localchat: Extras | None = None

    def sampling(self) -> Sampling:
        """The sampling fields on their own."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.__struct_fields__})

    def token_limit(self) -> int | None:
        """How many tokens the answer may have, thinking included; None is as many as fit."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class PromptDetails(msgspec.Struct, omit_defaults=True, frozen=True):
    """OpenAI's place for the tokens that did not have to be read again."""

    cached_tokens: int | None = _always(0)


class Usage(msgspec.Struct, frozen=True):
    """Exact token counts of one request. `completion_tokens` includes thinking and the end-of-generation token."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Timings(msgspec.Struct, frozen=True):
    """Where the time went, in milliseconds since the request reached the engine; rates in tokens per second.

    `prompt_tokens_per_second` counts only tokens that were read, not cached ones; a rate is 0 where nothing was timed.
    """

    load_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    tokens_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    total_ms: float = 0.0


class Progress(msgspec.Struct, omit_defaults=True, frozen=True):
    """How far loading (0 to 1) or reading the prompt (tokens) is; `eta_ms` None where it cannot be told yet.

    Of what is `done` of a prompt, `cached` tokens did not have to be read.
    """

    stage: Stage
    done: float
    total: float
    eta_ms: float | None = None
    cached: int = 0


class Report(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a response chunk may carry beyond the standard: progress and tokens on the way, the rest at the end.

    `completion_tokens`: how many were generated so far, up to and with this piece of the answer. Of the prompt,
    `cached_tokens` were not read again; `restored_from` says where the most of them came from, and `saved_ms` what
    reading them would have taken at the speed at which they were once read. Of `drafted_tokens` that were looked up
    in the text so far, `accepted_tokens` were what the model would have said.
    """

    progress: Progress | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    restored_from: Literal["memory", "disk"] | None = None
    saved_ms: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    dropped_messages: int = 0
    context: int | None = None
    seed: int | None = None
    timings: Timings | None = None
    warnings: list[str] = []


class Delta(msgspec.Struct, omit_defaults=True, frozen=True):
    """A piece of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One alternative of a streamed chunk; localchat makes one."""

    index: int = _always(0)
    delta: Delta = _always(Delta())
    finish_reason: str | None = None


class ErrorBody(msgspec.Struct, omit_defaults=True, frozen=True):
    """OpenAI's error object; foreign servers put numbers, strings or nothing into `code`."""

    message: str = ""
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every answer that is not 200."""

    error: ErrorBody


class Chunk(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """One server-sent event of a streamed answer; `error` ends a stream that had already begun."""

    id: str = _always("")
    object: str = _always("chat.completion.chunk")
    created: int | float = _always(0)
    model: str = _always("")
    choices: list[Choice] = msgspec.field(default_factory=lambda: [])  # noqa: PIE807  (`list` would not be sent)
    usage: Usage | None = None
    localchat: Report | None = None
    error: ErrorBody | None = None


class CompletionMessage(msgspec.Struct, omit_defaults=True, frozen=True):
    """The whole answer of a request that was not streamed."""

    content: str | None
    role: str = _always("assistant")
    reasoning_content: str | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One alternative of a whole answer."""

    message: CompletionMessage
    finish_reason: str | None
    index: int = 0


class Completion(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """The body of an answer that was not streamed."""

    id: str
    object: str = _always("chat.completion")
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    localchat: Report | None = None


class ModelCard(msgspec.Struct, omit_defaults=True, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str
    object: str = _always("model")
    created: int = _always(0)
    owned_by: str = _always("")


class ModelList(msgspec.Struct, frozen=True):
    """The body of `GET /v1/models`."""

    data: list[ModelCard]
    object: str = "list"


class LoadRequest(msgspec.Struct, omit_defaults=True, frozen=True):
    """The body of `POST /localchat/load`: have this model warm (`verified_only` and `max_ram` as in `Extras`)."""

    model: str = ""
    context: PositiveCount | None = None
    gpu_layers: Count | None = None
    verified_only: bool = False
    max_ram: PositiveCount | None = None


class TokenizeRequest(msgspec.Struct, omit_defaults=True, frozen=True):
    """The body of `POST /localchat/tokenize`: how many tokens would this text be? (The rest as in `LoadRequest`.)"""

    text: str
    model: str = ""
    verified_only: bool = False
    max_ram: PositiveCount | None = None


class TokenizeResponse(msgspec.Struct, frozen=True):
    """Token ids of a text, none of them a control token."""

    tokens: list[int]


class DeviceUse(msgspec.Struct, frozen=True):
    """A device beside the processor that holds part of a model: llama.cpp's name for it, its maker's, and bytes."""

    name: str
    description: str
    bytes: int


class LoadedModel(msgspec.Struct, frozen=True):
    """What is in memory. Sizes are bytes, `context` tokens, `architecture` is llama.cpp's name for it.

    `gpu_layers` of its `layers` (the output head counts as one) lie on `devices`, with their share of the window.
    `threads` compute an answer and `prefill_threads` read (0: as many). `kept_bytes` are held beside the window, so
    that prompts which part from what was read in its middle need not be read from their beginning.
    """

    name: str
    path: str
    architecture: str
    parameters: int
    file_bytes: int
    context: int
    context_trained: int
    kv_bytes: int
    threads: int
    layers: int = 0
    gpu_layers: int = 0
    devices: list[DeviceUse] = []
    prefill_threads: int = 0
    kept_bytes: int = 0


class Status(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """The body of `GET /localchat/status`.

    `resident_bytes` counts the whole host with file-backed pages, `anonymous_bytes` without; `leaves_in_s` is when the
    host ends if nobody asks anything (None: never, or busy). `on_demand`: a client started it, nobody watches it.
    `max_ram` is the ceiling (None: there is none) for `taken_bytes`, which count the process of the templates too.
    """

    version: str
    pid: int
    started: float
    idle_s: float
    leaves_in_s: float | None = None
    on_demand: bool = False
    active: int = 0
    queued: int = 0
    answered: int = 0
    resident_bytes: int = 0
    anonymous_bytes: int = 0
    taken_bytes: int = 0
    max_ram: int | None = None
    address: str = ""
    log: str = ""
    model: LoadedModel | None = None
