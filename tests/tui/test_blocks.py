"""The block splitter: what is frozen stays, nothing is lost, and nothing depends on how the text arrived."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

from localchat.tui.blocks import MERGE_CHARS, PART_CHARS, PART_LINES, Block, Splitter
from localchat.tui.typeset import Look, Typesetter, references_in

PIECES = st.sampled_from(
    [
        "word", "**strong**", "`code`", " ", "\n", "\n\n", "\n\n\n", "\t", "\\", "&amp;", "<div>", "é漢字🙂", "x" * 50,
        "- ", "* item", "1. ", "12) x", "  - nested", "    deep", "> quote", "> - ", "- ```\n",
        "```", "```python\n", "~~~\n", "   ```\n", "# Heading", "## H\n", "---\n", "===\n", "***\n",
        "|", "| a | b |\n", "|---|---|\n", "|:-:|\n", "a | b\n--|--\n1 | 2\n",
        "[1]: https://example.org\n", "[text][1]", "[t](u)",
        "line\n" * (PART_LINES + 3), "y" * (PART_CHARS + 7),
    ]
)  # fmt: skip
MARKDOWN = st.lists(PIECES, max_size=30).map("".join)


def fed(*pieces: str) -> Splitter:
    splitter = Splitter()
    for piece in pieces:
        splitter.feed(piece)
    return splitter


def whole(splitter: Splitter) -> str:
    blocks, held = splitter.tail()
    return "".join(block.source for block in splitter.frozen + blocks) + held


@given(MARKDOWN)
def test_the_blocks_are_the_text(text: str) -> None:
    splitter = fed(text)
    assert whole(splitter) == text
    assert "".join(block.source for block in splitter.settled()) == text


@given(MARKDOWN, st.data())
def test_the_cuts_do_not_depend_on_how_the_text_arrived(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    one, two = fed(text), fed(text[:at], text[at:])
    assert one.frozen == two.frozen
    assert one.tail() == two.tail()


@settings(max_examples=30)
@given(MARKDOWN)
def test_character_by_character_what_is_frozen_stays(text: str) -> None:
    splitter = Splitter()
    before: list[Block] = []
    for index, character in enumerate(text):
        splitter.feed(character)
        assert splitter.frozen[: len(before)] == before
        before = splitter.frozen.copy()
        if index % 97 == 0:
            assert whole(splitter) == text[: index + 1]
    assert splitter.frozen == fed(text).frozen


@settings(max_examples=150)
@given(MARKDOWN, st.integers(1, 100))
def test_every_word_is_shown_and_no_line_is_too_wide(text: str, width: int) -> None:
    numbers = itertools.count(1)
    text = re.sub("word", lambda _: f"w{next(numbers)}w", text)
    style = Style(color="white")
    typesetter = Typesetter(Console(width=width), Look(*([style] * len(Look.__dataclass_fields__))), width)
    splitter = fed(text)
    for blocks in (splitter.frozen + splitter.tail()[0], splitter.settled()):
        rows = [row for block in blocks for row in typesetter.block(block, references_in(blocks))]
        assert all(row.cell_length <= width for row in rows)
        if width < 40:
            continue
        shown = re.sub(r"\s", "", "".join(row.text for row in rows))
        for line in text.split("\n"):
            # An opening fence, a definition, and cells that a table's head has no column for are not text.
            if not re.search(r"```|~~~|\]:|\|", line):
                assert all(word in shown for word in re.findall(r"w\d+w", line))


def kinds(text: str) -> list[tuple[str, str]]:
    return [(block.kind, block.source.strip("\n")) for block in fed(text).settled()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\ntwo\n", [("prose", "one"), ("prose", "two")]),
        ("- a\n- b\n- c", [("item", "- a"), ("item", "- b"), ("item", "- c")]),
        ("1. a\n   - b\n2. c", [("item", "1. a"), ("item", "   - b"), ("item", "2. c")]),
        ("- a\n\n  more\n- b", [("item", "- a\n\n  more"), ("item", "- b")]),
        ("- a\n\ntext", [("item", "- a"), ("prose", "text")]),
        ("text\n- a", [("prose", "text"), ("item", "- a")]),
        ("born in\n1986. Then", [("prose", "born in\n1986. Then")]),
        ("```py\nx\n\ny\n```\ntext", [("code", "```py\nx\n\ny\n```"), ("prose", "text")]),
        (
            "1. a\n   ```\n   x\n   ```\n   b\n2. c",
            [("item", "1. a"), ("code", "   ```\n   x\n   ```"), ("item", "   b"), ("item", "2. c")],
        ),
        ("a\n| x | y |\n|---|---|\n| 1 | 2 |\nb", [("prose", "a"), ("table", "| x | y |\n|---|---|\n| 1 | 2 |\nb")]),
        ("title\n---\ntext", [("prose", "title\n---\ntext")]),
        ("text\n***\n- a", [("prose", "text"), ("prose", "***"), ("item", "- a")]),
        ("# A\ntext", [("prose", "# A"), ("prose", "text")]),
    ],
)
def test_where_the_cuts_are(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


def test_a_line_that_may_become_anything_waits() -> None:
    blocks, held = fed("text\n-").tail()
    assert ([block.source for block in blocks], held) == (["text\n"], "-")
    blocks, held = fed("text\n- x").tail()
    assert ([block.kind for block in blocks], held) == (["prose", "item"], "")


def test_long_blocks_are_cut_while_they_grow_and_whole_in_the_end() -> None:
    code = "```py\n" + "x = 1\n" * 100
    growing = fed(code)
    assert len(growing.frozen) == 101 // PART_LINES
    assert [block.continues for block in growing.frozen] == [False] + [True] * (len(growing.frozen) - 1)
    assert growing.frozen[-1].opening == "```py\n"
    growing.feed("```\nafter")
    assert [(block.kind, block.continues) for block in growing.settled()] == [("code", False), ("prose", False)]
    endless = fed("z" * (MERGE_CHARS + PART_CHARS))
    assert len(endless.settled()) > 1
