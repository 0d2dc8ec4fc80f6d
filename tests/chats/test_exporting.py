"""Export: what the Markdown says, and that the JSON brings back the same tree."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from localchat.chats.exporting import WholeChat, as_json, as_markdown, every_message, file_name
from localchat.chats.importing import parse, take_in
from localchat.chats.records import Attachment, ChatInfo, ChatSettings, Node, Outcome
from localchat.chats.store import Chats
from localchat.chats.tree import Tree
from localchat.errors import UsageError
from localchat.protocol import Message, Sampling, Timings, Usage

SEED = int(os.environ.get("LOCALCHAT_SEED", "20261122"))
WHEN = 1_764_000_000.25


def answer(id: int, parent: int, text: str, **more: object) -> Node:
    reasoning = more.pop("reasoning", None)
    outcome = more.pop("outcome", Outcome(model="m-1b"))
    return Node(id, parent, Message("assistant", text, reasoning), created=WHEN + id, outcome=outcome, **more)  # type: ignore[arg-type]


def said(id: int, parent: int | None, text: str, *attachments: Attachment) -> Node:
    return Node(id, parent, Message("user", text), created=WHEN + id, attachments=list(attachments))


def info_of(tree: Tree, **changes: object) -> ChatInfo:
    base = ChatInfo(7, "chat", "Rain", "person", False, WHEN, WHEN + 9, ChatSettings(), tree.tip, len(tree.nodes))
    return msgspec.structs.replace(base, **changes)


def test_markdown_shows_the_path_with_everything_that_belongs_to_it() -> None:
    tree = Tree(
        [
            said(1, None, "What is this?", Attachment("a.md", "```\ncode\n```\n"), Attachment("", "piped")),
            answer(2, 1, "an old answer"),
            answer(3, 1, "A **file**.", reasoning="Let me see.", outcome=Outcome(model="m-1b", thinking_ms=3210)),
            said(4, 3, "Go on"),
            answer(5, 4, "half", state="failed", outcome=Outcome(model="n-2b", error="it broke\x1b[2J")),
        ],
        5,
    )
    text = as_markdown(info_of(tree, settings=ChatSettings(system="Be brief.\nBe kind.")), tree)
    assert text.startswith("# Rain\n\n2025-11-24 ")
    assert " · m-1b · n-2b · 5 messages\n" in text
    assert "**System prompt**\n\n> Be brief.\n> Be kind.\n" in text
    assert (
        "## You\n\n**a.md**\n\n````\n```\ncode\n```\n````\n\n**piped in**\n\n```\npiped\n```\n\nWhat is this?\n" in text
    )
    assert "## Model (m-1b)\n\n<details>\n<summary>Thinking (3.2 s)</summary>\n\nLet me see.\n\n</details>\n\n" in text
    assert "</details>\n\nA **file**.\n" in text
    assert "an old answer" not in text
    assert "half\n\n*(broke off: it broke\u241b[2J)*\n" in text and "\x1b" not in text


def test_every_branch_is_shown_once_with_what_it_follows() -> None:
    tree = Tree(
        [said(1, None, "q"), answer(2, 1, "one"), answer(3, 1, "two"), said(4, 2, "more"), answer(5, 4, "end")], 3
    )
    text = as_markdown(info_of(tree), tree, every_branch=True)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## You (message 1)",
        "## Model (m-1b) (message 2, after 1, version 1 of 2)",
        "## You (message 4, after 2)",
        "## Model (m-1b) (message 5, after 4)",
        "## Model (m-1b) (message 3, after 1, version 2 of 2)",
    ]


def test_a_deep_chat_is_no_trouble() -> None:
    nodes = [said(number, number - 1 or None, f"m{number}") for number in range(1, 5001)]
    assert [node.id for node in every_message(Tree(nodes))] == list(range(1, 5001))


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Rain in Spain?", "7-rain-in-spain.md"),
        ("../../etc/passwd", "7-etc-passwd.md"),
        ("", "7.md"),
        ("a\x1b]0;x\x07b/c", "7-a-0-x-b-c.md"),
        ("雨" * 60, f"7-{'雨' * 26}.md"),
    ],
)
def test_a_file_s_name_is_safe_on_every_file_system(title: str, name: str) -> None:
    found = file_name(info_of(Tree(), title=title), "md")
    assert found == name and len(found.encode()) < 120


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
outcomes = st.builds(
    Outcome,
    model=texts,
    error=st.none() | texts,
    finish_reason=st.none() | st.sampled_from(["stop", "length"]),
    usage=st.none() | st.builds(Usage, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    timings=st.none() | st.builds(Timings, st.floats(0, 1e6)),
    seed=st.none() | st.integers(0, (1 << 63) - 1),
    warnings=st.lists(texts, max_size=2),
    thinking_ms=st.none() | st.floats(0, 1e6),
)


@st.composite
def whole_chats(draw: st.DrawFn) -> WholeChat:
    nodes: list[Node] = []
    for number in range(draw(st.integers(0, 8))):
        parent = draw(st.none() | st.sampled_from([node.id for node in nodes])) if nodes else None
        role = draw(st.sampled_from(["user", "assistant", "system", "tool"]))
        nodes.append(
            Node(
                number * 3 + 1,
                parent,
                Message(role, draw(texts), draw(st.none() | texts), draw(st.none() | texts.filter(bool))),  # type: ignore[arg-type]
                draw(st.sampled_from(["done", "stopped", "failed", "broken"])),
                draw(st.floats(1, 2e9)),
                draw(outcomes),
                draw(st.lists(st.builds(Attachment, texts, texts, st.none() | st.integers(0, 99)), max_size=2)),
                draw(st.none() | texts.filter(bool)),
            )
        )
    return WholeChat(
        title=draw(texts.filter(lambda text: text.split() and text == " ".join(text.split()))),
        titled_by=draw(st.sampled_from(["words", "model", "person"])),
        kind=draw(st.sampled_from(["chat", "ask"])),
        pinned=draw(st.booleans()),
        created=draw(st.floats(1, 2e9)),
        settings=ChatSettings(
            draw(texts),
            draw(st.none() | texts),
            Sampling(temperature=draw(st.none() | st.floats(0, 10))),
            stop=draw(st.lists(texts)),
        ),
        tip=draw(st.sampled_from([node.id for node in nodes])) if nodes else None,
        messages=nodes,
    )


def shape(chat: WholeChat) -> object:
    """A chat without its numbers: each message with the place of its parent."""
    place = {node.id: number for number, node in enumerate(chat.messages)}
    messages = [
        (place[node.parent] if node.parent is not None else None, msgspec.structs.replace(node, id=0, parent=None))
        for node in chat.messages
    ]
    about = chat.title, chat.titled_by, chat.kind, chat.pinned, chat.created, chat.settings
    return about, None if chat.tip is None else place[chat.tip], messages


@seed(SEED)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(wanted=st.lists(whole_chats(), min_size=1, max_size=2, unique_by=lambda chat: chat.created))
def test_json_brings_back_an_equal_tree(wanted: list[WholeChat], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The seed is in LOCALCHAT_SEED, or 20261122."""
    folder = tmp_path_factory.mktemp("round")
    file = folder / "chats.json"
    file.write_bytes(as_json(wanted))
    with closing(Chats(folder / "chats.db")) as chats:
        take_in(chats, parse(file))
        there = [WholeChat.of(info, chats.tree(info.id)) for info in chats.chats(None)]
        again = take_in(chats, parse(file))
    assert sorted(map(repr, map(shape, there))) == sorted(map(repr, map(shape, wanted)))
    assert (again.new, again.grown, again.known, again.messages) == (0, 0, len(wanted), 0)


def damaged(change: object) -> bytes:
    document = json.loads(as_json([WholeChat(title="t", messages=[said(1, None, "q"), answer(2, 1, "a")], tip=2)]))
    assert callable(change)
    return json.dumps(change(document) or document).encode()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda it: it.update(version=2), "written by a newer localchat"),
        (lambda it: it["chats"][0]["messages"][1].update(parent=9), "its messages are no tree"),
        (lambda it: it["chats"][0]["messages"][0].update(parent=2), "its messages are no tree"),
        (lambda it: it["chats"][0]["messages"][1].update(id=1), "its messages are no tree"),
        (lambda it: it["chats"][0].update(tip=5), "its messages are no tree"),
        (lambda it: it["chats"][0]["messages"][1].update(state="odd"), "is damaged (Invalid enum value 'odd'"),
        (lambda it: it["chats"][0]["messages"][1].__delitem__("message"), "is damaged (Object missing required field"),
        (lambda it: it.update(chats=7), "is damaged (Expected `array`"),
    ],
)
def test_a_json_export_that_was_tampered_with_is_refused(tmp_path: Path, change: object, complaint: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(damaged(change))
    with pytest.raises(UsageError) as refusal:
        parse(file)
    assert complaint in refusal.value.message and "\n" not in refusal.value.message
