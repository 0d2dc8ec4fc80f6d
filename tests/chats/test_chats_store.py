"""The store: what was put in comes out, as a tree, whatever else happened."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from localchat.chats.database import connect
from localchat.chats.records import Attachment, ChatSettings, Draft, Node, Outcome
from localchat.chats.store import Chats
from localchat.errors import ChatsError, NoSuchChat
from localchat.protocol import Message, Sampling, Text, Timings, Usage

HELLO = Message("user", "Hello there")


def started(chats: Chats, words: str = "Hello there") -> tuple[int, int, int]:
    """A chat with one message and its unfinished answer."""
    chat = chats.create(ChatSettings())
    return chat, *chats.ask(chat, None, Message("user", words))


def said(chats: Chats, node: int, words: str = "Hi.") -> None:
    chats.save(node, Message("assistant", words), "done", Outcome())


def test_a_message_comes_back_as_it_was_sent(chats: Chats, file: Path) -> None:
    wanted = ChatSettings("m", "Be brief.", Sampling(temperature=0.5, seed=7), 9, 2048, ["X"], False, 3, "slide")
    chat = chats.create(wanted)
    files = [Attachment("a.py", "print()\n", 3), Attachment("", "piped \0 in")]
    question, answer = chats.ask(
        chat, None, Message("user", "line\r\n\ttwo \0 \x1b[31m 日本", name="me"), files, model="m"
    )
    outcome = Outcome("m", "stop", usage=Usage(1, 2, 3), timings=Timings(), seed=1 << 62, thinking_ms=1.5)
    chats.save(answer, Message("assistant", "text", "thought"), "stopped", outcome)
    chats.summarise(answer, "in short")
    again = Chats(file)
    tree, info = again.tree(chat), again.info(chat)
    again.close()
    assert info.settings == wanted
    assert (info.kind, info.tip, info.messages, info.pinned) == ("chat", answer, 2, False)
    first, second = tree.path()
    assert first.message == Message("user", "line\r\n\ttwo \0 \x1b[31m 日本", name="me")
    assert (first.id, first.parent, first.attachments, first.state) == (question, None, files, "done")
    assert second == Node(
        answer,
        question,
        Message("assistant", "text", "thought"),
        "stopped",
        second.created,
        outcome,
        summary="in short",
    )


def test_text_that_is_no_unicode_and_parts_are_kept_as_text(chats: Chats) -> None:
    chat = chats.create(ChatSettings(system="a\udcff"), title="t\udcff")
    chats.ask(chat, None, Message("user", [Text("a\udcff"), Text("b")]), [Attachment("n\udcff", "t\udcff")])
    chats.keep_draft(chat, Draft("d\udcff"))
    node = chats.tree(chat).path()[0]
    assert (node.message.content, node.attachments) == ("a\ufffdb", [Attachment("n\ufffd", "t\ufffd")])
    assert chats.draft(chat) == Draft("d\ufffd")
    assert chats.info(chat).settings.system == "a\ufffd"


def test_what_a_newer_version_wrote_can_be_read(chats: Chats, file: Path) -> None:
    chat, _, answer = started(chats)
    said(chats, answer)
    told = {"model": "m", "finish_reason": "stop", "novel": [1], "cached_tokens": "many", "usage": {"new": 1}}
    wanted = {
        "model": "m",
        "overflow": "summarise",
        "max_tokens": -1,
        "sampling": {"temperature": 0.5, "mirostat": 2, "top_k": "all"},
        "tools": {},
    }
    with connect(file) as db:
        db.execute("UPDATE messages SET outcome = ?", (msgspec.json.encode(told).decode(),))
        db.execute("UPDATE chats SET settings = ?", (msgspec.json.encode(wanted).decode(),))
    outcome = chats.tree(chat).nodes[answer].outcome
    assert (outcome.model, outcome.finish_reason, outcome.cached_tokens) == ("m", "stop", None)
    assert chats.info(chat).settings == ChatSettings(model="m", sampling=Sampling(temperature=0.5))
    with connect(file) as db:
        db.execute("UPDATE messages SET outcome = '[oops'")
    assert chats.tree(chat).nodes[answer].outcome == Outcome()


def test_titles_come_from_words_the_model_and_the_person(chats: Chats) -> None:
    chat, *_ = started(chats, "  How do\nI " + "bake bread " * 20)
    assert chats.info(chat).title == "How do I bake bread bake bread bake bread bake bread bake…"
    assert chats.info(chat).titled_by == "words"
    chats.rename(chat, " Baking\nbread ", by="model")
    assert (chats.info(chat).title, chats.info(chat).titled_by) == ("Baking bread", "model")
    chats.rename(chat, "Bread")
    chats.rename(chat, "Something else", by="model")
    assert (chats.info(chat).title, chats.info(chat).titled_by) == ("Bread", "person")
    chats.rename(chat, "")
    assert chats.info(chat).title.startswith("How do I bake bread")
    chats.rename(chat, "Bread again", by="model")
    assert chats.info(chat).titled_by == "model"


def test_a_message_that_is_only_a_file_gives_its_name(chats: Chats) -> None:
    chat = chats.create(ChatSettings())
    chats.ask(chat, None, Message("user", ""), [Attachment("report.pdf", "text")])
    assert chats.info(chat).title == "report.pdf"
    assert [hit.role for hit in chats.search("report")] == ["title"]


def test_a_long_title_without_spaces_is_cut(chats: Chats) -> None:
    chat, *_ = started(chats, "語" * 500)
    assert chats.info(chat).title == "語" * 60 + "…"


def test_answers_are_siblings_and_can_go_on(chats: Chats) -> None:
    chat, question, first = started(chats)
    said(chats, first, "One.")
    second = chats.answer_again(chat, question, model="m")
    tree = chats.tree(chat)
    assert (tree.siblings(second), tree.tip, tree.nodes[second].outcome.model) == ([first, second], second, "m")
    chats.save(second, Message("assistant", "Tw"), "stopped", Outcome())
    chats.resume(second)
    assert chats.tree(chat).nodes[second].state == "unfinished"
    chats.go_to(chat, first)
    assert [node.message.text() for node in chats.tree(chat).path()] == ["Hello there", "One."]
    edited, _ = chats.ask(chat, None, Message("user", "Hello again"))
    assert chats.tree(chat).siblings(edited) == [question, edited]


def test_a_message_that_no_engine_saw_can_be_taken_back(chats: Chats) -> None:
    chat, question, answer = started(chats)
    chats.withdraw(chat, question)
    assert (chats.info(chat).tip, chats.info(chat).messages, chats.info(chat).title) == (None, 0, "")
    question, answer = chats.ask(chat, None, HELLO)
    said(chats, answer)
    with pytest.raises(ChatsError, match="was answered"):
        chats.withdraw(chat, question)
    second, empty = chats.ask(chat, answer, HELLO)
    chats.answer_again(chat, second)
    chats.withdraw(chat, second)
    assert (chats.info(chat).tip, chats.info(chat).messages) == (answer, 2)
    assert empty not in chats.tree(chat).nodes


def test_numbers_of_what_was_taken_back_are_not_given_again(chats: Chats) -> None:
    chat, question, answer = started(chats)
    chats.withdraw(chat, question)
    assert min(chats.ask(chat, None, HELLO)) > answer


def test_the_list_has_pinned_chats_first_then_the_newest(chats: Chats) -> None:
    one, two, three = (started(chats)[0] for _ in range(3))
    ask = chats.create(ChatSettings(), "ask")
    chats.pin(one, True)
    assert [info.id for info in chats.chats()] == [one, three, two]
    assert [info.id for info in chats.chats("ask")] == [ask]
    assert [info.id for info in chats.chats(None, limit=2)] == [one, ask]
    chats.ask(two, None, HELLO)
    assert [info.id for info in chats.chats()] == [one, two, three]
    latest = chats.latest("chat")
    assert latest and latest.id == two
    chats.pin(one, False)
    assert [info.id for info in chats.chats()] == [two, three, one]


def test_a_deleted_chat_can_be_restored_for_thirty_days(chats: Chats, file: Path) -> None:
    chat, _, answer = started(chats, "apples")
    said(chats, answer, "pears")
    chats.rename(chat, "fruit")
    before = chats.info(chat)
    chats.delete(chat)
    assert (chats.chats(), chats.latest("chat"), chats.prompts()) == ([], None, [])
    assert chats.search("apples") == chats.search("fruit") == []
    with pytest.raises(NoSuchChat):
        chats.tree(chat)
    chats.restore(chat)
    assert chats.chats() == [before]
    assert [hit.role for hit in chats.search("apples")] == ["user"]
    chats.delete(chat)
    with connect(file) as db:
        db.execute("UPDATE chats SET deleted = ?", (time.time() - 29 * 86400,))
    Chats(file).close()
    chats.restore(chat)
    chats.delete(chat)
    with connect(file) as db:
        db.execute("UPDATE chats SET deleted = ?", (time.time() - 31 * 86400,))
    Chats(file).close()
    with pytest.raises(NoSuchChat):
        chats.restore(chat)
    assert rows(file, "SELECT count(*) FROM messages") == [(0,)]


def test_writing_to_a_chat_that_was_deleted_elsewhere_brings_it_back(chats: Chats) -> None:
    chat, _question, answer = started(chats)
    chats.delete(chat)
    chats.save(answer, Message("assistant", "half"), "unfinished", Outcome())
    assert chats.chats() == []
    chats.ask(chat, answer, HELLO)
    assert chats.info(chat).messages == 4


def test_chats_in_which_nothing_was_written_go_after_a_month(chats: Chats, file: Path) -> None:
    old = time.time() - 40 * 86400
    for number in range(3):
        chats.create(ChatSettings(), created=old if number < 2 else None)
    chats.keep_draft(1, Draft("not sent yet"))
    again = Chats(file)
    assert [info.id for info in again.chats()] == [3, 1]
    again.close()


def test_drafts(chats: Chats) -> None:
    chat, *_ = started(chats)
    ask = chats.create(ChatSettings(), "ask")
    new, other = Draft("new", [Attachment("a", "b")]), Draft("other")
    chats.keep_draft(None, new)
    chats.keep_draft(chat, other)
    assert (chats.draft(None), chats.draft(chat), chats.draft(99)) == (new, other, Draft())
    chats.ask(ask, None, HELLO)
    chats.ask(chat, None, HELLO)
    assert (chats.draft(None), chats.draft(chat)) == (new, Draft())
    chats.ask(chats.create(ChatSettings()), None, HELLO)
    assert chats.draft(None) == Draft()
    chats.keep_draft(chat, other)
    chats.keep_draft(chat, Draft())
    assert chats.draft(chat) == Draft()
    with pytest.raises(NoSuchChat):
        chats.keep_draft(99, other)


def test_prompts_are_what_was_written_in_chats(chats: Chats) -> None:
    chat, _, answer = started(chats, "one")
    chats.ask(chat, answer, Message("user", "two"))
    chats.ask(chat, answer, Message("user", "two"))
    chats.ask(chats.create(ChatSettings(), "ask"), None, Message("user", "of a script"))
    chats.append(chat, None, Message("user", "of last year"), created=5.0)
    chats.ask(chat, answer, Message("user", "one"))
    assert chats.prompts() == ["of last year", "one", "two", "one"]
    assert chats.prompts(2) == ["two", "one"]


def test_unknown_numbers_are_named(chats: Chats) -> None:
    chat, _question, _answer = started(chats)
    other = started(chats)[1]
    for number in (99, 0, -1, 1 << 70, -(1 << 70)):
        for call in (
            lambda n: chats.tree(n),
            lambda n: chats.info(n),
            lambda n: chats.ask(n, None, HELLO),
            lambda n: chats.ask(chat, n, HELLO),
            lambda n: chats.answer_again(chat, n),
            lambda n: chats.resume(n),
            lambda n: chats.save(n, HELLO, "done", Outcome()),
            lambda n: chats.withdraw(chat, n),
            lambda n: chats.summarise(n, ""),
            lambda n: chats.go_to(chat, n),
            lambda n: chats.rename(n, ""),
            lambda n: chats.pin(n, True),
            lambda n: chats.delete(n),
            lambda n: chats.restore(n),
            lambda n: chats.set_settings(n, ChatSettings()),
        ):
            with pytest.raises(NoSuchChat, match=f"{number}:"):
                call(number)
    with pytest.raises(NoSuchChat):
        chats.ask(chat, other, HELLO)
    assert chats.info(chat).messages == 2


def test_together_is_all_or_nothing(chats: Chats) -> None:
    with pytest.raises(KeyError), chats.together():
        chat = chats.create(ChatSettings())
        chats.append(chat, None, HELLO)
        raise KeyError
    assert chats.chats() == []
    with chats.together():
        chat = chats.create(ChatSettings(), title="Old", created=10.0)
        first = chats.append(chat, None, HELLO, created=11.0)
        chats.append(chat, first, Message("assistant", "Hi"), created=12.0)
    info = chats.info(chat)
    assert (info.created, info.updated, info.title, info.titled_by, info.messages) == (10.0, 12.0, "Old", "person", 2)


def test_answers_of_a_dead_writer_are_broken_and_those_of_a_living_one_are_not(chats: Chats, file: Path) -> None:
    chat, _, answer = started(chats)
    chats.save(answer, Message("assistant", "so far zebra"), "unfinished", Outcome())
    other = Chats(file)
    assert other.tree(chat).nodes[answer].state == "unfinished"
    assert other.search("zebra") == []
    assert chats._writers._lock
    chats._writers._lock.release()  # what the kernel does with the lock of a program that dies
    assert other.tree(chat).nodes[answer].state == "broken"
    assert [hit.node for hit in other.search("zebra")] == [answer]
    assert list(file.parent.glob("writing-*")) == []
    other.close()


def test_what_is_unfinished_at_the_end_is_broken_and_no_file_stays(chats: Chats, file: Path) -> None:
    writing = Chats(file)
    chat, _, answer = started(writing)
    assert len(list(file.parent.glob("writing-*"))) == 1
    writing.close()
    assert list(file.parent.glob("writing-*")) == []
    assert rows(file, "SELECT state, writer FROM messages WHERE role = 'assistant'") == [("broken", None)]
    assert chats.tree(chat).nodes[answer].state == "broken"


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(file)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


WORDS = st.sampled_from(["apple", "Äpfel", "日本語", "the apple pie", "pie", ""])


class AgainstAModel(RuleBasedStateMachine):
    """Any sequence of calls gives what plain dictionaries give; the index never forgets and never invents."""

    chat_numbers = Bundle("chat_numbers")
    nodes_of_chats = Bundle("nodes_of_chats")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.file = Path(self.folder.name) / "c" / "chats.db"
        self.chats = Chats(self.file)
        self.deleted: set[int] = set()
        self.trees: dict[int, dict[int, tuple[int | None, str, str, str]]] = {}
        self.tips: dict[int, int | None] = {}

    @rule(target=chat_numbers)
    def create(self) -> int:
        chat = self.chats.create(ChatSettings(), title="t")
        self.trees[chat], self.tips[chat] = {}, None
        return chat

    @rule(target=nodes_of_chats, chat=chat_numbers, words=WORDS)
    def ask_first(self, chat: int, words: str) -> tuple[int, int]:
        return self._asked(chat, None, words)

    @rule(target=nodes_of_chats, parent=nodes_of_chats, words=WORDS)
    def ask(self, parent: tuple[int, int], words: str) -> tuple[int, int]:
        chat, node = parent
        return self._asked(chat, node if node in self.trees[chat] else None, words)

    def _asked(self, chat: int, parent: int | None, words: str) -> tuple[int, int]:
        question, answer = self.chats.ask(chat, parent, Message("user", words))
        self.trees[chat][question] = (parent, "user", words, "done")
        self.trees[chat][answer] = (question, "assistant", "", "unfinished")
        self.tips[chat] = answer
        self.deleted.discard(chat)
        return chat, answer

    @rule(place=nodes_of_chats, words=WORDS, state=st.sampled_from(["unfinished", "done", "stopped", "failed"]))
    def save(self, place: tuple[int, int], words: str, state: str) -> None:
        chat, node = place
        if node in self.trees[chat]:
            self.chats.save(node, Message("assistant", words), state, Outcome())
            self.trees[chat][node] = (self.trees[chat][node][0], "assistant", words, state)

    @rule(target=nodes_of_chats, place=nodes_of_chats)
    def again(self, place: tuple[int, int]) -> tuple[int, int]:
        chat, node = place
        if node in self.trees[chat]:
            question = self.trees[chat][node][0]
            node = self.chats.answer_again(chat, question)
            self.trees[chat][node] = (question, "assistant", "", "unfinished")
            self.tips[chat] = node
            self.deleted.discard(chat)
        return chat, node

    @rule(place=nodes_of_chats)
    def resume(self, place: tuple[int, int]) -> None:
        chat, node = place
        if node in self.trees[chat]:
            self.chats.resume(node)
            parent, role, words, _ = self.trees[chat][node]
            self.trees[chat][node] = (parent, role, words, "unfinished")
            self.deleted.discard(chat)

    @rule(place=nodes_of_chats)
    def withdraw(self, place: tuple[int, int]) -> None:
        chat, node = place
        if node not in self.trees[chat]:
            return
        tree = self.trees[chat]
        question = tree[node][0]
        answers = [number for number, (parent, *_) in tree.items() if parent == question]
        if any(tree[answer][2] or any(one[0] == answer for one in tree.values()) for answer in answers):
            with pytest.raises(ChatsError):
                self.chats.withdraw(chat, question)
        else:
            self.chats.withdraw(chat, question)
            self.tips[chat] = tree[question][0]
            for number in (*answers, question):
                del tree[number]

    @rule(chat=chat_numbers)
    def delete_and_maybe_restore(self, chat: int) -> None:
        if chat in self.deleted:
            self.chats.restore(chat)
            self.deleted.remove(chat)
        else:
            self.chats.delete(chat)
            self.deleted.add(chat)

    @rule()
    def open_again(self) -> None:
        self.chats.close()
        for tree in self.trees.values():
            for node, (parent, role, words, state) in tree.items():
                tree[node] = (parent, role, words, "broken" if state == "unfinished" else state)
        self.chats = Chats(self.file)

    @invariant()
    def same(self) -> None:
        assert {info.id for info in self.chats.chats()} == self.trees.keys() - self.deleted
        for chat in self.trees.keys() - self.deleted:
            tree = self.chats.tree(chat)
            kept = {n.id: (n.parent, n.message.role, n.message.content, n.state) for n in tree.nodes.values()}
            assert kept == self.trees[chat]
            assert self.chats.info(chat).tip == self.tips[chat]
            assert self.chats.info(chat).messages == len(kept)

    def teardown(self) -> None:
        for word, standing in (("apple", ["apple"]), ("Pie", ["pie"]), ("apfel", ["Äpfel"]), ("本語", ["日本語"])):
            expected = {
                node
                for chat in self.trees.keys() - self.deleted
                for node, (_, _, words, state) in self.trees[chat].items()
                if any(part in words for part in standing) and state != "unfinished"
            }
            assert {hit.node for hit in self.chats.search(word, limit=1000)} == expected
        self.chats.close()
        assert rows(self.file, "PRAGMA integrity_check") == [("ok",)]
        assert rows(self.file, "PRAGMA foreign_key_check") == []
        self.folder.cleanup()


AgainstAModel.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestAgainstAModel = AgainstAModel.TestCase
