"""What a person does with a conversation: edit, ask again, go on, walk between versions, and never lose a word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from fake_engine import Refuse, finish, progress, say, think, usage, wait
from textual.pilot import Pilot

from localchat.chats.records import Node
from localchat.chats.reply import Reply
from localchat.chats.store import Chats
from localchat.paths import paths
from localchat.settings import settings
from tests.tui.conftest import Bench

SIZE = (100, 34)
T = TypeVar("T")


def on_disk(read: Callable[[Chats], T]) -> T:
    """What another program sees in the database."""
    chats = Chats()
    try:
        return read(chats)
    finally:
        chats.close()


def kept() -> list[Node]:
    """The path of the newest chat, as it is on disk."""

    def path(chats: Chats) -> list[Node]:
        last = chats.latest("chat")
        return chats.tree(last.id).path() if last else []

    return on_disk(path)


def words(nodes: list[Node]) -> list[str]:
    return [node.message.text() for node in nodes]


def sent(bench: Bench, number: int = -1) -> list[str]:
    return [message.text() for message in bench.engine.requests[number].messages]


def titles() -> list[str]:
    return [chat.title for chat in on_disk(lambda chats: chats.chats())]


async def asked(bench: Bench, pilot: Pilot[None], text: str) -> None:
    """Ask, and wait for the answer's end."""
    before = len(bench.engine.requests)
    await bench.ask(pilot, text)
    await bench.until(pilot, lambda: len(bench.engine.requests) > before)
    await bench.answered(pilot)


async def test_a_message_is_on_disk_before_the_engine_hears_of_it_and_the_answer_while_it_comes(bench: Bench) -> None:
    bench.engine.script(wait("begin"), think("hm"), say("Half an"), wait("go"), say(" answer"))
    async with bench.app(model="fake-1b").run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: bench.engine.requests)
        nodes = kept()
        assert [(node.message.role, node.state) for node in nodes] == [("user", "done"), ("assistant", "unfinished")]
        assert words(nodes) == ["my words", ""]
        bench.engine.go("begin")
        await bench.until(pilot, lambda: words(kept()) == ["my words", "Half an"])
        bench.engine.go("go")
        await bench.answered(pilot)
        await bench.until(pilot, lambda: kept()[-1].state == "done")
    answer = kept()[-1]
    assert (answer.message.text(), answer.message.reasoning_content) == ("Half an answer", "hm")
    assert answer.outcome.usage and answer.outcome.usage.total_tokens == 36
    assert answer.outcome.model == "fake-1b"


async def test_asking_again_makes_a_sibling_and_one_can_go_back(bench: Bench) -> None:
    for text in ("One.", "Two.", "Three."):
        bench.engine.script(say(text))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "count")
        await pilot.press("ctrl+r")
        await bench.until(pilot, lambda: "Two." in bench.shown and "One." not in bench.shown)
        await bench.answered(pilot)
        assert "2 of 2" in bench.shown
        await pilot.press("tab")
        await pilot.press("left")
        await bench.until(pilot, lambda: "One." in bench.shown and "1 of 2" in bench.shown)
        await bench.until(pilot, lambda: words(kept()) == ["count", "One."])
        await pilot.press("escape")
        await asked(bench, pilot, "on")
        assert sent(bench) == ["count", "One.", "on"]
    assert sent(bench, 1) == ["count"]
    assert words(kept()) == ["count", "One.", "on", "Three."]


async def test_two_that_begin_an_answer_at_the_same_moment_begin_one(bench: Bench) -> None:
    bench.engine.script(say("One."))
    bench.engine.script(say("Two."), wait("go"), say(" And on."))
    bench.engine.script(say("Three."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "count")
        session = bench.screen.session
        await asyncio.gather(session.again(), session.again(), session.ask("waits", []))
        assert session.waiting and session.waiting.text == "waits"
        await bench.until(pilot, lambda: "Two." in bench.shown)
        bench.engine.go("go")
        await bench.until(pilot, lambda: "Three." in bench.shown)
        await bench.answered(pilot)
        assert "2 of 2" in bench.shown
        assert sent(bench) == ["count", "Two. And on.", "waits"]
    assert [node.state for node in kept()] == ["done"] * 4


async def test_a_page_that_begins_at_an_answer_without_a_word_yet_shows_its_end(bench: Bench) -> None:
    bench.engine.script(wait("go"), say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "count")
        await bench.until(pilot, lambda: bench.engine.requests)
        bench.screen.shown(bench.screen.session.items()[-1].node)
        await bench.until(pilot, lambda: "count" in bench.shown)
        bench.engine.go("go")
        await bench.answered(pilot)


async def test_editing_an_earlier_message_keeps_the_old_one_and_all_that_followed(bench: Bench) -> None:
    for text in ("One.", "Two.", "Other."):
        bench.engine.script(say(text))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await asked(bench, pilot, "second")
        await pilot.press(*"draft", "tab", "home", "e")
        await bench.until(pilot, lambda: bench.composer.text == "first")
        assert "editing an earlier message" in bench.shown
        await pilot.press(*" changed", "enter")
        await bench.until(pilot, lambda: "Other." in bench.shown)
        await bench.answered(pilot)
        assert sent(bench) == ["first changed"]
        assert bench.composer.text == "draft"
        assert "second" not in bench.shown
        await pilot.press("tab", "home", "left")
        await bench.until(pilot, lambda: "Two." in bench.shown)
    assert words(kept()) == ["first", "One.", "second", "Two."]


async def test_esc_leaves_the_editing_of_an_earlier_message(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await pilot.press(*"draft", "f2")
        await bench.until(pilot, lambda: bench.composer.text == "first")
        await pilot.press("escape")
        await bench.until(pilot, lambda: bench.composer.text == "draft")
    assert words(kept()) == ["first", "One."]


async def test_an_answer_that_was_stopped_goes_on_where_it_ended(bench: Bench) -> None:
    bench.engine.script(think("hm"), say("The sky is"), wait("never"))
    bench.engine.script(say(" blue."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "The sky is" in bench.shown)
        await pilot.press("escape")
        await bench.until(pilot, lambda: kept()[-1].state == "stopped")
        await pilot.press("ctrl+o")
        await bench.until(pilot, lambda: "The sky is blue." in bench.shown)
        await bench.answered(pilot)
        await bench.until(pilot, lambda: kept()[-1].state == "done")
    last = bench.engine.requests[-1]
    assert last.localchat and last.localchat.continue_final
    assert (last.messages[-1].role, last.messages[-1].text()) == ("assistant", "The sky is")
    assert last.messages[-1].reasoning_content == "hm"
    assert words(kept()) == ["go", "The sky is blue."]


async def test_an_answer_with_an_end_of_its_own_is_not_gone_on_with(bench: Bench) -> None:
    bench.engine.script(say("All."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "go")
        await pilot.press("ctrl+o")
        await bench.until(pilot, lambda: "this answer came to its own end" in bench.shown)
    assert len(bench.engine.requests) == 1


async def test_what_a_dead_program_left_is_found_and_goes_on(bench: Bench) -> None:
    bench.engine.script(say(" the end."))
    chats = Chats()
    chat = chats.create(bench.settings(model="fake-1b"))
    _, answer = chats.ask(chat, None, bench.message("my words"))
    chats.save(answer, bench.message("Before", "assistant"), "broken", chats.tree(chat).nodes[answer].outcome)
    chats.keep_draft(chat, bench.draft("half a thou"))
    chats.close()
    async with bench.app(chat=chat).run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: "broke off" in bench.shown)
        await bench.until(pilot, lambda: bench.composer.text == "half a thou" and bench.screen.engine.goes_on)
        await pilot.press("ctrl+o")
        await bench.until(pilot, lambda: "Before the end." in bench.shown)
        await bench.answered(pilot)
    assert words(kept()) == ["my words", "Before the end."]


async def test_the_last_chat_is_one_key_away(bench: Bench) -> None:
    bench.engine.script(say("Old words."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "about the sea")
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: "about the sea" in bench.shown)
        assert "Old words." not in bench.shown
        await pilot.press("ctrl+l")
        await bench.until(pilot, lambda: "Old words." in bench.shown)
        await asked(bench, pilot, "on")
    assert sent(bench) == ["about the sea", "Old words.", "on"]


async def test_a_draft_survives(bench: Bench) -> None:
    async with bench.app().run_test(size=SIZE) as pilot:
        await pilot.press(*"unsent")
        await bench.until(pilot, lambda: on_disk(lambda chats: chats.draft(None)).text == "unsent")
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: bench.composer.text == "unsent")


async def test_an_answer_goes_on_behind_another_chat(bench: Bench) -> None:
    bench.engine.script(say("One"), wait("go"), say(" and all."))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "first")
        await bench.until(pilot, lambda: "One" in bench.shown)
        await pilot.press("ctrl+n")
        await bench.until(pilot, lambda: "One" not in bench.shown)
        await asked(bench, pilot, "second")
        bench.engine.go("go")
        await bench.until(
            pilot, lambda: any("One and all." in hit.excerpt for hit in on_disk(lambda chats: chats.search("all")))
        )
        await pilot.press("ctrl+l")
        await bench.until(pilot, lambda: "One and all." in bench.shown)
    assert not bench.engine.closed_early.is_set()


FULL = Refuse(400, "context_length_exceeded", "the prompt has 9,000 tokens and the context window holds 4,096")


async def test_a_full_window_slides_if_the_person_says_so_and_a_line_shows_where(bench: Bench) -> None:
    bench.engine.script(say("One."))
    bench.engine.script([FULL])
    bench.engine.script(say("Two."), finish(), usage(dropped_messages=2))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await asked(bench, pilot, "second")
        await bench.until(pilot, lambda: "The context window is full" in bench.shown)
        await pilot.press("s")
        await bench.until(pilot, lambda: "Two." in bench.shown)
        await bench.answered(pilot)
        await bench.until(pilot, lambda: "the model no longer sees what is above" in bench.shown)
        shown = bench.shown
        assert shown.index("One.") < shown.index("no longer sees") < shown.index("second")
    assert sent(bench) == ["first", "One.", "second"]
    assert words(kept()) == ["first", "One.", "second", "Two."]


@pytest.mark.parametrize(("key", "asked_beside"), [("s", 0), ("m", 1)])
async def test_an_answer_that_filled_the_window_goes_on_where_it_ended(
    bench: Bench, key: str, asked_beside: int
) -> None:
    bench.engine.script(say("One."))
    bench.engine.script(say("Half an"), finish("length"), usage(prompt=4090, completion=6))
    bench.engine.script([FULL])
    if asked_beside:
        bench.engine.script(say("They counted."))
    bench.engine.script(say(" answer."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await asked(bench, pilot, "second")
        assert "cut off: the context window is full (Ctrl O goes on)" in bench.shown
        await pilot.press("ctrl+o")
        await bench.until(pilot, lambda: "What shall the model see?" in bench.shown)
        await pilot.press(key)
        await bench.until(pilot, lambda: "Half an answer." in bench.shown)
        await bench.answered(pilot)
    assert sent(bench)[-2:] == ["second", "Half an"]
    assert words(kept()) == ["first", "One.", "second", "Half an answer."]


async def test_a_full_window_gets_a_summary_if_the_person_says_so(bench: Bench) -> None:
    bench.engine.script(say("One."))
    bench.engine.script([FULL])
    bench.engine.script(say("They counted."))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await asked(bench, pilot, "second")
        await bench.until(pilot, lambda: "The context window is full" in bench.shown)
        await pilot.press("m")
        await bench.until(pilot, lambda: "Two." in bench.shown)
        await bench.answered(pilot)
        await bench.until(pilot, lambda: "this summary stands for what is above" in bench.shown)
        assert "They counted." in bench.shown
    assert sent(bench, 2)[:2] == ["first", "One."]
    assert "Summarise" in sent(bench, 2)[2]
    assert bench.engine.requests[3].messages[0].role == "system"
    assert "They counted." in sent(bench, 3)[0]
    assert sent(bench, 3)[1:] == ["second"]
    assert words(kept()) == ["first", "One.", "second", "Two."]


async def test_the_model_names_the_chat_once(bench: Bench) -> None:
    paths().settings.write_text("titles = true\n")
    settings.cache_clear()
    bench.engine.script(say("Salt, mostly."))
    bench.engine.script(say('"The Taste of the Sea."\n'))
    bench.engine.script(say("Yes."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "what is in the sea")
        await bench.until(pilot, lambda: "The Taste of the Sea" in titles())
        await asked(bench, pilot, "sure?")
        await pilot.pause()
    assert len(bench.engine.requests) == 3
    assert sent(bench, 2) == ["what is in the sea", "Salt, mostly.", "sure?"]


async def test_a_chat_whose_first_answer_was_stopped_gets_its_title_later(bench: Bench) -> None:
    paths().settings.write_text("titles = true\n")
    settings.cache_clear()
    bench.engine.script(say("Salt,"), wait("never"))
    bench.engine.script(say("Yes."))
    bench.engine.script(say("The Taste of the Sea"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "what is in the sea")
        await bench.until(pilot, lambda: "Salt," in bench.shown)
        await pilot.press("escape")
        await bench.ask(pilot, "sure?")
        await bench.until(pilot, lambda: "The Taste of the Sea" in titles())
    assert len(bench.engine.requests) == 3


async def test_a_message_that_cannot_be_kept_is_not_sent_until_the_person_insists(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localchat.errors import ChatsReadOnly

    bench.engine.script(say("Unkept words."))
    async with bench.app().run_test(size=SIZE) as pilot:

        def refuse(*_: object, **__: object) -> None:
            raise ChatsReadOnly("the chats cannot be written: make the folder writable")

        monkeypatch.setattr(Chats, "create", refuse)
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: "not sent: the chats cannot be written" in bench.shown)
        assert bench.composer.text == "my words"
        assert bench.engine.requests == []
        await pilot.press("enter")
        await bench.until(pilot, lambda: "Unkept words." in bench.shown)
        await bench.until(pilot, lambda: "not kept" in bench.shown)
        await asked(bench, pilot, "on")
    assert sent(bench) == ["my words", "Unkept words.", "on"]


async def test_a_message_that_can_be_kept_the_second_time_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from localchat.errors import ChatsDiskFull

    bench.engine.script(say("Kept words."))
    create = Chats.create

    def refuse(*_: object, **__: object) -> None:
        raise ChatsDiskFull("the disk is full: make room")

    async with bench.app().run_test(size=SIZE) as pilot:
        monkeypatch.setattr(Chats, "create", refuse)
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: "the disk is full" in bench.shown)
        monkeypatch.setattr(Chats, "create", create)
        await pilot.press("enter")
        await bench.until(pilot, lambda: "Kept words." in bench.shown)
        assert "not kept" not in bench.shown and "the disk is full" not in bench.shown
    assert words(kept()) == ["my words", "Kept words."]


async def test_stopping_in_the_prompt_and_asking_again_leaves_no_empty_version(bench: Bench) -> None:
    bench.engine.script(progress("reading", 1, 9), wait("never"))
    bench.engine.script(say("Done."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "reading" in bench.status.state)
        await pilot.press("escape", "ctrl+r")
        await bench.until(pilot, lambda: "Done." in bench.shown)
        await bench.answered(pilot)
        assert "of 2" not in bench.shown
    assert len(kept()) == 2


async def test_settings_of_a_chat_count_from_the_next_message_and_stay_with_it(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        for command in ("/system Be brief.", "/set temperature 0.5", "/think off"):
            bench.composer.text = command
            await pilot.press("escape", "enter")
        await asked(bench, pilot, "second")
        request = bench.engine.requests[-1]
        assert (request.messages[0].text(), request.temperature) == ("Be brief.", 0.5)
        bench.composer.text = "/set temperature hot"
        await pilot.press("escape", "enter")
        await bench.until(pilot, lambda: "temperature" in bench.status.hint)
    async with bench.app(chat=1).run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: "second" in bench.shown)
        chosen = bench.screen.session.settings
        assert (chosen.system, chosen.sampling.temperature, chosen.thinking) == ("Be brief.", 0.5, False)


async def test_a_chat_is_given_a_title_and_that_is_said(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        bench.composer.text = "/title Counting"
        await pilot.press("enter")
        await bench.until(pilot, lambda: "this chat is called Counting" in bench.shown)
        await bench.until(pilot, lambda: on_disk(lambda chats: chats.chats())[0].title == "Counting")


@pytest.mark.parametrize(
    ("command", "said"),
    [("/set temperature hot", "temperature: it takes a number"), ("/set warmth 1", "there is no setting warmth")],
)
async def test_a_setting_that_is_none_is_said_in_words(bench: Bench, command: str, said: str) -> None:
    async with bench.app().run_test(size=SIZE) as pilot:
        bench.composer.text = command
        await pilot.press("enter")
        await bench.until(pilot, lambda: said in bench.shown)


async def test_a_chat_is_written_to_a_file(bench: Bench, tmp_path: Path) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        bench.composer.text = f"/export {tmp_path}/out.md"
        await pilot.press("escape", "enter")
        await bench.until(pilot, lambda: "written to" in bench.status.hint)
    assert (tmp_path / "out.md").stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "out.md").read_text()
    assert "first" in text and "One." in text


def test_a_reply_that_goes_on_counts_on() -> None:
    reply = Reply(0.0)
    for step in [*think("a b"), *say("c d")]:
        reply.take(step, 1.0)
    reply.stop(2.0)
    assert reply.completion_tokens() == 2
    reply.resume(3.0)
    assert reply.running and reply.text == "c d"
    for step in say(" e"):
        reply.take(step, 4.0)
    assert (reply.text, reply.completion_tokens()) == ("c d e", 3)
