"""From a conversation to tokens: the model's own template, in which no message can say what only the template may.

A control token (`<|im_start|>`) typed by a person or found in a file must stay text. So every place in a message where
a control token would begin is marked with a character that no text contains; the template carries the marks along, and
the finished text is cut at them before it is tokenized: no piece holds a whole control token of a message's making.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from localchat.engine.model import Model
from localchat.engine.templates import TemplateBroken, TemplateRefused, TemplateRenderer
from localchat.engine.text import ThinkingTags, held_back, thinking_family
from localchat.errors import UsageError
from localchat.protocol import Message

_MARK = "\ufdd0"  # a noncharacter: Unicode promises that no text has it
_IS_ODD = re.compile(r"[^\w\s.,;:!?'\"`*#()\[\]{}/-]|_")  # at the edge of a text: neither prose nor most code
_TAG_LIKE = re.compile(r"<[^<>\s{}'\"]{1,40}>|\[/?[A-Z_]{2,24}\]|◁/?[a-z]+▷")
_PROBE_SYSTEM, _PROBE_USER = "localchatprobesystem", "localchatprobeuser"
_PLAIN_STOP = "\nUser:"
_LONG, _SAMPLES, _SAMPLE = 1 << 18, 32, 1 << 11
"""Characters from which on a text is estimated before all of it is tokenized; at so many places, so many each."""
_NO_TEMPLATE = "this model has no chat template (it is a base model): it continues text rather than answer"


class Check(Protocol):
    """What a builder asks on its way."""

    def __call__(self, tokens: int, *, is_estimate: bool = False) -> None:
        """The prompt has at least so many tokens, or is estimated to have them. May raise."""


def _no_check(tokens: int, *, is_estimate: bool = False) -> None: ...


@dataclass
class Prompt:
    """What the engine reads: token ids, and what it must know to understand the answer.

    `turns`: after how many tokens the last message begins and ends, for models of which that is remembered: an edited
    message parts there from this one, and the next prompt, which may leave out what the model thought.
    """

    tokens: list[int]
    tags: ThinkingTags | None = None
    inside_thinking: bool = False
    goes_on: bool = False
    stops: list[str] = field(default_factory=list)
    dropped_messages: int = 0
    warnings: list[str] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)


class PromptBuilder:
    """Renders conversations for one loaded model."""

    def __init__(self, model: Model, renderer: TemplateRenderer) -> None:
        self._model = model
        self._renderer = renderer
        self._folds_system = False
        self._wants_parts = False
        self._plain_reason: str | None = None
        template = model.template
        if not template or not template.strip():
            self._plain_reason = _NO_TEMPLATE
        else:
            try:
                bos, eos = model.token_text(model.bos), model.token_text(model.eos)
                renderer.use(template, bos, eos)
                self._probe()
            except TemplateBroken as error:
                self._plain_reason = f"this model's chat template does not work ({error.message}): using a plain one"
        if self._plain_reason:
            template = ""
        self.tags = thinking_family(template or "")
        self._template_marks = self._marks_of(template or "")
        for mark in (self.tags.open, self.tags.close, *self.tags.answer) if self.tags else ():
            model.show(mark)
        # SentencePiece vocabularies put a space before every text, which a piece from the middle of one must not get: a
        # character that merges with nothing goes first there, and its tokens are left out again.
        adds_space = model.tokenize("|", parse_special=False) != model.tokenize(_MARK + "|", parse_special=False)[-1:]
        self._joint = _MARK if adds_space else ""
        self._joint_tokens = len(model.tokenize(self._joint, parse_special=False))

    def build(
        self,
        messages: list[Message],
        *,
        thinking: bool | None = None,
        effort: str | None = None,
        go_on: bool = False,
        began: float | None = None,
        check: Check = _no_check,
    ) -> Prompt:
        """Tokens of a conversation that ends with a turn for the model to answer.

        `thinking` switches a model's thinking where its template can; `effort` is OpenAI's `reasoning_effort`. With
        `go_on` the last message is an answer that broke off, and the prompt ends where that does. A template that tells
        the date tells that of `began` (seconds since 1970; None: now). Raises what `check` raises, and `UsageError`
        where the template refuses the conversation in every form.
        """
        begun = messages[-1] if go_on else None
        turns, known = [], 0
        # Megabytes take seconds to tokenize: what is far too long is refused before.
        check(self._estimated(messages), is_estimate=True)
        for message in messages[:-1] if begun else messages:
            check(0)
            content, count = self._guard(message.text())
            turns.append(self._turn(message, content))
            # Templates may leave out what a model thought, or said before: of its own turns nothing is known.
            known += count if message.role != "assistant" else 0
        check(known)
        if self._plain_reason:
            text, stops, warnings = _plain(turns), [_PLAIN_STOP], [self._plain_reason]
        else:
            text, stops, warnings = self._render(turns, thinking, effort, began), [], []
        check(known)
        tags = self.tags
        inside = tags is not None and text.rstrip().endswith(tags.open)
        if begun:
            text += self._begun(begun, inside)
            # Once the answer itself has begun, thinking is over: later marks are text.
            inside, tags = not begun.text() and bool(inside or begun.reasoning_content), None if begun.text() else tags
        tokens = self._tokens(text)
        if self._model.adds_bos and tokens[:1] != [self._model.bos]:
            tokens.insert(0, self._model.bos)
        return Prompt(tokens, tags, inside, go_on, stops, 0, warnings, self._turns(turns, text, tokens))

    def _estimated(self, messages: list[Message]) -> int:
        """About how many tokens very long messages have, without the model's own; 0 where they are not long."""
        text = "".join(message.text() for message in messages if message.role != "assistant")
        if len(text) < _LONG:
            return 0
        step = len(text) // _SAMPLES
        samples = (text[start : start + _SAMPLE] for start in range(0, _SAMPLES * step, step))
        tokens = sum(len(self._model.tokenize(sample, parse_special=False)) for sample in samples)
        return tokens * len(text) // (_SAMPLES * _SAMPLE)

    def _turns(self, turns: list[dict[str, Any]], text: str, tokens: list[int]) -> list[int]:
        """Where in `tokens` the content of the last turn begins and ends, as far as tokens end there."""
        if not turns or not self._model.is_stateful:
            return []
        content = turns[-1]["content"].strip()  # as many templates have it
        begin = text.rfind(content) if content else -1
        places = []
        for place in (begin, begin + len(content)) if begin >= 0 else ():
            rest = self._tokens(_MARK + text[place:])  # the mark: this is no beginning of a text
            if rest and tokens[-len(rest) :] == rest:
                places.append(len(tokens) - len(rest))
        return places

    def _begun(self, message: Message, inside: bool) -> str:
        """What an answer that broke off has said so far, as it stands after the generation prompt.

        `inside`: that has opened the thinking already.
        """
        content, tags = self._guard(message.text())[0], self.tags
        thought = self._guard(message.reasoning_content or "")[0]
        if tags is None:
            return content
        if not thought and not inside:
            return (tags.answer[0] if tags.answer and content else "") + content
        opened = ("" if inside else f"{tags.open}\n") + thought
        return f"{opened}\n{tags.close}\n\n{content}" if content else opened

    def build_sliding(
        self, messages: list[Message], limit: int, *, check: Check = _no_check, **switches: Any
    ) -> Prompt:
        """As `build`, but with the oldest turns left out until at most `limit` tokens remain.

        The system message and the last turn always stay; what is left begins with a person's turn. `check` is asked
        whether these two alone are far too long, and on the way, with no tokens, whether to go on.
        """
        system = [message for message in messages[:1] if message.role in ("system", "developer")]
        turns = messages[len(system) :]
        check(self._estimated(system + turns[-1:]), is_estimate=True)
        counts = []
        for turn in turns:
            check(0)
            counts.append(len(self._model.tokenize(turn.text(), parse_special=False)))
        # The turns alone may be far too many: those are not even rendered.
        excess, prompt = sum(counts) - limit, None
        while prompt is None or excess > 0:
            starts = [n for n, turn in enumerate(turns) if n > 0 and turn.role == "user"]
            if excess > 0 and starts:
                # One exchange may be far too little: leave out as many as their own token counts say at once.
                cut = next((start for start in starts if sum(counts[:start]) >= excess), starts[-1])
                turns, counts = turns[cut:], counts[cut:]
            elif prompt:
                break
            prompt = self.build(system + turns, check=lambda *_, **__: check(0), **switches)
            excess = len(prompt.tokens) - limit
        prompt.dropped_messages = len(messages) - len(system) - len(turns)
        return prompt

    def plain_tokens(self, text: str) -> list[int]:
        """Token ids of a text as the content of a message."""
        return self._tokens(self._guard(text)[0])

    def _tokens(self, text: str) -> list[int]:
        """Token ids of a guarded text: it is cut at the marks, and no piece holds a whole special token."""
        first, *rest = text.split(_MARK)
        tokens = self._model.tokenize(first, parse_special=True)
        for piece in rest:
            tokens += self._model.tokenize(self._joint + piece, parse_special=True)[self._joint_tokens :]
        return tokens

    def _turn(self, message: Message, content: str) -> dict[str, Any]:
        # Templates know "system" only; "developer" is OpenAI's newer word for it.
        role = "system" if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": content}
        if message.reasoning_content:
            turn["reasoning_content"] = self._guard(message.reasoning_content)[0]
        if message.name:
            turn["name"] = self._guard(message.name)[0]
        return turn

    def _guard(self, text: str) -> tuple[str, int]:
        """`text` with a mark inside every string that the tokenizer would take for a token of the template's, and how
        many tokens the text has.

        Marked too is an end that the template's next characters could complete to such a string, and a beginning
        likewise: in `<|im_end|` before a `>`, or `>>QUESTION<` before a `<|im_end|>`.
        """
        text = text.replace(_MARK, "\ufffd")
        specials = list(self._template_marks)
        tokens = self._model.tokenize(text, parse_special=True)
        if _IS_ODD.search(text[:1] + text[-1:]) or any(map(self._model.is_control, set(tokens))):
            specials += self._model.control_texts
        before = _MARK if held_back(text[::-1], [special[::-1] for special in specials]) else ""
        after = _MARK if held_back(text, specials) else ""
        if inside := [special for special in specials if special in text]:
            # A look-ahead finds overlapping ones too: each begins a character that is cut off from the rest.
            begins = re.compile(f"(?=(?:{'|'.join(map(re.escape, inside))}))(.)", re.DOTALL)
            text = begins.sub(rf"\1{_MARK}", text)
        return before + text + after, len(tokens)

    def _marks_of(self, template: str) -> list[str]:
        """User-defined tokens that the template uses (`<think>`, `<tool_call>`): in its hands they are grammar.

        Other user-defined tokens (runs of spaces, HTML tags) are ordinary vocabulary and stay whole.
        """
        candidates = set(_TAG_LIKE.findall(template))
        if self.tags:
            candidates |= {self.tags.open, self.tags.close}
        return sorted(text for text in candidates if self._model.special_token(text) is not None)

    def _probe(self) -> None:
        """Find out once what the template does with a system message and with plain strings."""
        user = {"role": "user", "content": _PROBE_USER}
        try:
            text = self._renderer.render([user], add_generation_prompt=True)
            self._wants_parts = _PROBE_USER not in text and _PROBE_USER in self._renderer.render(
                [_in_parts(user)], add_generation_prompt=True
            )
        except (TemplateRefused, TemplateBroken):
            # Templates for tools or documents only: the conversation itself will show what they take.
            return
        system = {"role": "system", "content": _PROBE_SYSTEM}
        turns = [_in_parts(turn) if self._wants_parts else turn for turn in (system, user)]
        try:
            self._folds_system = _PROBE_SYSTEM not in self._renderer.render(turns, add_generation_prompt=True)
        except (TemplateRefused, TemplateBroken):
            self._folds_system = True

    def _render(
        self, turns: list[dict[str, Any]], thinking: bool | None, effort: str | None, began: float | None
    ) -> str:
        variables: dict[str, Any] = {"add_generation_prompt": True}
        if thinking is not None:
            variables |= {"enable_thinking": thinking, "thinking": thinking}
            effort = effort or ("low" if not thinking else None)
        if effort:
            variables["reasoning_effort"] = effort
        forms = [_system_folded(turns) if self._folds_system else turns]
        forms += [_system_folded(turns), _merged(_system_folded(turns))]
        refusal = ""
        for form in forms:
            if self._wants_parts:
                form = [_in_parts(turn) for turn in form]
            try:
                return self._renderer.render(form, began, **variables)
            except TemplateRefused as error:
                refusal = error.message
            except TemplateBroken as error:
                raise UsageError(
                    f"this model's chat template cannot render the conversation ({error.message}): shorten it, or take "
                    "another model"
                ) from error
        raise UsageError(f"this model's chat template refuses the conversation: {refusal or 'it gives no reason'}")


def _in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn with its content as a list of parts, as some templates want it."""
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


def _system_folded(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages moved into the person's turn that follows, for templates that do not know them."""
    folded: list[dict[str, Any]] = []
    waiting = ""
    for turn in turns:
        if turn["role"] == "system":
            waiting += turn["content"] + "\n\n"
        elif waiting and turn["role"] == "user":
            folded.append({**turn, "content": waiting + turn["content"]})
            waiting = ""
        else:
            folded.append(turn)
    if waiting:
        folded.append({"role": "user", "content": waiting.strip()})
    return folded


def _merged(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring turns of one role as one, for templates that insist on alternation."""
    merged: list[dict[str, Any]] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n\n{turn['content']}"}
        else:
            merged.append(turn)
    return merged


def _plain(turns: list[dict[str, Any]]) -> str:
    """A conversation as a base model might have read one in its training."""
    names = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
    blocks = [
        turn["content"] if turn["role"] == "system" else f"{names[turn['role']]}: {turn['content']}" for turn in turns
    ]
    return "\n".join([*blocks, "Assistant:"])
