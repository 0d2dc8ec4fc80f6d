"""At bad moments too, what a person wrote is in the chat, in the composer or in the draft on disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from fake_engine import Refuse, fail, say, wait
from textual.pilot import Pilot

from localchat.chats.records import Outcome
from localchat.chats.store import Chats
from localchat.errors import ChatsLocked
from localchat.tui.screens.chat import ChatScreen
from tests.tui.conftest import Bench
from tests.tui.test_steering import SIZE, asked, kept, on_disk, sent, words


def drafts() -> list[str]:
    """Every draft on disk: that of the chat that has not begun, then those of the chats."""
    return on_disk(lambda chats: [chats.draft(None).text, *(chats.draft(chat.id).text for chat in chats.chats("chat"))])


def hold_the_disk(bench: Bench) -> threading.Event:
    """Have the keeper busy until the event is set, as on a slow disk."""
    release = threading.Event()
    bench.current.keeper.call(lambda chats: release.wait(60))
    return release


async def half_answered(bench: Bench, pilot: Pilot[None], text: str = "first") -> None:
    await bench.ask(pilot, text)
    await bench.until(pilot, lambda: bench.replies and bench.replies[-1].text == "Half")


async def queued(bench: Bench, pilot: Pilot[None], text: str) -> None:
    await bench.ask(pilot, text)
    await bench.until(pilot, lambda: bench.screen.session.waiting)


async def test_quitting_while_a_model_is_fetched(bench: Bench) -> None:
    gone = threading.Event()

    def prepare(model: str, tell: Callable[[str], None]) -> None:
        while not gone.wait(0.01):
            tell("fetching, 3%")

    bench.engine.script([Refuse(404, "model_not_found", "no model is here")])
    async with bench.app(prepare=prepare).run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: bench.replies and bench.replies[-1].state == "preparing")
    gone.set()
    assert words(kept())[:1] == ["my words"]


async def test_quitting_while_a_message_waits(bench: Bench) -> None:
    bench.engine.script(say("Half"), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await half_answered(bench, pilot)
        await queued(bench, pilot, "my words")
        await pilot.press(*"more")
        await bench.until(pilot, lambda: "my words\nmore" in drafts())
    assert drafts() == ["", "my words\nmore"]
    bench.engine.script(say("Whole."))
    async with bench.app(chat=1).run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: bench.composer.text == "my words\nmore")


async def test_a_message_that_waits_in_a_chat_behind_and_cannot_go_out(bench: Bench) -> None:
    bench.engine.script(say("Half"), wait("go"), fail("engine_failed", "it broke"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await half_answered(bench, pilot)
        await queued(bench, pilot, "my words")
        await pilot.press("ctrl+n")
        await bench.until(pilot, lambda: "Half" not in bench.shown)
        bench.engine.go("go")
        await bench.until(pilot, lambda: kept()[-1].state == "failed")
        await bench.until(pilot, lambda: drafts() == ["", "my words"])
        await pilot.press("ctrl+l")
        await bench.until(pilot, lambda: bench.composer.text == "my words")


async def test_a_message_that_waits_in_a_chat_behind_goes_out(bench: Bench) -> None:
    bench.engine.script(say("Half"), wait("go"))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await half_answered(bench, pilot)
        await queued(bench, pilot, "my words")
        await pilot.press("ctrl+n")
        await bench.until(pilot, lambda: "Half" not in bench.shown)
        bench.engine.go("go")
        await bench.until(pilot, lambda: words(kept()) == ["first", "Half", "my words", "Two."])
        await bench.until(pilot, lambda: drafts() == ["", ""])


async def test_quitting_before_the_disk_has_the_message(bench: Bench) -> None:
    bench.engine.script(say("Half"), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        release = hold_the_disk(bench)
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: "my words" in bench.shown)
        threading.Timer(0.2, release.set).start()
    assert words(kept())[:1] == ["my words"] or "my words" in drafts()


async def test_asking_again_twice_at_once_asks_once(bench: Bench) -> None:
    bench.engine.script(say("One."))
    bench.engine.script(say("Two."), wait("go"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        release = hold_the_disk(bench)
        await pilot.press("ctrl+r", "ctrl+r")
        release.set()
        await bench.until(pilot, lambda: "Two." in bench.shown)
        bench.engine.go("go")
        await bench.until(pilot, lambda: not bench.screen.session.busy)
        assert "2 of 2" in bench.shown
    assert len(bench.engine.requests) == 2
    assert words(kept()) == ["first", "Two."]


async def test_asking_again_and_leaving_at_once(bench: Bench) -> None:
    bench.engine.script(say("One."))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        release = hold_the_disk(bench)
        await pilot.press("ctrl+r", "ctrl+n")
        release.set()
        await bench.until(pilot, lambda: words(kept()) == ["first", "Two."])


async def test_what_is_typed_while_a_draft_is_read(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await pilot.press(*"old", "ctrl+n")
        await bench.until(pilot, lambda: drafts() == ["old", ""])
        await pilot.press("ctrl+l")
        await bench.until(pilot, lambda: "One." in bench.shown and bench.composer.text == "")
        release = hold_the_disk(bench)
        await pilot.press("ctrl+n", *"new")
        release.set()
        await bench.until(pilot, lambda: bench.composer.text == "old\nnew")


async def test_a_new_chat_while_an_earlier_message_is_edited(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await pilot.press(*"draft", "f2")
        await bench.until(pilot, lambda: bench.composer.text == "first")
        await pilot.press(*" changed", "ctrl+n")
        await bench.until(pilot, lambda: "will answer" in bench.shown and bench.composer.text == "")
        await bench.until(pilot, lambda: drafts() == ["", "first changed\ndraft"])


async def test_the_draft_stays_when_the_message_before_it_goes_out(bench: Bench) -> None:
    bench.engine.script(say("Half"), wait("go"))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await half_answered(bench, pilot)
        await queued(bench, pilot, "second")
        await pilot.press(*"next")
        await bench.until(pilot, lambda: drafts() == ["", "second\nnext"])
        bench.engine.go("go")
        await bench.until(pilot, lambda: "Two." in bench.shown)
        await bench.until(pilot, lambda: drafts() == ["", "next"])
        assert bench.composer.text == "next"
    assert sent(bench) == ["first", "Half", "second"]


async def test_what_was_written_after_a_message_that_waits_in_a_chat_behind(bench: Bench) -> None:
    bench.engine.script(say("Half"), wait("go"))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await half_answered(bench, pilot)
        await queued(bench, pilot, "second")
        await pilot.press(*"next", "ctrl+n")
        await bench.until(pilot, lambda: "Half" not in bench.shown)
        bench.engine.go("go")
        await bench.until(pilot, lambda: words(kept()) == ["first", "Half", "second", "Two."])
        assert drafts() == ["", "next"]
        await pilot.press("ctrl+l")
        await bench.until(pilot, lambda: bench.composer.text == "next")


async def test_a_draft_that_comes_along_joins_the_one_that_was_there(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await pilot.press(*"old", "ctrl+n")
        await bench.until(pilot, lambda: drafts() == ["old", ""])
        await pilot.press("ctrl+l", *"more", "ctrl+n")
        await bench.until(pilot, lambda: bench.composer.text == "old\nmore")
        await bench.until(pilot, lambda: drafts() == ["old\nmore", ""])


async def test_a_draft_that_could_not_be_kept_is_told_and_kept_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Chats.keep_draft

    def refuse(*_: object) -> None:
        raise ChatsLocked("another program holds the chats: wait until it is done")

    async with bench.app().run_test(size=SIZE) as pilot:
        monkeypatch.setattr(Chats, "keep_draft", refuse)
        await pilot.press(*"words")
        await bench.until(pilot, lambda: "another program holds the chats" in bench.shown)
        monkeypatch.setattr(Chats, "keep_draft", keep)
    assert drafts() == ["words"]


async def test_an_edited_message_that_cannot_be_kept_leaves_the_page_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.engine.script(say("One."))
    bench.engine.script(say("Two."))

    def refuse(*_: object, **__: object) -> None:
        raise ChatsLocked("another program holds the chats: wait until it is done")

    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await asked(bench, pilot, "second")
        await pilot.press("tab", "home", "e")
        await bench.until(pilot, lambda: bench.composer.text == "first")
        ask = Chats.ask
        monkeypatch.setattr(Chats, "ask", refuse)
        await pilot.press(*" changed", "enter")
        await bench.until(pilot, lambda: "not sent: another program" in bench.shown)
        assert bench.composer.text == "first changed"
        assert "Two." in bench.shown
        # It is still an edit, and can be kept the next time.
        monkeypatch.setattr(Chats, "ask", ask)
        await pilot.press("enter")
        await bench.until(pilot, lambda: len(bench.engine.requests) == 3)
        assert sent(bench) == ["first changed"]
        await bench.answered(pilot)
    assert words(kept()) == ["first changed", "Two."]


async def test_an_answer_that_another_window_writes_is_not_gone_on_with(bench: Bench) -> None:
    bench.engine.script(say("Two."))
    other = Chats()
    chat = other.create(bench.settings(model="fake-1b"))
    _, answer = other.ask(chat, None, bench.message("first"))
    other.save(answer, bench.message("Half", "assistant"), "unfinished", Outcome())
    async with bench.app(chat=chat).run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: "another window is still writing this answer" in bench.shown)
        await pilot.press("ctrl+o")
        await bench.until(pilot, lambda: "open the chat again when it is done" in bench.shown)
        await pilot.press("ctrl+r")
        await bench.until(pilot, lambda: "Two." in bench.shown)
        await bench.answered(pilot)
    other.save(answer, bench.message("Half and all", "assistant"), "done", Outcome())
    other.close()
    assert sorted(words(list(on_disk(lambda chats: chats.tree(chat)).nodes.values()))) == [
        "Half and all",
        "Two.",
        "first",
    ]


async def test_leaving_waits_for_no_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    held, begun = threading.Event(), threading.Event()

    def count() -> None:
        begun.set()
        held.wait(60)

    async def tokens(self: ChatScreen, text: str) -> None:
        await asyncio.to_thread(count)

    monkeypatch.setattr(ChatScreen, "_tokens", tokens)
    async with bench.app().run_test(size=SIZE) as pilot:
        bench.composer.text = "long " * 200
        await bench.until(pilot, begun.is_set)
    assert not held.is_set()
    await asyncio.get_running_loop().shutdown_default_executor()
    held.set()


async def test_a_title_given_before_the_first_message(bench: Bench) -> None:
    bench.engine.script(say("One."))
    async with bench.app().run_test(size=SIZE) as pilot:
        bench.composer.text = "/title Of ships"
        await pilot.press("escape", "enter")
        await asked(bench, pilot, "first")
    assert on_disk(lambda chats: chats.chats("chat"))[0].title == "Of ships"


async def test_a_summary_that_fails_says_why(bench: Bench) -> None:
    bench.engine.script(say("One."))
    bench.engine.script(say("Two."))
    bench.engine.script([Refuse(500, "engine_failed", "the engine broke: ask again")])
    async with bench.app().run_test(size=SIZE) as pilot:
        await asked(bench, pilot, "first")
        await asked(bench, pilot, "second")
        bench.composer.text = "/summarise"
        await pilot.press("escape", "enter")
        await bench.until(pilot, lambda: "no summary: the engine broke" in bench.shown)


async def test_leaving_at_once(bench: Bench) -> None:
    app = bench.app()
    app.call_later(app.exit)
    async with app.run_test(size=SIZE):
        pass
    assert app.return_code == 0
