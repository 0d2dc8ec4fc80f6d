"""`localchat chat --plain` in a real terminal: labels, commands, what is kept, and that nothing is written over."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from localchat.chats.records import ChatSettings, Node
from localchat.chats.store import Chats
from localchat.chats.tree import Tree
from localchat.cli.plain import _COMMANDS
from localchat.protocol import Message
from localchat.tui.actions import slash_commands
from tests.conftest import run_cli, wait_for
from tests.escapes import PAYLOADS, unsafe
from tests.fake_engine import MODEL, Die, FakeEngine, Refuse, finish, progress, say, think, usage, wait
from tests.terminal import Terminal

DUMB = {"TERM": "dumb"}
ALL = "\n".join(text for text in PAYLOADS if "\ud800" not in text)


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class Plain:
    """The plain chat, driven as a person would: type, and wait for what comes."""

    def __init__(self, engine: FakeEngine, home: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = ("chat", "--plain", "--engine", engine.url, *arguments)
        self.terminal = Terminal(*command, home=home, env=env or DUMB)
        self.until_prompt()

    def until_prompt(self, prompt: str = "You: ") -> str:
        """What came until the person is asked again."""
        before = len(self.terminal.output)
        self._until(prompt.encode(), before)
        return self.terminal.output[before:].decode().replace("\r\n", "\n")

    def _until(self, text: bytes, since: int) -> None:
        wait_for(lambda: text in self.terminal.output[since:] or not self.terminal._read(0.05))
        assert text in self.terminal.output[since:], self.terminal.output[since:]

    def say(self, text: str, until: str = "You: ") -> str:
        """Type a line; what came then, the typing left out."""
        self.terminal.press(text.encode() + b"\n")
        return self.until_prompt(until).removeprefix(text + "\n").removesuffix(until)

    def leave(self) -> int:
        self.terminal.press(b"\x04")
        return self.terminal.end()


def the_chat(home: Path) -> Tree:
    with closing(Chats(home / "chats" / "chats.db")) as chats:
        latest = chats.latest("chat")
        assert latest
        return chats.tree(latest.id)


def told(nodes: list[Node]) -> list[tuple[str, str]]:
    return [(node.message.text(), node.state) for node in nodes]


def sent(engine: FakeEngine) -> list[str]:
    return [message.text() for message in engine.requests[-1].messages]


def test_a_conversation_has_labels_and_is_kept(engine: FakeEngine, home: Path) -> None:
    engine.script(think("Hm."), say("Red.", by=1))
    chat = Plain(engine, home)
    assert chat.say("A colour?") == f"Thinking...\nModel ({MODEL}): Red.\n\n"
    assert chat.say("Another?") == f"Thinking...\nModel ({MODEL}): Red.\n\n"
    assert sent(engine) == ["A colour?", "Red.", "Another?"]
    assert chat.leave() == 0
    assert told(the_chat(home).path()) == [
        ("A colour?", "done"),
        ("Red.", "done"),
        ("Another?", "done"),
        ("Red.", "done"),
    ]
    assert the_chat(home).path()[1].message.reasoning_content == "Hm."


@pytest.mark.parametrize("env", [DUMB, {"TERM": "xterm-256color", "INPUTRC": "/dev/null"}])
def test_nothing_is_written_over(engine: FakeEngine, home: Path, env: dict[str, str]) -> None:
    engine.script(progress("loading", 0.5, 1), progress("reading", 10, 20), think("Hm."), say("a\nb"))
    chat = Plain(engine, home, env=env)
    chat.say("hi")
    assert chat.leave() == 0
    # What a terminal that can do it gets is the editing of lines: bracketed paste, and no more.
    rest = re.sub(rb"\x1b\[\?2004[hl]\r?", b"", chat.terminal.output) if env is not DUMB else chat.terminal.output
    assert b"\x1b" not in rest and b"\r" not in rest.replace(b"\r\n", b"")
    assert b"%" not in rest


def test_thinking_is_read_out_where_the_settings_say_so(engine: FakeEngine, home: Path) -> None:
    home.mkdir()
    (home / "settings.toml").write_text("show_thinking = true\n")
    engine.script(think("Hm, "), think("well."), say("Red."))
    chat = Plain(engine, home)
    assert chat.say("A colour?") == f"Thinking: Hm, well.\nModel ({MODEL}): Red.\n\n"
    chat.leave()


def test_messages_of_several_lines(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    chat = Plain(engine, home)
    chat.say("one\\", "... ")
    chat.say("two\\", "... ")
    chat.say("three")
    assert sent(engine)[-1] == "one\ntwo\nthree"
    chat.say('"""a "quoted" word', "... ")
    chat.say("", "... ")
    chat.say('end"""')
    assert sent(engine)[-1] == 'a "quoted" word\n\nend'
    assert chat.say('"""one line"""').startswith("Model")
    assert sent(engine)[-1] == "one line"
    chat.leave()


def test_ctrl_c_stops_the_answer_and_keeps_it_and_it_can_be_continued(engine: FakeEngine, home: Path) -> None:
    engine.script(say("half an "), wait("never"))
    chat = Plain(engine, home)
    chat.terminal.press(b"hi\n")
    chat.terminal.read_until("half an")
    chat.terminal.press(b"\x03")
    chat.terminal.read_until("[stopped]\r\n\r\nYou: ")
    assert told(the_chat(home).path()) == [("hi", "done"), ("half an ", "stopped")]
    engine._scripts[:] = []
    engine.script(say("answer."))
    assert f"Model ({MODEL}): answer." in chat.say("/continue")
    last = engine.requests[-1]
    assert last.localchat and last.localchat.continue_final
    assert sent(engine) == ["hi", "half an "]
    assert chat.leave() == 0
    assert told(the_chat(home).path()) == [("hi", "done"), ("half an answer.", "done")]


def test_retry_edit_and_version_make_and_walk_siblings(engine: FakeEngine, home: Path) -> None:
    engine.script(say("one"))
    chat = Plain(engine, home)
    assert "there is no message to answer again" in chat.say("/retry")
    chat.say("q")
    engine._scripts[:] = []
    engine.script(say("two"))
    assert chat.say("/retry") == f"Model ({MODEL}): two\n\n"
    assert "this is version 2 of 2" in chat.say("/version")
    assert chat.say("/version 1") == f"Model ({MODEL}) (version 1 of 2):\none\n\n"
    chat.say("/edit q, edited")
    assert sent(engine) == ["q, edited"]
    assert "this terminal cannot edit" in chat.say("/edit")
    chat.leave()
    tree = the_chat(home)
    assert sorted(node.message.text() for node in tree.nodes.values()) == ["one", "q", "q, edited", "two", "two"]
    assert told(tree.path()) == [("q, edited", "done"), ("two", "done")]


def test_settings_of_the_chat(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    chat = Plain(engine, home, "-o", "top_k", "7")
    assert chat.say("/set") == "[top_k 7]\n"
    assert chat.say("/set temperature 0.5") == "[temperature 0.5, top_k 7]\n"
    assert "it takes a number, not 'hot'" in chat.say("/set temperature hot")
    assert chat.say("/system Be brief.") == "[the system prompt is: Be brief.]\n"
    assert chat.say("/think off") == "[thinking is off from the next message on]\n"
    assert chat.say("/model other-2b") == "[the model is other-2b]\n"
    chat.say("hi")
    request = engine.requests[-1]
    assert (request.model, request.temperature, request.top_k) == ("other-2b", 0.5, 7)
    assert sent(engine) == ["Be brief.", "hi"]
    assert chat.say("/system -") == "[there is no system prompt]\n"
    assert "tokens/s" in chat.say("/figures")
    assert chat.say("/title My own title") == "[the title is My own title]\n"
    chat.leave()
    with closing(Chats(home / "chats" / "chats.db")) as chats:
        info = chats.latest("chat")
    assert info and (info.title, info.settings.system, info.settings.thinking) == ("My own title", None, False)


def test_files_are_attached(engine: FakeEngine, home: Path, tmp_path: Path) -> None:
    engine.script(say("ok"))
    (tmp_path / "a.txt").write_text("in a file\n")
    chat = Plain(engine, home)
    assert "there is no file" in chat.say("/attach /nowhere")
    assert chat.say(f"/attach {tmp_path}/a.txt") == "[attached: a.txt, 1 line; it goes with your next message]\n"
    chat.say("what?")
    assert sent(engine) == ["a.txt:\n```\nin a file\n```\n\nwhat?"]
    chat.say("and?")
    assert sent(engine)[-1] == "and?"
    chat.leave()


def test_chats_are_listed_opened_and_left(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    with closing(Chats(home / "chats" / "chats.db")) as chats:
        number = chats.create(ChatSettings(), title="Old")
        for place in range(5):
            chats.append(number, chats.info(number).tip, Message("user", f"q{place}"))
            chats.append(number, chats.info(number).tip, Message("assistant", f"a{place}"))
    chat = Plain(engine, home)
    assert "Old" in chat.say("/chats")
    opened = chat.say("/open 1")
    assert opened.startswith("[chat 1: Old; 4 earlier messages are not shown, /show shows all]\nYou:\nq2\n")
    assert "q0" not in opened and "q0" in chat.say("/show")
    chat.say("more")
    assert sent(engine)[-2:] == ["a4", "more"]
    assert "q3" in chat.say("/find q3")
    assert chat.say("/new") == "[a new chat]\n"
    chat.say("fresh")
    assert sent(engine) == ["fresh"]
    assert chat.say("/last").startswith("[chat 2: fresh]")
    assert "`localchat chats restore 2`" in chat.say("/delete")
    assert "no chat has the number 9" in chat.say("/open 9")
    chat.terminal.press(b"/quit\n")
    assert chat.terminal.end() == 0


def test_continuing_from_the_command_line(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    none = Terminal("chat", "--plain", "-c", home=home, env=DUMB)
    assert none.end() == 2 and "there is no earlier chat" in none.screen()
    first = Plain(engine, home)
    first.say("hi")
    first.leave()
    second = Plain(engine, home, "-c")
    second.say("more")
    assert sent(engine) == ["hi", "ok", "more"]
    second.leave()
    third = Plain(engine, home, "--chat", "1")
    third.say("and")
    assert len(sent(engine)) == 5
    third.leave()


def test_what_is_no_command_is_said_and_a_path_is_a_message(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    chat = Plain(engine, home)
    assert "there is no command /nope: /help lists them" in chat.say("/nope")
    chat.say("/etc/passwd is what?")
    assert sent(engine) == ["/etc/passwd is what?"]
    helped = chat.say("/help")
    assert all(f"/{name}" in helped for name in _COMMANDS)
    chat.leave()


def test_an_engine_that_fails_leaves_the_chat_usable(engine: FakeEngine, home: Path) -> None:
    engine.script(say("half"), [Die()], end=False)
    chat = Plain(engine, home)
    assert "half\n[broke off: the engine died in mid-answer" in chat.say("hi")
    assert told(the_chat(home).path())[1] == ("half", "failed")
    engine._scripts[:] = []
    engine.script(say("whole"))
    assert "whole" in chat.say("/retry")
    chat.leave()


def test_a_full_window_is_the_person_s_choice(engine: FakeEngine, home: Path) -> None:
    engine.script([Refuse(400, "context_length_exceeded", "the prompt is too long: shorten it")], end=False)
    engine.script(say("ok"), finish(), usage(dropped_messages=2))
    chat = Plain(engine, home)
    assert "[broke off: the prompt is too long: shorten it]" in chat.say("hi", "from now on? [y/N] ")
    slid = chat.say("y")
    assert "ok" in slid and "the model no longer sees the first 2 messages" in slid
    chat.leave()
    with closing(Chats(home / "chats" / "chats.db")) as chats:
        info = chats.latest("chat")
    assert info and info.settings.overflow == "slide"


def test_what_cannot_be_kept_is_sent_only_where_the_person_says_so(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    file = home / "chats" / "chats.db"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    chat = Plain(engine, home)
    assert "the message was not sent, because it cannot be kept" in chat.say("hi", "[y/N] ")
    chat.say("n")
    assert engine.requests == []
    chat.say("hi", "[y/N] ")
    assert f"Model ({MODEL}): ok" in chat.say("y")
    assert "ok" in chat.say("more")
    assert sent(engine) == ["hi", "ok", "more"]
    chat.leave()


def test_what_was_typed_and_not_sent_is_a_draft(engine: FakeEngine, home: Path) -> None:
    engine.script(say("ok"))
    chat = Plain(engine, home)
    chat.say("hi")
    chat.say('"""half a', "... ")
    chat.terminal.press(b"message\n")
    chat.until_prompt("... ")
    assert chat.leave() == 0
    with closing(Chats(home / "chats" / "chats.db")) as chats:
        assert chats.draft(1).text == "half a\nmessage"


def test_nothing_that_the_model_says_drives_the_terminal(engine: FakeEngine, home: Path) -> None:
    engine.script(think(ALL, by=3), say(ALL, by=2), finish(ALL), usage(warnings=[ALL]))
    chat = Plain(engine, home)
    chat.say("hi")
    chat.say("/show")
    chat.leave()
    assert unsafe(chat.terminal.output.decode().replace("\r\n", "\n")) == []


@pytest.mark.parametrize("moment", ["typing", "answering"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_signal_leaves_the_terminal_as_it_was(
    engine: FakeEngine, home: Path, number: signal.Signals, moment: str
) -> None:
    engine.script(say("half "), wait("never"))
    terminal = Terminal("chat", "--plain", "--engine", engine.url, home=home, env={"TERM": "xterm-256color"})
    before = terminal.settings()
    terminal.read_until("You: ")
    terminal.press(b"hello")
    terminal.read_until("hello")
    if moment == "answering":
        terminal.press(b"\n")
        terminal.read_until("half ")
    else:
        assert terminal.settings() != before, "the editing of lines has changed the modes"
    # Python hears of a signal that comes while a key is being handled with the next event only: so it comes again.
    due = 0.0
    while terminal._read(0.05):
        if time.monotonic() >= due:
            terminal.process.send_signal(number)
            due = time.monotonic() + 0.5
    assert terminal.process.wait(timeout=20) == 128 + number
    assert terminal.settings() == before
    assert terminal.output.count(b"\x1b[?2004h") == terminal.output.count(b"\x1b[?2004l")
    assert b"Traceback" not in terminal.output
    if moment == "answering":
        assert told(the_chat(home).path())[1] == ("half ", "stopped")


def test_a_pipe_is_pointed_to_ask(home: Path) -> None:
    done = run_cli("chat", "--plain", home=home, input="hi\nmore\n")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "use `localchat ask`" in done.stderr and done.stderr.count("\n") == 1


def test_commands_have_the_names_that_they_have_on_the_screen() -> None:
    here_only = {"open", "show", "version", "last"}
    assert set(_COMMANDS) - here_only <= {name for name, _, _ in slash_commands()}


def test_continue_alone_opens_the_last_chat(home: Path) -> None:
    terminal = Terminal("-c", home=home)
    assert terminal.end() == 2 and "there is no earlier chat to go on with" in terminal.screen()
