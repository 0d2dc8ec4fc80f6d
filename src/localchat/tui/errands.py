"""What a model is asked beside the conversation: a title for it, or a summary of its older part."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from localchat.chats.records import ChatSettings, Node
from localchat.chats.reply import Reply
from localchat.chats.requests import request
from localchat.errors import LocalchatError
from localchat.protocol import ChatRequest, Chunk, Extras, Message
from localchat.safe_text import safe_line
from localchat.tui.exchange import Ended, Engine, Exchange

_TITLE_TOKENS = 24
_TITLE_CHARS = 60
_TITLE_WORDS = 9
_CHATTER = re.compile(
    r"(this|the) (conversation|chat|title)\b|here (is|are|'s)\b|sure\b|i('m| am|'d| would)\b", re.IGNORECASE
)
_SUMMARY_TOKENS = 512

# They stand after the conversation itself, so that the engine finds all of it read.
_TITLE = "Give this conversation a title of two to six words. Answer with the title only."
_SUMMARY = (
    "Summarise our conversation so far for your own memory, in at most 250 words: facts, names, decisions, open "
    "questions, and what I asked for. Answer with the summary only."
)


class Errand:
    """A request beside the conversation; `done` gets the text once it is whole, `failed` why there is none."""

    def __init__(
        self,
        what: str,
        engine: Engine,
        asked: ChatRequest,
        now: float,
        done: Callable[[str], object],
        failed: Callable[[LocalchatError], object] = lambda error: None,
    ) -> None:
        self.what = what
        self.reply = Reply(now)
        self._done = done
        self._failed = failed
        self._exchange = Exchange(engine, asked)

    def look(self, now: float) -> bool:
        """Take in what has come; True once it is over."""
        for event in self._exchange.poll():
            if isinstance(event, Chunk):
                self.reply.take(event, now)
            elif isinstance(event, Ended):
                if event.error:
                    self._failed(event.error)
                else:
                    self._done(self.reply.text.strip())
                return True
        return False

    def stop(self) -> None:
        """Give it up."""
        self._exchange.stop()


def title_request(path: Sequence[Node], settings: ChatSettings, *, keep: bool = True) -> ChatRequest:
    """The request for a chat's title (`keep` as in `requests.request`)."""
    return _beside(path, settings, _TITLE, _TITLE_TOKENS, keep)


def summary_request(path: Sequence[Node], settings: ChatSettings, *, keep: bool = True) -> ChatRequest:
    """The request for a summary of a path. What does not fit into the window any more is not in it."""
    return _beside(path, settings, _SUMMARY, _SUMMARY_TOKENS, keep)


def title_from(text: str) -> str:
    """A title from what a model said: its first line, without quotes, marks and a closing stop; "" if it is none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^(?:[#>*\s-]+|title\s*:)+|[*_`]+", "", safe_line(line), flags=re.IGNORECASE).strip(" \"'“”‘’«».:")
    is_title = 0 < len(line) <= _TITLE_CHARS and len(line.split()) <= _TITLE_WORDS and not _CHATTER.match(line)
    return line if is_title else ""


def _beside(path: Sequence[Node], settings: ChatSettings, question: str, tokens: int, keep: bool) -> ChatRequest:
    asked = Node(0, path[-1].id, Message("user", question))
    whole = request([*path, asked], settings, keep=keep)
    extras = msgspec.structs.replace(whole.localchat or Extras(), overflow="slide", thinking=False)
    return msgspec.structs.replace(whole, max_tokens=tokens, stop=None, localchat=extras)
