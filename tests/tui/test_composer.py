"""The composer: writing, sending, pasting, attachments, earlier prompts, the person's own editor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual import events

from localchat.chats.records import Attachment, Draft
from localchat.paths import paths
from localchat.tui.widgets.composer import Composer
from tests.tui.composer_desk import Desk

SIZE = (80, 24)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = tmp_path / "work"
    folder.mkdir()
    return Desk(folder)


async def test_enter_sends_and_the_composer_is_empty_at_once(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        for key in ("a", "ctrl+j", "b", "alt+enter", "c", "shift+enter", "d", "enter", "e"):
            desk.field.post_message(events.Key(key, key if len(key) == 1 else None))
        await desk.until(pilot, lambda: desk.composer.text == "e")
        assert [(m.text, m.attachments) for m in desk.of(Composer.Sent)] == [("a\nb\nc\nd", [])]


async def test_the_keys_of_the_area_are_not_overtaken_by_what_is_typed_after_them(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        for key in ("a", "b", "backspace", "c", "home", "d", "end", "e", "ctrl+w", "f"):
            desk.field.post_message(events.Key(key, key if len(key) == 1 else None))
        await desk.until(pilot, lambda: desk.composer.text)
        assert desk.composer.text == "f"
        await pilot.press("ctrl+underscore", "ctrl+underscore")
        assert desk.composer.text == "dace"


@pytest.mark.parametrize("sends", ["ctrl+j", "ctrl+enter", "alt+enter"])
async def test_enter_makes_a_line_where_that_is_wanted(tmp_path: Path, sends: str) -> None:
    desk = Desk(tmp_path, newline_on_enter=True)
    async with desk.run_test(size=SIZE) as pilot:
        await pilot.press("a", "enter", "b", "shift+enter", "c", sends)
        assert [m.text for m in desk.of(Composer.Sent)] == ["a\nb\nc"]


async def test_blanks_are_not_sent_and_stay(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await pilot.press("space", "ctrl+j", "space", "enter")
        assert desk.composer.text == " \n "
        assert desk.posted == []


async def test_it_grows_to_a_third_of_the_screen_and_then_scrolls(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        assert desk.composer.size.height == 1
        desk.composer.text = "a\nb\nc"
        await desk.until(pilot, lambda: desk.composer.size.height == 3)
        desk.composer.text = "\n".join(str(n) for n in range(50))
        await desk.until(pilot, lambda: desk.composer.size.height == 8)
        assert "49" in desk.shown
        await pilot.resize_terminal(60, 15)
        await desk.until(pilot, lambda: desk.composer.size.height == 5)


async def test_undoing_the_line_that_brought_the_scrollbar(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        for _ in range(12):
            await pilot.press("ctrl+j")
        for _ in range(12):
            await pilot.press("ctrl+underscore")
        assert desk.composer.text == ""


@pytest.mark.parametrize("key", ["tab", "alt+up", "ctrl+up"])
async def test_it_is_left_upwards(desk: Desk, key: str) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await pilot.press("a", key)
        assert len(desk.of(Composer.Left)) == 1
        assert desk.composer.text == "a"


async def test_the_keys_of_the_shell(desk: Desk) -> None:
    cases = [
        (["ctrl+a", "x"], "xone two three"),
        (["ctrl+a", "ctrl+e", "x"], "one two threex"),
        (["ctrl+w"], "one two "),
        (["ctrl+u"], ""),
        (["ctrl+a", "ctrl+k"], ""),
        (["alt+b", "x"], "one two xthree"),
        (["ctrl+a", "alt+f", "x"], "onex two three"),
        (["ctrl+a", "alt+d"], " two three"),
        (["ctrl+a", "ctrl+d"], "ne two three"),
        (["shift+left", "shift+left", "x"], "one two thrx"),
        (["alt+a", "x"], "x"),
        (["ctrl+w", "ctrl+underscore"], "one two three"),
        (["ctrl+w", "ctrl+underscore", "ctrl+y"], "one two "),
    ]
    async with desk.run_test(size=SIZE) as pilot:
        for keys, text in cases:
            desk.composer.text = "one two three"
            await pilot.press(*keys)
            assert desk.composer.text == text, keys


# Characters.


async def test_characters_of_several_code_points_are_one_step_and_one_backspace(desk: Desk) -> None:
    family, accent, heart = "👩‍👩‍👧", "e\u0301", "❤\ufe0f"
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, f"漢{family}{accent}{heart}字")
        await pilot.press("left", "backspace")
        assert desk.composer.text == f"漢{family}{accent}字"
        await pilot.press("left", "left", "x")
        assert desk.composer.text == f"漢x{family}{accent}字"
        await pilot.press("right", "delete")
        assert desk.composer.text == f"漢x{family}字"


async def test_control_characters_become_visible(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, "a\x1b]52;c;eA==\x07b\r\nc\rd\x9b2Je\u202ef\u2028g")
        assert desk.composer.text == "a␛]52;c;eA==␇b\nc\nd�2Jef\ng"
        desk.composer.put(Draft("x\x1b[2Jy\x0bz"))
        assert desk.composer.text == "x␛[2Jy␋z"
        desk.composer.give_back("\x1bback")
        assert "\x1b" not in desk.composer.text


# Earlier prompts.


async def test_earlier_prompts_lie_beyond_the_first_line_and_the_draft_beyond_the_last(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.composer.set_history(["one", "two\nlines"])
        desk.field.type("draft")
        await pilot.press("up")
        assert desk.composer.text == "two\nlines"
        await pilot.press("up")
        assert desk.composer.text == "two\nlines"
        await pilot.press("up", "X")
        assert desk.composer.text == "oneX"
        await pilot.press("up")
        assert desk.composer.text == "oneX"
        await pilot.press("down", "up", "up")
        assert desk.composer.text == "oneX"
        await pilot.press("down", "down", "down")
        assert desk.composer.text == "draft"


async def test_what_is_typed_is_looked_for_at_the_beginning_of_earlier_prompts(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.composer.set_history(["explain this", "translate that", "explain those", "sum up"])
        desk.field.type("expl")
        await pilot.press("up")
        assert desk.composer.text == "explain those"
        await pilot.press("up")
        assert desk.composer.text == "explain this"
        await pilot.press("up", "down", "down")
        assert desk.composer.text == "expl"


async def test_what_was_sent_is_the_latest_prompt(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.composer.set_history(["one"])
        desk.field.type("two")
        await pilot.press("enter", "up")
        assert desk.composer.text == "two"
        await pilot.press("up")
        assert desk.composer.text == "one"


# Pastes and attachments.


@pytest.mark.parametrize("text", ["line\r\n" * 21, "x" * 2001])
async def test_a_long_paste_becomes_a_chip(desk: Desk, text: str) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("sum up")
        await desk.paste(pilot, text)
        assert "pasted 1" in desk.shown
        assert desk.composer.text == "sum up"
        await pilot.press("enter")
        (sent,) = desk.of(Composer.Sent)
        assert sent.text == "sum up"
        assert sent.attachments == [Attachment("pasted 1", text.replace("\r\n", "\n"))]
        assert "pasted" not in desk.shown


@pytest.mark.parametrize("text", ["line\n" * 20, "x" * 2000])
async def test_a_short_paste_is_text(desk: Desk, text: str) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, text)
        assert desk.composer.text == text
        assert desk.composer.attachments == []


async def test_a_paste_of_ten_megabytes_arrives_whole(desk: Desk) -> None:
    text = "some words on this line, forty bytes...\n" * 262_144
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, text)
        desk.field.type("typing")
        assert "pasted 1, 262,144 lines · 10.5 MB" in desk.shown
        assert desk.composer.text == "typing"
        assert desk.composer.attachments[0].text == text
        await pilot.press("f5")
        assert desk.said == ["pasted 1 is too long to be edited here: it stays attached"]
        assert len(desk.composer.attachments) == 1


async def test_a_chip_is_unfolded_by_its_key_and_by_the_mouse(desk: Desk) -> None:
    text = "".join(f"line {n}\n" for n in range(30))
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, text)
        await pilot.press("f5")
        assert (desk.composer.text, desk.composer.attachments) == (text, [])
        desk.composer.text = ""
        await desk.paste(pilot, text)
        await pilot.click(desk.chips, offset=(3, 0))
        assert (desk.composer.text, desk.composer.attachments) == (text, [])
        await pilot.press("f5")
        assert desk.said == ["there is no attachment to unfold"]


async def test_a_chip_is_removed_at_the_beginning_of_the_text_and_by_the_mouse(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        for _ in range(3):
            await desk.paste(pilot, "line\n" * 30)
        desk.field.type("ab")
        await pilot.press("backspace")
        assert [a.name for a in desk.composer.attachments] == ["pasted 1", "pasted 2", "pasted 3"]
        await pilot.press("home", "backspace")
        assert [a.name for a in desk.composer.attachments] == ["pasted 1", "pasted 2"]
        assert desk.composer.text == "a"
        cross = desk.shown.splitlines()[-3].index("×")
        await pilot.click(desk.composer, offset=(cross - desk.composer.region.x, 1))
        assert [a.name for a in desk.composer.attachments] == ["pasted 2"]
        await desk.paste(pilot, "line\n" * 30)
        assert [a.name for a in desk.composer.attachments] == ["pasted 2", "pasted 1"]


async def test_many_chips_take_three_rows(desk: Desk) -> None:
    async with desk.run_test(size=(60, 20)) as pilot:
        for _ in range(12):
            await desk.paste(pilot, "line\n" * 30)
        assert desk.chips.size.height == 3
        assert "more" in desk.shown
        assert "pasted 12" in desk.shown


async def test_a_file_is_attached_with_its_tokens(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "notes \x1b[2J.md"
    file.write_text("some notes")
    async with desk.run_test(size=SIZE) as pilot:
        desk.composer.attach(file)
        await desk.until(pilot, lambda: desk.of(Composer.Attached))
        assert "10 characters" in desk.shown
        (attached,) = desk.of(Composer.Attached)
        desk.composer.set_tokens(attached.index, 1234)
        await pilot.pause()
        assert "1,234 tokens" in desk.shown
        assert desk.composer.attachments[0].tokens == 1234
        await pilot.press("backspace")
        desk.composer.set_tokens(attached.index, 1)
        assert desk.composer.attachments == []
        assert "\x1b" not in desk.shown


async def test_a_file_that_cannot_be_attached_is_one_sentence(desk: Desk, tmp_path: Path) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.composer.attach(tmp_path / "missing.txt")
        await desk.until(pilot, lambda: desk.said)
        assert "missing.txt" in desk.said[0]
        assert not desk.chips.display


async def test_a_message_waits_for_a_file_that_is_being_read(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from localchat.chats import attachments

    go = threading.Event()

    def slow(path: Path) -> Attachment:
        go.wait()
        return Attachment(path.name, "text")

    monkeypatch.setattr(attachments, "read", slow)
    async with desk.run_test(size=SIZE) as pilot:
        desk.composer.attach(tmp_path / "slow.pdf")
        desk.field.type("words")
        await pilot.press("enter")
        assert desk.said == ["slow.pdf is still being read: send when it is there"]
        assert desk.composer.text == "words"
        go.set()
        await desk.until(pilot, lambda: desk.composer.attachments)
        await pilot.press("enter")
        assert [(m.text, len(m.attachments)) for m in desk.of(Composer.Sent)] == [("words", 1)]


@pytest.mark.parametrize("spelt", ["{}", "'{}'", "file://{}", '"{}" '])
async def test_a_pasted_path_is_offered_as_an_attachment(desk: Desk, tmp_path: Path, spelt: str) -> None:
    file = tmp_path / "report.md"
    file.write_text("a report")
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("see ")
        await desk.paste(pilot, spelt.format(file))
        await desk.until(pilot, lambda: desk.offered == ["Attach report.md"])
        await pilot.press("tab")
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert desk.composer.attachments == [Attachment("report.md", "a report")]
        assert desk.composer.text == "see "


async def test_a_pasted_path_stays_text_when_the_person_goes_on_writing(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    file.write_text("a report")
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, str(file))
        await desk.until(pilot, lambda: desk.offered)
        await pilot.press("x")
        assert desk.offered == []
        await pilot.press("backspace", "enter")
        assert [m.text for m in desk.of(Composer.Sent)] == [str(file)]


# Drafts.


async def test_a_draft_is_kept_and_put_back(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("words")
        await desk.paste(pilot, "line\n" * 30)
        await pilot.pause()
        changes = desk.changes
        assert changes >= 1
        draft = desk.composer.draft()
        assert draft == Draft("words", [Attachment("pasted 1", "line\n" * 30)])
        await pilot.press("enter")
        await pilot.pause()
        assert desk.changes > changes
        assert desk.composer.draft() == Draft()
        changes = desk.changes
        desk.composer.put(draft)
        await pilot.pause()
        assert desk.composer.draft() == draft
        assert desk.changes == changes
        await pilot.press("!")
        assert desk.composer.text == "words!"
        assert desk.changes == changes + 1


async def test_a_message_given_back_stands_before_what_was_typed_since(desk: Desk) -> None:
    async with desk.run_test(size=SIZE):
        desk.field.type("later")
        desk.composer.give_back("first", [Attachment("a.txt", "A")])
        assert desk.composer.text == "first\nlater"
        assert desk.composer.attachments == [Attachment("a.txt", "A")]


# The person's own editor.


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script as `$VISUAL`, run with an argument; it writes down how its file looked."""
    script = tmp_path / "an editor"
    script.write_text(
        f'#!/bin/sh\nls -ld "$2" > {tmp_path}/seen\nls -ld "$(dirname "$2")" >> {tmp_path}/seen\n'
        f'echo "$1" >> {tmp_path}/seen\n'
        f'cp "$2" {tmp_path}/given\nprintf "edited\\nby hand\\n" > "$2"\necho x > "$2~"\nexit $CODE\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("VISUAL", f"'{script}' --wait")
    monkeypatch.setenv("CODE", "0")
    return script


async def _edited(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(desk, "suspend", nullcontext)
    before = os.umask(0)
    try:
        async with desk.run_test(size=SIZE) as pilot:
            desk.field.type("my words")
            await pilot.press("ctrl+g")
            await desk.until(pilot, lambda: desk.said or desk.composer.text != "my words")
            await desk.workers.wait_for_complete()
    finally:
        os.umask(before)


async def test_the_text_is_edited_in_a_private_file_that_goes_away(
    desk: Desk, editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _edited(desk, monkeypatch)
    assert desk.composer.text == "edited\nby hand"
    assert (tmp_path / "given").read_text() == "my words"
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen[0].startswith("-rw-------")
    assert seen[1].startswith("drwx------")
    assert seen[2] == "--wait"
    assert list((paths().state / "editing").iterdir()) == []


async def test_a_text_too_long_to_be_edited_here_becomes_an_attachment(
    desk: Desk, editor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor.write_text("#!/bin/sh\nhead -c 30000 /dev/zero | tr '\\0' x > \"$2\"\n")
    await _edited(desk, monkeypatch)
    assert desk.composer.draft() == Draft("", [Attachment("pasted 1", "x" * 30_000)])
    assert desk.said == ["the text is too long to be edited here: it is attached"]


async def test_so_does_a_draft(desk: Desk) -> None:
    async with desk.run_test(size=SIZE):
        desk.composer.put(Draft("x" * 30_000, [Attachment("a", "A")]))
        assert desk.composer.text == ""
        assert [a.name for a in desk.composer.attachments] == ["a", "pasted 1"]


async def test_an_editor_that_fails_changes_nothing(desk: Desk, editor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE", "3")
    await _edited(desk, monkeypatch)
    assert "ended with status 3" in desk.said[0]
    assert desk.composer.text == "my words"
    assert list((paths().state / "editing").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "sentence"), [("no-such-editor -x", "there is no editor no-such-editor"), ("a 'b", "is not a command")]
)
async def test_an_editor_that_is_not_there_is_one_sentence(
    desk: Desk, command: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", command)
    await _edited(desk, monkeypatch)
    assert sentence in desk.said[0]
    assert desk.composer.text == "my words"


async def test_what_a_killed_chat_left_is_swept_away(desk: Desk, editor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths().state / "editing"
    folder.mkdir(parents=True)
    (folder / "message-999999999-ab.md").write_text("left")
    await _edited(desk, monkeypatch)
    assert list(folder.iterdir()) == []
