"""The chat, driven through its keys on a fake engine that speaks the real protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from fake_engine import MODEL, Die, Refuse, fail, finish, pause, progress, say, think, usage, wait
from textual import events
from textual.command import CommandList

from localchat.errors import FetchError
from localchat.protocol import Extras, Message, Sampling
from localchat.tui import clipboard
from localchat.tui.actions import ACTIONS
from localchat.tui.widgets.transcript import Transcript
from tests.tui.conftest import Bench

SIZE = (90, 30)


async def test_a_question_is_asked_and_answered(bench: Bench) -> None:
    bench.engine.script(say("The sky is **blue** because of the air.", by=4))
    options = {"system": "Be kind.", "sampling": Sampling(seed=3), "context": 2048, "stop": ["X"], "thinking": False}
    async with bench.app(**options).run_test(size=SIZE) as pilot:
        await pilot.press(*"why", "ctrl+j", *"so", "enter")
        await bench.answered(pilot)
        assert "The sky is blue because of the air." in bench.shown
        assert bench.composer.text == ""
        assert "23 tokens/s" in bench.shown
        assert "context 36 of 4,096" in bench.shown
    request = bench.engine.requests[0]
    assert request.messages == [Message("system", "Be kind."), Message("user", "why\nso")]
    assert (request.seed, request.stop) == (3, ["X"])
    assert request.localchat and request.localchat.began
    assert request.localchat == Extras(progress=True, context=2048, thinking=False, began=request.localchat.began)


async def test_the_next_request_carries_the_conversation(bench: Bench) -> None:
    bench.engine.script(think("hm"), say("One."))
    bench.engine.script(say("Two."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "first")
        await bench.answered(pilot)
        await bench.ask(pilot, "second")
        await bench.until(pilot, lambda: "Two." in bench.shown)
    contents = [message.content for message in bench.engine.requests[1].messages]
    assert contents == ["first", "One.", "second"]
    assert all(message.reasoning_content is None for message in bench.engine.requests[1].messages)


async def test_esc_stops_at_once_and_keeps_what_came(bench: Bench) -> None:
    bench.engine.script(say("A partial"), wait("never"), say(" answer"))
    bench.engine.script(say("Going on."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "A partial" in bench.shown)
        await pilot.press("escape")
        assert bench.replies[-1].state == "stopped"
        assert bench.status.state.startswith("stopped")
        assert bench.engine.closed_early.wait(60)
        await pilot.pause()
        assert "stopped" in bench.shown
        await bench.ask(pilot, "on")
        await bench.until(pilot, lambda: "Going on." in bench.shown)
    assert [message.content for message in bench.engine.requests[1].messages] == ["go", "A partial", "on"]


async def test_esc_stops_while_the_prompt_is_read(bench: Bench) -> None:
    bench.engine.script(progress("reading", 1, 9), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "reading 1 of 9" in bench.shown)
        await pilot.press("escape")
        await bench.until(pilot, lambda: "stopped (Ctrl R asks again)" in bench.shown)
        assert bench.engine.closed_early.wait(60)


async def test_every_state_is_told(bench: Bench) -> None:
    bench.engine.script(
        progress("queued", 0, 0), wait("a"),
        progress("loading", 43, 100), wait("b"),
        progress("reading", 512, 2000, 2300, cached_tokens=1200), wait("c"),
        think("one two"), wait("d"),
        say("abcdefghijk", by=1), wait("e"),
    )  # fmt: skip
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: bench.status.state == "waiting for its turn")
        bench.engine.go("a")
        await bench.until(pilot, lambda: bench.status.state == "loading the model, 43%")
        bench.engine.go("b")
        told = "reading 512 of 2,000 tokens, 26%, 3 s left, 1,200 from the cache"
        await bench.until(pilot, lambda: bench.status.state == told)
        bench.engine.go("c")
        await bench.until(pilot, lambda: bench.status.state.startswith("thinking 0 s"))
        bench.clock.now += 4
        await bench.until(pilot, lambda: bench.status.state.startswith("thinking 4 s"))
        bench.engine.go("d")
        await bench.until(pilot, lambda: bench.replies[-1].text_tokens == 11)
        bench.clock.now += 1
        await bench.until(pilot, lambda: bench.status.state == "answering 2.2 tokens/s")
        bench.engine.go("e")
        await bench.until(pilot, lambda: bench.status.state == "")
        assert "thought for 4 s, about 1 token" in bench.shown


async def test_thinking_is_folded_until_it_is_asked_for(bench: Bench) -> None:
    bench.engine.script(think("Let me see.\n\n- a thought", by=3), say("So."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.answered(pilot)
        assert "Let me see." not in bench.shown
        await pilot.press("ctrl+t")
        await bench.until(pilot, lambda: "Let me see." in bench.shown and "• a thought" in bench.shown)
        await pilot.press("ctrl+t")
        await bench.until(pilot, lambda: "Let me see." not in bench.shown)
        line = next(n for n, text in enumerate(bench.shown.split("\n")) if "thought for" in text)
        await pilot.click(offset=(6, line))
        await bench.until(pilot, lambda: "Let me see." in bench.shown)


async def test_a_message_waits_while_an_answer_comes_and_a_second_one_stays(bench: Bench) -> None:
    bench.engine.script(say("One"), wait("go"))
    bench.engine.script(say("Two"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "first")
        await bench.until(pilot, lambda: "One" in bench.shown)
        await bench.ask(pilot, "second")
        await bench.ask(pilot, "third")
        await bench.until(pilot, lambda: "one message is waiting already" in bench.shown)
        assert bench.composer.text == "third"
        bench.engine.go("go")
        await bench.until(pilot, lambda: "Two" in bench.shown)
        assert bench.composer.text == "third"
    assert [message.content for message in bench.engine.requests[1].messages] == ["first", "One", "second"]


async def test_a_waiting_message_comes_back_when_the_answer_is_stopped(bench: Bench) -> None:
    bench.engine.script(say("One"), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "first")
        await bench.until(pilot, lambda: "One" in bench.shown)
        await bench.ask(pilot, "second")
        await pilot.press(*"and")
        await pilot.press("escape")
        await bench.until(pilot, lambda: bench.composer.text == "second\nand")
    assert len(bench.engine.requests) == 1


async def test_what_is_typed_right_after_enter_belongs_to_the_next_message(bench: Bench) -> None:
    bench.engine.script(say("One"), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        for key in ("a", "ctrl+j", "b", "enter", "c"):
            bench.composer.post_message(events.Key(key, key if len(key) == 1 else None))
        await bench.until(pilot, lambda: bench.engine.requests and bench.composer.text == "c")
        assert bench.engine.requests[0].messages[-1].content == "a\nb"


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ([[Refuse(404, "model_not_found", "no model is called x: see `localchat models`")]], "no model is called x"),
        ([[Refuse(400, "context_length_exceeded", "the prompt has 9,000 tokens")]], "the prompt has 9,000 tokens"),
        ([say("Half"), fail("engine_failed", "the engine ran out of memory")], "the engine ran out of memory"),
        ([say("Half"), [Die()]], "the engine died in mid-answer"),
        ([[Die()]], "cannot reach"),
    ],
)
async def test_an_error_is_one_sentence_and_the_message_can_be_asked_again(
    bench: Bench, steps: list, sentence: str
) -> None:
    bench.engine.script(*steps, end=False)
    bench.engine.script(say("Better."))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: bench.status.state.startswith("failed"))
        assert sentence in bench.shown
        assert "Ctrl R" in bench.shown
        assert ("Half" in bench.shown) == (steps[0][0] == say("Half")[0])
        if "9,000" in sentence:
            await bench.until(pilot, lambda: "The context window is full" in bench.shown)
            await pilot.press("n")
        await pilot.press("ctrl+r")
        await bench.until(pilot, lambda: "Better." in bench.shown)
        await bench.answered(pilot)
        assert ("2 of 2" in bench.shown) == (steps[0][0] == say("Half")[0])
    assert [message.content for message in bench.engine.requests[-1].messages] == ["go"]


async def test_an_engine_that_is_killed_leaves_what_it_said(bench: Bench) -> None:
    bench.engine.script(say("Before the end"), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "Before the end" in bench.shown)
        bench.engine.die()
        await bench.until(pilot, lambda: bench.status.state.startswith("failed"))
        assert "Before the end" in bench.shown
        await bench.ask(pilot, "again")
        await bench.until(pilot, lambda: "cannot reach" in bench.shown)


async def test_a_long_text_scrolls_in_the_composer_and_leaves_room_for_the_page(bench: Bench) -> None:
    async with bench.app().run_test(size=SIZE) as pilot:
        bench.composer.type("\n".join(f"line {number}" for number in range(40)))
        await bench.until(pilot, lambda: "line 39" in bench.shown)
        assert "F1 keys" in bench.shown.splitlines()[-1]
        assert bench.screen.transcript.region.height > SIZE[1] // 2
        await pilot.press("alt+a", "backspace")
        await bench.until(pilot, lambda: bench.screen.transcript.region.height == SIZE[1] - 4)


async def test_a_new_chat_forgets_the_turns_and_keeps_the_draft(bench: Bench) -> None:
    bench.engine.script(say("Old words"), wait("never"))
    bench.engine.script(say("New words"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "first")
        await bench.until(pilot, lambda: "Old words" in bench.shown)
        await pilot.press(*"draft", "ctrl+n")
        await bench.until(pilot, lambda: "will answer" in bench.shown)
        assert "Old words" not in bench.shown
        assert bench.composer.text == "draft"
        await pilot.press("enter")
        await bench.until(pilot, lambda: "New words" in bench.shown)
    assert [message.content for message in bench.engine.requests[-1].messages] == ["draft"]


async def test_ctrl_c_stops_and_twice_quits(bench: Bench) -> None:
    bench.engine.script(say("Words"), wait("never"))
    app = bench.app()
    async with app.run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "Words" in bench.shown)
        await pilot.press("ctrl+c")
        assert bench.replies[-1].state == "stopped"
        await pilot.press("ctrl+c")
        await bench.until(pilot, lambda: "Ctrl C once more quits" in bench.shown)
        assert app.is_running
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert not app.is_running or app._exit
    assert app.return_code == 0


async def test_leaving_in_mid_answer_stops_the_engine(bench: Bench) -> None:
    bench.engine.script(say("Words"), wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "Words" in bench.shown)
        await pilot.press("ctrl+q")
    assert bench.engine.closed_early.wait(60)


async def test_the_model_is_fetched_before_the_first_question(bench: Bench) -> None:
    none = Refuse(404, "model_not_found", "no model is here")
    for steps in ([none], [none], say("Ready.")):
        bench.engine.script(steps)
    calls: list[str] = []
    go = threading.Event()

    def prepare(model: str, tell: Callable[[str], None]) -> None:
        calls.append(model)
        tell("fetching smollm2-135m, 12 of 98 MB")
        go.wait(60)
        if len(calls) == 1:
            raise FetchError("no source answers: bring the file over by hand")

    async with bench.app(model="fake-1b", prepare=prepare).run_test(size=SIZE) as pilot:
        assert calls == []
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: "fetching smollm2-135m, 12 of 98 MB" in bench.shown)
        go.set()
        await bench.until(pilot, lambda: "no source answers" in bench.shown)
        assert bench.composer.text == "my words"
        await pilot.press("enter")
        await bench.until(pilot, lambda: "Ready." in bench.shown)
        await bench.answered(pilot)
        await bench.ask(pilot, "next")
        await bench.until(pilot, lambda: len(bench.engine.requests) == 4)
    assert calls == ["fake-1b", "fake-1b"]
    wary = [request.localchat and request.localchat.verified_only for request in bench.engine.requests]
    assert wary == [True, True, False, True]


async def test_esc_breaks_the_fetching_off(bench: Bench) -> None:
    bench.engine.script([Refuse(404, "model_not_found", "no model is here")])
    ended = threading.Event()

    def prepare(model: str, tell: Callable[[str], None]) -> None:
        try:
            for _ in range(40_000):
                tell("fetching")
                threading.Event().wait(0.005)
        finally:
            ended.set()

    async with bench.app(prepare=prepare).run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "my words")
        await bench.until(pilot, lambda: bench.status.state == "fetching")
        await pilot.press("escape")
        assert bench.composer.text == "my words"
        assert ended.wait(60)
    assert len(bench.engine.requests) == 1


async def test_scrolling_away_is_respected_and_the_end_holds_again(bench: Bench) -> None:
    lines = [step for n in range(60) for step in say(f"{n}. line {n}\n")]
    bench.engine.script(lines[:40], wait("a"), lines[40:50], wait("b"), lines[50:])
    async with bench.app().run_test(size=SIZE) as pilot:
        transcript = bench.screen.query_one(Transcript)
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "39. line 39" in bench.shown)
        assert transcript.is_vertical_scroll_end
        await pilot.press("pageup")
        await bench.until(pilot, lambda: not transcript.is_vertical_scroll_end)
        place = transcript.scroll_y
        bench.engine.go("a")
        await bench.until(pilot, lambda: "line 49" in bench.replies[-1].text)
        await pilot.pause()
        assert transcript.scroll_y == place
        await pilot.press("ctrl+end")
        await bench.until(pilot, lambda: "49. line 49" in bench.shown)
        # Scrolling down at the very end must not let go of it.
        await pilot.press("pagedown", "alt+down")
        bench.engine.go("b")
        await bench.until(pilot, lambda: "59. line 59" in bench.shown)


async def test_the_model_that_answers_is_named(bench: Bench) -> None:
    bench.engine.script(finish(), usage())
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: f"{MODEL} will answer" in bench.shown)
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "the model gave no answer" in bench.shown)


async def test_an_answer_that_was_cut_off_says_so(bench: Bench) -> None:
    bench.engine.script(say("Words"), finish("length"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "the limit of tokens was reached" in bench.shown)


async def test_late_addresses_are_resolved_at_the_end(bench: Bench) -> None:
    bench.engine.script(say("See [the notes][1].\n\n"), wait("a"), say("[1]: https://example.org/notes\n"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.until(pilot, lambda: "See [the notes][1]." in bench.shown)
        bench.engine.go("a")
        await bench.until(pilot, lambda: "See the notes (https://example.org/notes)." in bench.shown)


async def test_the_palette_knows_every_action_and_does_it(bench: Bench) -> None:
    app = bench.app()
    async with app.run_test(size=(90, 40)) as pilot:
        titles = [command.title for command in app.get_system_commands(bench.screen)]
        assert titles == [action.label for action in ACTIONS if action.method and action.name != "palette"]
        await pilot.press("ctrl+p", *"show or fold the model")
        await bench.until(pilot, lambda: bench.current.screen.query(CommandList).only_one().option_count == 1)
        await pilot.press("enter")
        await bench.until(pilot, lambda: bench.screen.query_one(Transcript).thinking_open)


async def test_a_mouse_selects_and_ctrl_c_copies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def copy(text: str, app: object) -> str:
        copied.append(text)
        return "copied somehow"

    monkeypatch.setattr(clipboard, "copy", copy)
    bench.engine.script(say("Copy these words."))
    app = bench.app()
    async with app.run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await bench.answered(pilot)
        line = next(n for n, text in enumerate(bench.shown.split("\n")) if "Copy these" in text)
        await pilot.mouse_down(offset=(9, line))
        await pilot.hover(offset=(13, line))
        await pilot.mouse_up(offset=(13, line))
        await pilot.press("ctrl+c")
        await bench.until(pilot, lambda: copied == ["these"])
        await bench.until(pilot, lambda: "the selection: copied somehow" in bench.shown)


async def test_no_colour_where_none_is_wanted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = bench.app()
    async with app.run_test(size=SIZE) as pilot:
        await bench.until(pilot, lambda: "will answer" in bench.shown)
        assert "#d9a05b" not in app.export_screenshot()


async def test_a_slow_answer_does_not_hold_the_keys(bench: Bench) -> None:
    bench.engine.script(*[say(f"word {n} ") + pause(0.002) for n in range(50)], wait("never"))
    async with bench.app().run_test(size=SIZE) as pilot:
        await bench.ask(pilot, "go")
        await pilot.press(*"typing meanwhile".replace(" ", "_"))
        assert bench.composer.text == "typing_meanwhile"


async def test_the_bar_shows_where_the_page_stands_that_was_too_long_at_once(bench: Bench) -> None:
    bench.engine.script(say("A paragraph.\n\n" * 60, by=5000))
    async with bench.app().run_test(size=(60, 20)) as pilot:
        await bench.until(pilot, lambda: "will answer" in bench.shown)
        await bench.ask(pilot, "all at once")
        await bench.answered(pilot)
        page = bench.screen.transcript
        assert page.scroll_y == page.max_scroll_y > 0
        assert page.vertical_scrollbar.position == page.scroll_y
