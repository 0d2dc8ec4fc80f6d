"""`localchat chats`: what it lists, shows, writes, takes in and removes, and what it says to bad input."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from localchat.chats.records import Attachment, ChatSettings, Outcome
from localchat.chats.store import Chats
from localchat.protocol import Message
from tests.chats.test_importing import conversation, gpt
from tests.conftest import run_cli
from tests.escapes import PAYLOADS, unsafe
from tests.terminal import Terminal

ALL = "\n".join(text for text in PAYLOADS if "\ud800" not in text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two chats, one of them with branches, and a question."""
    folder = tmp_path / "home"
    with closing(Chats(folder / "chats" / "chats.db")) as chats:
        rain = chats.create(ChatSettings(system="Be brief."), title="About rain")
        first = chats.append(
            rain, None, Message("user", "Why does it rain?"), attachments=[Attachment("a.txt", "x\ny\n")]
        )
        one = chats.append(rain, first, Message("assistant", "Clouds.", "Hm."), outcome=Outcome(model="m-1b"))
        chats.append(rain, first, Message("assistant", "Vapour."), outcome=Outcome(model="m-1b"))
        chats.go_to(rain, one)
        snow = chats.create(ChatSettings(), title="Snow")
        chats.append(snow, None, Message("user", "And the big snow flakes?"))
        asked = chats.create(ChatSettings(), "ask")
        chats.ask(asked, None, Message("user", "asked in a script"))
    return folder


def run(*arguments: str, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return run_cli("chats", *arguments, home=home, **options)


def titles(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [row["title"] for row in json.loads(done.stdout)]


def test_lists(home: Path) -> None:
    plain = run(home=home).stdout.splitlines()
    assert plain == run("list", home=home).stdout.splitlines()
    assert plain[0].split() == ["ID", "DATE", "MESSAGES", "TITLE"]
    assert plain[1].endswith("  1         Snow") and plain[2].endswith("  3         About rain")
    assert titles(run("list", "--json", home=home)) == ["Snow", "About rain"]
    assert titles(run("list", "--asks", "--json", home=home)) == ["asked in a script"]
    assert titles(run("list", "--all", "--limit", "2", "--json", home=home)) == ["asked in a script", "Snow"]
    assert "ask " in run("list", "--all", home=home).stdout


def test_search_finds_words_and_phrases(home: Path) -> None:
    assert "2  20" in run("search", "flakes", home=home).stdout
    assert run("search", "big snow", home=home).stdout.count("And the big snow flakes?") == 1
    assert run("search", "snow big", home=home).stdout == "Nothing was found.\n"
    [hit] = json.loads(run("search", "--json", "vapour", home=home).stdout)
    assert (hit["chat"], hit["role"], hit["excerpt"]) == (1, "assistant", "Vapour.")


def test_show_gives_the_path_or_everything(home: Path) -> None:
    shown = run("show", "1", home=home).stdout
    assert shown.startswith("# About rain\n") and "Clouds." in shown and "Vapour." not in shown
    assert "Vapour." in run("show", "--all", "1", home=home).stdout
    assert len(json.loads(run("show", "--json", "1", home=home).stdout)["messages"]) == 3
    terminal = Terminal("chats", "show", "1", home=home)
    assert terminal.end() == 0
    assert terminal.screen().partition("\n\n")[2] == (
        "You:\n[attached: a.txt, 2 lines]\nWhy does it rain?\n\n"
        "Model (m-1b) (version 1 of 2):\nThinking:\nHm.\nAnswer:\nClouds."
    )


def test_export_and_import_go_round(home: Path, tmp_path: Path) -> None:
    markdown = run("export", "1", home=home).stdout
    assert markdown.startswith("# About rain\n") and "<summary>Thinking</summary>" in markdown
    file = tmp_path / "all.json"
    done = run("export", "--all", "-o", str(file), home=home)
    assert done.stdout == f"3 chats written to {file}.\n" and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "4 chats" not in run("import", str(file), home=home).stdout
    other = tmp_path / "other"
    done = run("import", str(file), home=other)
    assert done.stdout == "all.json: 3 chats taken in from localchat (6 messages).\n"
    assert run("import", str(file), home=other).stdout == (
        "all.json: 0 chats taken in from localchat (0 messages); 3 chats were here already.\n"
    )
    assert json.loads(run("export", "--all", "--format", "json", home=other).stdout)["chats"][1]["title"] == "Snow"


def test_several_chats_as_markdown_go_into_a_folder(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    refused = run("export", "1", "2", home=home)
    assert refused.returncode == 2 and "-o FOLDER" in refused.stderr
    assert run("export", "1", "2", "-o", str(folder), home=home).stdout == f"2 chats written to {folder}.\n"
    assert sorted(file.name for file in folder.iterdir()) == ["1-about-rain.md", "2-snow.md"]
    again = run("export", "1", "-o", str(folder), home=home)
    assert again.returncode == 2 and "is there already" in again.stderr
    assert run("export", "1", "-o", str(folder), "--force", home=home).returncode == 0


def test_the_folder_for_all_chats_is_made(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert run("export", "--all", "-o", str(folder), home=home).stdout == f"3 chats written to {folder}.\n"
    assert len(list(folder.iterdir())) == 3 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name, why in (("all.md", "names a file"), (str(folder / "2-snow.md"), "is none"), ("a", "is none")):
        (tmp_path / "a").touch()
        refused = run("export", "--all", "-o", str(tmp_path / name), home=home)
        assert refused.returncode == 2 and why in refused.stderr, refused.stderr
    # One chat is written as several are: another day there may be more of them.
    with closing(Chats(tmp_path / "one" / "chats" / "chats.db")) as chats:
        chats.create(ChatSettings(), title="Only")
    for name in ("md", "only.md"):
        assert run("export", "--all", "-o", str(tmp_path / name), home=tmp_path / "one").returncode == 0
    assert (tmp_path / "md" / "1-only.md").is_file() and (tmp_path / "only.md").is_file()


def test_a_chatgpt_export_is_taken_in_with_a_word_on_what_is_left_out(tmp_path: Path) -> None:
    image = {"content_type": "image_asset_pointer"}
    talk = conversation(("q", None, gpt("user", image, "q", kind="multimodal_text")), ("a", "q", gpt("assistant", "a")))
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([talk]))
    broken = tmp_path / "broken.json"
    broken.write_text("[1")
    done = run("import", str(broken), str(file), home=tmp_path / "home")
    assert done.stdout == "conversations.json: 1 chat taken in from ChatGPT (2 messages); left out: images 1.\n"
    assert done.returncode == 2 and done.stderr.startswith("localchat: ") and done.stderr.count("\n") == 1
    assert titles(run("list", "--json", home=tmp_path / "home")) == ["Talk"]


def test_a_chat_is_removed_brought_back_and_renamed(home: Path) -> None:
    assert run("rm", "1", "2", home=home).stdout == (
        "1 (About rain) is removed; `localchat chats restore 1` brings it back.\n"
        "2 (Snow) is removed; `localchat chats restore 2` brings it back.\n"
    )
    assert titles(run("list", "--json", home=home)) == []
    assert run("restore", "1", home=home).stdout == "1 (About rain) is back.\n"
    assert run("rename", "1", "On", "rain", home=home).stdout == "1 (On rain) is its name now.\n"
    assert titles(run("list", "--json", home=home)) == ["On rain"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show", "99"), "no chat has the number 99: `localchat chats list`"),
        (("show", str(1 << 70)), "no chat has the number"),
        (("show", "x"), "'x' is no whole number"),
        (("rm", "1", "99"), "no chat has the number 99"),
        (("restore", "99"), "no chat has the number 99"),
        (("rename", "99", "x"), "no chat has the number 99"),
        (("export", "99"), "no chat has the number 99"),
        (("export",), "use --all"),
        (("export", "1", "-o", "/nowhere/x.md"), "cannot write /nowhere/x.md"),
        (("import", "/nowhere/x.json"), "there is no file /nowhere/x.json"),
        (("import", "/dev/zero"), "a device or a pipe"),
        (("import", "/"), "is a folder"),
        (("list", "--asks", "--all"), "give one of the two"),
        (("nope",), "No such command 'nope'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(home: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = run(*arguments, home=home)
    assert (done.stdout, done.returncode) == ("", 1 if "cannot write" in complaint else 2)
    assert complaint in done.stderr and done.stderr.count("\n") == 1
    assert titles(run("list", "--json", home=home)) == ["Snow", "About rain"]


def test_repair(home: Path) -> None:
    file = home / "chats" / "chats.db"
    assert run("repair", home=home).stdout == f"{file} is whole: there is nothing to repair.\n"
    raw = bytearray(file.read_bytes())
    raw[4096 * 2 : 4096 * 3] = os.urandom(4096)
    file.write_bytes(raw)
    done = run("repair", home=home)
    assert done.returncode == 2 and "--yes" in done.stderr and "is damaged" in done.stderr
    done = run("repair", "--yes", home=home)
    assert done.returncode == 0 and "That one is kept: " in done.stdout
    assert run("repair", home=home).stdout.endswith("nothing to repair.\n")
    assert bytes(raw) in [one.read_bytes() for one in file.parent.glob("*damaged*")]


def test_nothing_that_was_said_drives_a_terminal(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with closing(Chats(home / "chats" / "chats.db")) as chats:
        number = chats.create(ChatSettings(system=ALL), title=ALL)
        question = chats.append(number, None, Message("user", ALL + " findme"), attachments=[Attachment(ALL, ALL)])
        chats.append(number, question, Message("assistant", ALL, ALL), "failed", outcome=Outcome(model=ALL, error=ALL))
    for arguments in (("list",), ("search", "findme"), ("show", "1"), ("show", "--all", "1"), ("rename", "1", "x")):
        done = run(*arguments, home=home)
        assert done.returncode == 0 and done.stdout
        assert unsafe(done.stdout) == [] and unsafe(done.stderr) == [], arguments
    for arguments in (("search", "findme"), ("show", "1"), ("export", "1")):
        terminal = Terminal("chats", *arguments, home=home)
        assert terminal.end() == 0
        own = terminal.output.decode().replace("\r\n", "\n").replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert unsafe(own) == [], arguments


def test_help_of_every_subcommand_fits_a_terminal(home: Path) -> None:
    for name in ("", "list", "search", "show", "export", "import", "rm", "restore", "rename", "repair"):
        done = run(*([name] if name else []), "--help", home=home, env={"COLUMNS": "80"})
        assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
