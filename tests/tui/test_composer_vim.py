"""The keys of vi's normal mode in the composer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from textual import events

from localchat.tui.vim import Vim
from localchat.tui.widgets.composer import Composer
from tests.tui.composer_desk import Desk

_TEXT = "one two, three\n  four five\n\nlast line"

# Where the cursor is, what is pressed, the text and the cursor then.
_MOTIONS = [
    ((0, 0), "l", (0, 1)),
    ((0, 0), "5l", (0, 5)),
    ((0, 0), "99l", (0, 13)),
    ((0, 5), "h", (0, 4)),
    ((0, 5), "3h", (0, 2)),
    ((0, 5), "99h", (0, 0)),
    ((0, 5), "0", (0, 0)),
    ((0, 0), "$", (0, 13)),
    ((0, 0), "2$", (1, 10)),
    ((1, 8), "^", (1, 2)),
    ((0, 0), "w", (0, 4)),
    ((0, 4), "w", (0, 7)),
    ((0, 7), "w", (0, 9)),
    ((0, 9), "w", (1, 2)),
    ((0, 0), "4w", (1, 2)),
    ((1, 7), "w", (2, 0)),
    ((2, 0), "w", (3, 0)),
    ((3, 5), "9w", (3, 8)),
    ((0, 0), "e", (0, 2)),
    ((0, 2), "e", (0, 6)),
    ((0, 13), "e", (1, 5)),
    ((0, 9), "b", (0, 7)),
    ((0, 6), "b", (0, 4)),
    ((1, 2), "b", (0, 9)),
    ((3, 0), "b", (2, 0)),
    ((0, 9), "9b", (0, 0)),
    ((0, 3), "j", (1, 3)),
    ((0, 3), "2j", (2, 0)),
    ((3, 3), "k", (2, 0)),
    ((3, 3), "gg", (0, 0)),
    ((0, 3), "G", (3, 0)),
    ((0, 3), "2G", (1, 0)),
    ((0, 3), "3gg", (2, 0)),
]

_EDITS = [
    ((0, 0), "x", "ne two, three", (0, 0)),
    ((0, 0), "3x", " two, three", (0, 0)),
    ((0, 13), "x", "one two, thre", (0, 12)),
    ((0, 2), "X", "oe two, three", (0, 1)),
    ((0, 4), "D", "one ", (0, 3)),
    ((0, 0), "dw", "two, three", (0, 0)),
    ((0, 0), "2dw", ", three", (0, 0)),
    ((0, 0), "d2w", ", three", (0, 0)),
    ((0, 9), "dw", "one two, ", (0, 8)),
    ((0, 0), "de", " two, three", (0, 0)),
    ((0, 4), "db", "two, three", (0, 0)),
    ((0, 4), "d$", "one ", (0, 3)),
    ((0, 4), "d0", "two, three", (0, 0)),
    ((0, 0), "xp", "noe two, three", (0, 1)),
    ((0, 0), "x2p", "nooe two, three", (0, 2)),
    ((0, 4), "ywP", "one twotwo, three", (0, 6)),
    ((0, 0), "xu", "one two, three", (0, 0)),
    ((0, 0), "xxuu", "one two, three", (0, 0)),
]

_LINES = [
    ((0, 4), "dd", "  four five\n\nlast line", (0, 2)),
    ((3, 4), "dd", "one two, three\n  four five\n", (2, 0)),
    ((0, 0), "2dd", "\nlast line", (0, 0)),
    ((0, 0), "9dd", "", (0, 0)),
    ((0, 0), "dj", "\nlast line", (0, 0)),
    ((1, 0), "dG", "one two, three", (0, 0)),
    ((1, 0), "dgg", "\nlast line", (0, 0)),
    ((0, 4), "yyp", "one two, three\none two, three\n  four five\n\nlast line", (1, 0)),
    ((0, 4), "yyjP", "one two, three\none two, three\n  four five\n\nlast line", (1, 0)),
    ((2, 0), "ddp", "one two, three\n  four five\nlast line\n", (3, 0)),
    ((0, 4), "ddu", _TEXT, (0, 4)),
]

_INSERTS = [
    ((0, 4), "i", "one |two, three"),
    ((0, 4), "a", "one t|wo, three"),
    ((0, 4), "I", "|one two, three"),
    ((0, 4), "A", "one two, three|"),
    ((0, 4), "o", "one two, three\n|"),
    ((0, 4), "O", "|\none two, three"),
    ((0, 4), "C", "one |"),
    ((0, 4), "cw", "one |, three"),
    ((0, 4), "c2w", "one | three"),
    ((0, 4), "cc", "|"),
]


def _press(vim: Vim, keys: str) -> None:
    for key in keys:
        assert vim.press(key, key)


async def test_motions_and_edits(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    async with desk.run_test(size=(60, 20)):
        first = _TEXT.split("\n")[0]
        cases = [(_TEXT, at, keys, _TEXT, to) for at, keys, to in _MOTIONS]
        cases += [(first, *case) for case in _EDITS]
        cases += [(_TEXT, *case) for case in _LINES]
        for text, at, keys, after, to in cases:
            desk.field.text = text
            desk.field.move_cursor(at)
            vim = Vim(desk.field)
            vim.mode = "normal"
            _press(vim, keys)
            assert (desk.field.text, desk.field.cursor_location, vim.pending) == (after, to, ""), (at, keys)
        for at, keys, after in _INSERTS:
            desk.field.text = first
            desk.field.move_cursor(at)
            vim = Vim(desk.field)
            vim.mode = "normal"
            _press(vim, keys)
            assert vim.mode == "insert"
            desk.field.type("|")
            assert desk.field.text == after, (at, keys)


async def test_any_keys_can_be_undone(tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    desk = Desk(tmp_path)
    async with desk.run_test(size=(60, 20)):
        for _ in range(100):
            text = "".join(dice.choice("ab, \n漢é") for _ in range(dice.randrange(60)))
            desk.field.text = text
            vim = Vim(desk.field)
            vim.escape()
            for key in "".join(dice.choice("hjklwbe0$^xXDCdcyppPuiaIAoOgG129") for _ in range(20)):
                if vim.mode == "insert":
                    desk.field.type("z")
                    vim.escape()
                vim.press(key, key)
                row, column = desk.field.cursor_location
                assert 0 <= column <= len(desk.field.document[row])
            for _ in range(50):
                desk.field.undo()
            assert desk.field.text == text


async def test_escape_enters_normal_mode_and_enter_sends(tmp_path: Path) -> None:
    desk = Desk(tmp_path, vim=True)
    async with desk.run_test(size=(60, 20)) as pilot:
        assert "INSERT" in desk.shown
        await pilot.press(*"two words", "escape")
        assert desk.composer.mode == "NORMAL"
        assert "NORMAL" in desk.shown
        await pilot.press(*"2d")
        assert "NORMAL 2d" in desk.shown
        await pilot.press("escape", *"bdb", "escape")
        assert desk.escapes == [True, True, False]
        await pilot.press("i", "x", "enter")
        assert [m.text for m in desk.of(Composer.Sent)] == ["xwords"]
        assert desk.composer.mode == "INSERT"


async def test_escape_is_for_the_answer_while_one_comes(tmp_path: Path) -> None:
    desk = Desk(tmp_path, vim=True)
    async with desk.run_test(size=(60, 20)):
        assert not desk.composer.escape(answering=True)
        assert desk.composer.mode == "INSERT"


async def test_redo_and_earlier_prompts(tmp_path: Path) -> None:
    desk = Desk(tmp_path, vim=True)
    async with desk.run_test(size=(60, 20)) as pilot:
        desk.composer.set_history(["one", "two"])
        await pilot.press("a", "b", "escape", "x", "u", "ctrl+r")
        assert desk.composer.text == "a"
        await pilot.press("x", "k", "k")
        assert desk.composer.text == "one"
        await pilot.press("j", "j")
        assert desk.composer.text == ""


@pytest.mark.parametrize("key", ["left", "ctrl+a", "enter"])
def test_other_keys_are_not_taken(key: str) -> None:
    from textual.widgets import TextArea

    assert not Vim(TextArea("text")).press(key, events.Key(key, None).character)
