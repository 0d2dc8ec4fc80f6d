"""What of a conversation the model gets to see."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from localchat.chats.records import Attachment, ChatSettings, Node
from localchat.chats.requests import as_sent, composed, request, visible
from localchat.protocol import Extras, Message, Sampling, StreamOptions


def path_of(*turns: str) -> list[Node]:
    """A path of turns: "u:" the person's, "a:" a model's, with "^" at the end where a summary stands for it."""
    nodes: list[Node] = []
    for number, turn in enumerate(turns, 1):
        role, _, words = turn.partition(":")
        summary = f"summary {number}" if words.endswith("^") else None
        message = Message("user" if role == "u" else "assistant", words.rstrip("^"), "hm" if role == "a" else None)
        nodes.append(Node(number, number - 1 or None, message, summary=summary))
    return nodes


def seen(*turns: str) -> list[str]:
    return [node.message.text() for node in visible(path_of(*turns))[0]]


def test_all_of_the_settings_go_along() -> None:
    settings = ChatSettings("m", "Be brief.", Sampling(temperature=0.5, seed=3), 9, 2048, ["X"], False, 4, "slide")
    sent = request(path_of("u:one", "a:first", "u:two"), settings)
    assert sent.messages == [
        Message("system", "Be brief."),
        Message("user", "one"),
        Message("assistant", "first"),
        Message("user", "two"),
    ]
    assert (sent.model, sent.temperature, sent.seed, sent.max_tokens, sent.stream) == ("m", 0.5, 3, 9, True)
    assert sent.localchat == Extras(progress=True, context=2048, thinking=False, gpu_layers=4, overflow="slide")
    assert (sent.stop, sent.stream_options) == (["X"], StreamOptions(include_usage=True))
    plain = request(path_of("u:one"), ChatSettings())
    assert (plain.messages, plain.stop, plain.max_tokens) == ([Message("user", "one")], None, None)


def test_a_conversation_began_with_its_first_message() -> None:
    nodes = path_of("u:one", "a:first", "u:two")
    for number, node in enumerate(nodes):
        node.created = 1000.0 + number
    sent = request(nodes, ChatSettings())
    assert sent.localchat and sent.localchat.began == 1000.0


def test_going_on_sends_the_answer_that_broke_off_with_its_thinking() -> None:
    sent = request(path_of("u:one", "a:first", "u:two", "a:hal"), ChatSettings(), go_on=True)
    assert sent.messages[-3:] == [
        Message("assistant", "first"),
        Message("user", "two"),
        Message("assistant", "hal", "hm"),
    ]
    assert sent.localchat and sent.localchat.continue_final
    only_thought = request(path_of("u:one", "a:"), ChatSettings(), go_on=True)
    assert only_thought.messages == [Message("user", "one"), Message("assistant", "", "hm")]


def test_what_was_never_answered_is_left_out() -> None:
    assert seen("u:one", "a:", "u:two") == ["two"]
    assert seen("u:one", "a:first", "u:lost", "a:", "u:three") == ["one", "first", "three"]
    assert seen("u:one", "u:two") == ["two"]
    assert seen("u:one") == ["one"]
    assert seen() == []


def test_a_summary_stands_for_all_before_it() -> None:
    path = path_of("u:one", "a:first^", "u:two", "a:second^", "u:three", "a:third", "u:four")
    nodes, summary = visible(path)
    assert ([node.message.text() for node in nodes], summary) == (["three", "third", "four"], "summary 4")
    sent = request(path, ChatSettings(system="Be brief."))
    assert sent.messages[0].role == "system"
    assert re.fullmatch(r"Be brief\.\n\n.*\n\nsummary 4", sent.messages[0].text(), re.DOTALL)
    assert visible(path_of("u:one", "a:first^"))[1] is None


turns = st.lists(st.tuples(st.sampled_from("ua"), st.sampled_from(["", "x", "y^"])), max_size=12)


@given(turns)
def test_roles_take_turns_and_the_last_message_is_always_sent(drawn: list[tuple[str, str]]) -> None:
    alternating = [
        f"{'ua'[number % 2]}:{words or ('' if number % 2 else 'q')}" for number, (_, words) in enumerate(drawn)
    ]
    nodes, _ = visible(path_of(*alternating))
    roles = [node.message.role for node in nodes]
    assert all(one != other for one, other in itertools.pairwise(roles))
    assert [node.id for node in nodes][-1:] == ([len(drawn)] if drawn else [])
    anyhow, _ = visible(path_of(*(f"{role}:{words}" for role, words in drawn)))
    assert [node.id for node in anyhow] == sorted(node.id for node in anyhow)
    assert [node.id for node in anyhow][-1:] == ([len(drawn)] if drawn else [])


def test_attachments_come_before_the_words() -> None:
    files = [Attachment("a.py", "print()\n"), Attachment("", "piped in")]
    assert composed("What is this?", files) == "a.py:\n```\nprint()\n```\n\npiped in\n\nWhat is this?"
    assert composed("  ", files[1:]) == "piped in"
    node = Node(1, None, Message("user", "What?", name="me"), attachments=files[1:])
    assert as_sent(node) == Message("user", "piped in\n\nWhat?", name="me")


@given(st.text(st.sampled_from("`a\n ~"), max_size=40))
def test_a_file_cannot_close_its_fence(text: str) -> None:
    first, *inside, last = composed("", [Attachment("f", text)]).splitlines()[1:]
    assert first == last and set(first) == {"`"} and len(first) >= 3
    assert not any(line.strip().startswith(first) for line in inside)
    assert "\n".join(inside) == "\n".join(text.rstrip("\n").splitlines()) or not text.strip()
