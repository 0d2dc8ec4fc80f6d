"""From token bytes to text: whole characters, thinking apart from the answer, stop strings held back exactly.

Each stage takes what has arrived and gives what is certain, keeping back only what the next bytes could still change.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ThinkingTags:
    """How one family of models marks what it thinks.

    `answer` are strings that open the answer itself where the model does not think at all.
    """

    open: str
    close: str
    answer: tuple[str, ...] = ()


THINKING_FAMILIES = (
    # DeepSeek R1 and its distills, Qwen3, SmolLM3, Granite, GLM, Phi-4-reasoning, …
    ThinkingTags("<think>", "</think>"),
    # gpt-oss (the harmony format: channels instead of tags)
    ThinkingTags(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        ("<|channel|>final<|message|>",),
    ),
    # Gemma 4
    ThinkingTags("<|channel>thought", "<channel|>"),
    # Magistral and Ministral reasoning
    ThinkingTags("[THINK]", "[/THINK]"),
    # Command R and A
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>",)),
    # Seed-OSS, MiniMax, Kimi
    ThinkingTags("<seed:think>", "</seed:think>"),
    ThinkingTags("<mm:think>", "</mm:think>"),
    ThinkingTags("◁think▷", "◁/think▷"),
)


def thinking_family(template: str) -> ThinkingTags | None:
    """The family whose marks a chat template mentions, or None where its model does not think."""
    for tags in THINKING_FAMILIES:
        # Harmony's marks are put together by the template, so its head is enough.
        if tags.close in template or tags.open.split("<|message|>")[0] in template:
            return tags
    return None


def held_back(text: str, marks: list[str] | tuple[str, ...]) -> int:
    """How many characters at the end of `text` could still become one of `marks`."""
    longest = max((len(mark) for mark in marks), default=0)
    for size in range(min(len(text), longest - 1), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0


class StopStrings:
    """Cuts a stream at the first of several strings and lets nothing of that string through."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """The text that is certain to precede any stop string; after a hit, nothing more."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        # The first to be complete wins, not the first to begin: so the cut does not depend on where tokens end.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)[1]]
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and, as it turns out, belongs to the answer."""
        held, self._held = self._held, ""
        return "" if self.hit else held


@dataclass
class Piece:
    """Text that became certain: what the model thought, then what it answered."""

    reasoning: str = ""
    content: str = ""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content)


class ThinkingSplitter:
    """Separates thinking from answer. Only the very beginning of an answer can open thinking: later marks are text.

    `inside`: the generation prompt has already opened the thinking.
    """

    def __init__(self, tags: ThinkingTags | None, *, inside: bool = False) -> None:
        self._tags = tags
        self._state = "answer" if tags is None else "thinking" if inside else "start"
        self._held = ""
        self._skip_space = inside

    @property
    def is_thinking(self) -> bool:
        """Whether the next character would be thought rather than answered."""
        return self._state == "thinking"

    def feed(self, text: str) -> Piece:
        """Split what has arrived."""
        piece = Piece()
        text = self._held + text
        self._held = ""
        while text:
            before = self._state
            text = self._step(text, piece)
            if self._state == before:
                break
        self._held = text
        return piece

    def finish(self) -> Piece:
        """What was held back at the end: it belongs to wherever the stream was."""
        held, self._held = self._held, ""
        return Piece(reasoning=held) if self._state == "thinking" else Piece(content=held)

    def _step(self, text: str, piece: Piece) -> str:
        """Handle `text` in the present state; what is returned must be looked at again, now or with more text."""
        tags = self._tags
        if self._state == "start":
            assert tags is not None
            head = text.lstrip()
            for mark, state in ((tags.open, "thinking"), *((mark, "answer") for mark in tags.answer)):
                if head.startswith(mark):
                    self._state, self._skip_space = state, True
                    return head[len(mark) :]
            if any(mark.startswith(head) for mark in (tags.open, *tags.answer)):
                return text
            self._state = "answer"
            return text
        if self._skip_space:
            text = text.lstrip()
            if not text:
                return ""
        if self._state == "thinking":
            assert tags is not None
            at = text.find(tags.close)
            if at >= 0:
                piece.reasoning += text[:at].rstrip()
                self._state, self._skip_space = "answer", True
                return text[at + len(tags.close) :]
            # White space before the closing mark is layout, not thought: hold it until a word follows.
            keep = held_back(text, (tags.close,))
            certain = text[: len(text) - keep].rstrip()
            if certain:
                piece.reasoning += certain
                self._skip_space = False
            return text[len(certain) :]
        self._skip_space = False
        piece.content += text
        return ""


@dataclass
class AnswerText:
    """From bytes to pieces: characters, thinking, stop strings (which end the answer, not the thinking)."""

    tags: ThinkingTags | None = None
    inside: bool = False
    stops: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._splitter = ThinkingSplitter(self.tags, inside=self.inside)
        self._stops = StopStrings(self.stops)

    @property
    def is_thinking(self) -> bool:
        """Whether the model is thinking now."""
        return self._splitter.is_thinking

    @property
    def stopped(self) -> bool:
        """Whether a stop string was reached."""
        return self._stops.hit

    def feed(self, data: bytes) -> Piece:
        """The text that the bytes of one more token made certain."""
        text = self._decoder.decode(data)
        if not text:
            return Piece()
        piece = self._splitter.feed(text)
        piece.content = self._stops.feed(piece.content)
        return piece

    def finish(self) -> Piece:
        """The rest at the end of generation. Half a character is dropped: its other half will never come."""
        piece = self._splitter.finish()
        piece.content = self._stops.feed(piece.content) + self._stops.finish()
        return piece
