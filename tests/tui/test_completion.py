"""What the composer offers while it is written in: files after an @, commands after a slash."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events

from localchat.tui.commands import Call, Slip, Text, fitting, meaning
from localchat.tui.widgets.completion import Completion
from localchat.tui.widgets.composer import Composer
from tests.tui.composer_desk import COMMANDS, Desk

SIZE = (80, 24)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = tmp_path / "work"
    (folder / "src" / "deep er").mkdir(parents=True)
    (folder / "notes.md").write_text("notes")
    (folder / "src" / "main.py").write_text("print()")
    (folder / "src" / "deep er" / "main.rs").write_text("fn main")
    return Desk(folder)


# Files.


async def test_an_at_offers_files_and_taking_one_attaches_it(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("see @")
        await desk.until(pilot, lambda: len(desk.offered) == 3)
        assert desk.offered[0] == "notes.md"
        desk.field.type("smn")
        await desk.until(pilot, lambda: desk.offered == ["src/main.py", "src/deep er/main.rs"])
        await pilot.press("down", "up", "tab")
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert desk.composer.text == "see "
        assert [a.name for a in desk.composer.attachments] == ["main.py"]
        assert desk.offered == []


async def test_enter_takes_what_is_chosen_and_does_not_send(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("@main")
        await desk.until(pilot, lambda: len(desk.offered) == 2)
        await pilot.press("down", "enter")
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert [a.name for a in desk.composer.attachments] == ["main.rs"]
        assert desk.of(Composer.Sent) == []


async def test_folders_of_a_path_are_gone_into(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("@./sr")
        await desk.until(pilot, lambda: desk.offered == ["./src/"])
        await pilot.press("tab")
        await desk.until(pilot, lambda: set(desk.offered) == {"./src/main.py", "./src/deep er/"})
        desk.field.type("deep")
        await desk.until(pilot, lambda: desk.offered == ["./src/deep er/"])
        await pilot.press("tab")
        await desk.until(pilot, lambda: desk.offered == ["./src/deep er/main.rs"])
        await pilot.press("tab")
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert desk.composer.text == ""


async def test_a_clicked_file_is_taken(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("@main")
        await desk.until(pilot, lambda: len(desk.offered) == 2)
        await pilot.click(Completion, offset=(5, 1))
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert [a.name for a in desk.composer.attachments] == ["main.rs"]
        assert desk.field.has_focus


async def test_escape_closes_the_list_for_this_word(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("@ma")
        await desk.until(pilot, lambda: desk.offered)
        await pilot.press("escape")
        assert (desk.escapes, desk.offered) == ([True], [])
        desk.field.type("in")
        await pilot.press("escape")
        assert (desk.escapes, desk.offered) == ([True, False], [])
        desk.field.type(" @no")
        await desk.until(pilot, lambda: desk.offered == ["notes.md"])
        await pilot.press("escape", "enter")
        assert [m.text for m in desk.of(Composer.Sent)] == ["@main @no"]


@pytest.mark.parametrize("text", ["me@main", "@nothing-like-it", "@@main"])
async def test_no_list_where_no_file_is_meant(desk: Desk, text: str) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await pilot.press(*text)
        await desk.workers.wait_for_complete()
        await pilot.pause()
        assert desk.offered == []
        await pilot.press("enter")
        assert [m.text for m in desk.of(Composer.Sent)] == [text]


async def test_names_of_files_cannot_drive_the_terminal(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "work" / "evil \x1b[2J\u202e.md").write_text("x")
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("@evil")
        await desk.until(pilot, lambda: desk.offered)
        assert "evil ␛[2J" in desk.shown
        await pilot.press("tab")
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert not {"\x1b", "\u202e"} & set(desk.shown)


async def test_the_action_of_the_table_opens_the_list(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("see")
        desk.composer.begin_attaching()
        await desk.until(pilot, lambda: len(desk.offered) == 3)
        assert desk.composer.text == "see @"


# Commands.


async def test_a_slash_offers_commands_and_says_what_they_do(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await pilot.press("/")
        assert desk.offered == ["/new", "/model [NAME]", "/system TEXT", "/settings", "/help", "/attach FILE"]
        await pilot.press("s")
        assert desk.offered == ["/system TEXT", "/settings"]
        assert "Set the system prompt" in desk.shown
        await pilot.press("up", "tab")
        assert desk.composer.text == "/settings"
        assert desk.offered == []
        await pilot.press("enter")
        assert [(m.name, m.argument) for m in desk.of(Composer.Command)] == [("settings", "")]
        assert desk.composer.text == ""


async def test_a_command_with_its_argument(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("/sy")
        await pilot.press("enter")
        assert desk.composer.text == "/system "
        desk.field.type("Be brief.")
        await pilot.press("ctrl+j", *"Be kind.", "enter")
        assert [(m.name, m.argument) for m in desk.of(Composer.Command)] == [("system", "Be brief.\nBe kind.")]


async def test_a_file_is_attached_by_command(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("/attach src/deep er/main.rs")
        await pilot.press("enter")
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert [a.name for a in desk.composer.attachments] == ["main.rs"]
        desk.field.type("/attach ~nobody-of-that-name/x")
        await pilot.press("enter")
        await desk.until(pilot, lambda: desk.said)
        desk.field.type("/attach")
        await pilot.press("enter")
        await desk.until(pilot, lambda: len(desk.offered) == 3)
        assert desk.composer.text == "@"
        assert desk.of(Composer.Command) == []


async def test_a_whole_command_is_done_at_once_and_attachments_stay(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        await desk.paste(pilot, "line\n" * 30)
        desk.field.type("/new")
        await pilot.press("enter")
        assert [(m.name, m.argument) for m in desk.of(Composer.Command)] == [("new", "")]
        assert len(desk.composer.attachments) == 1


async def test_a_slip_is_one_sentence_and_the_text_stays(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        desk.field.type("/sytem")
        await pilot.press("enter")
        assert desk.said == ["there is no command /sytem: perhaps /system is meant; with // it is sent as text"]
        assert desk.composer.text == "/sytem"
        assert desk.posted == []


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hello", Text("hello")),
        (" /new ", Call("new", "")),
        ("/model", Call("model", "")),
        ("/model  qwen3-4b ", Call("model", "qwen3-4b")),
        ("/system\nBe brief", Call("system", "Be brief")),
        ("/etc/fstab", Text("/etc/fstab")),
        ("/etc is a folder", Text("/etc is a folder")),
        ("/", Text("/")),
        ("/ new", Text("/ new")),
        ("//new", Text("/new")),
        ("//nwe", Text("/nwe")),
        ("//new\n", Text("/new")),
        ("// a comment", Text("// a comment")),
        ("//TODO this", Text("//TODO this")),
        ("see /new", Text("see /new")),
        ("", Text("")),
    ],
)
def test_what_a_message_means(text: str, meant: object) -> None:
    assert meaning(text, COMMANDS) == meant


@pytest.mark.parametrize(
    ("text", "part"), [("/nwe", "/new"), ("/xyzzy", "type / to see"), ("/new chat", "takes nothing after it")]
)
def test_a_slip_says_what_to_do(text: str, part: str) -> None:
    meant = meaning(text, COMMANDS)
    assert isinstance(meant, Slip)
    assert part in meant.sentence


def test_commands_that_begin_so_come_first() -> None:
    assert [name for name, _, _ in fitting("e", COMMANDS)] == ["new", "model", "system", "settings", "help"]
    assert [name for name, _, _ in fitting("el", COMMANDS)] == ["model", "help"]
    assert [name for name, _, _ in fitting("s", COMMANDS)] == ["system", "settings"]
    # What is typed to its end is what Enter does.
    assert fitting("set", [("settings", "", ""), ("set", "", ""), ("reset", "", "")])[0][0] == "set"


async def test_keys_that_come_at_once_mean_what_was_typed_before_them(desk: Desk) -> None:
    async with desk.run_test(size=SIZE) as pilot:
        for key in (*"/he", "enter", "enter", *"@main", "x"):
            desk.field.post_message(events.Key("slash" if key == "/" else key, key if len(key) == 1 else None))
        await desk.until(pilot, lambda: desk.composer.text == "@mainx")
        assert [m.name for m in desk.of(Composer.Command)] == ["help"]
        desk.composer.text = ""
        desk.field.type("@ma")
        await desk.until(pilot, lambda: len(desk.offered) == 2)
        for key in (*"in.rs", "tab"):
            desk.field.post_message(events.Key("full_stop" if key == "." else key, key if len(key) == 1 else None))
        await desk.until(pilot, lambda: desk.composer.attachments)
        assert [a.name for a in desk.composer.attachments] == ["main.rs"]
