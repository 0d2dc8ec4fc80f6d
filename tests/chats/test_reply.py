"""An attempt of a model to answer: its states, durations and figures, and how it is kept."""

from __future__ import annotations

from fake_engine import finish, progress, say, think, usage

from localchat.chats.records import Node, Outcome
from localchat.chats.reply import Reply
from localchat.errors import EngineFailed
from localchat.protocol import Choice, Chunk, Delta, Message, Progress, Report


def take(reply: Reply, *steps: list, now: float = 0.0) -> None:
    for step in (step for part in steps for step in part):
        reply.take(step, now)


def test_a_reply_goes_through_its_states() -> None:
    reply = Reply(asked_at=10.0)
    assert (reply.state, reply.running) == ("waiting", True)
    take(reply, progress("loading", 0.4, 1.0))
    assert reply.state == "loading"
    take(reply, progress("reading", 512, 2000, cached_tokens=1200))
    assert (reply.state, reply.cached_tokens) == ("reading", 1200)
    take(reply, think("hm", by=1), now=12.0)
    assert reply.state == "thinking"
    assert reply.thinking_seconds(15.0) == 3.0
    take(reply, say("Hello."), now=20.0)
    assert (reply.state, reply.thinking_seconds(99.0)) == ("answering", 8.0)
    take(reply, finish(), usage(24, 12, speed=23.4), now=21.0)
    reply.finish(21.0)
    assert (reply.state, reply.running, reply.text, reply.reasoning) == ("done", False, "Hello.", "hm")
    assert (reply.tokens_per_second(99.0), reply.completion_tokens(), reply.context) == (23.4, 12, 4096)
    assert reply.message() == Message("assistant", "Hello.", "hm")


def test_what_the_cache_saved_is_worth_a_word_from_a_second_on() -> None:
    for saved_ms, worth in ((0.0, None), (999.0, None), (1000.0, 1.0), (31_400.0, 31.4)):
        reply = Reply(0.0)
        take(reply, say("ok"), usage(1519, 3, cached_tokens=1497, saved_ms=saved_ms))
        assert reply.saved_seconds == worth
    reply.resume(9.0)
    assert reply.saved_seconds is None


def test_what_need_not_be_read_is_known_while_the_rest_is_read() -> None:
    reply = Reply(0.0)
    reply.take(Chunk(localchat=Report(progress=Progress("reading", 1600, 1900, None, 1497))), 0.0)
    assert reply.cached_tokens == 1497


def test_speed_is_measured_where_the_engine_gives_none() -> None:
    reply = Reply(0.0)
    take(reply, say("a"), now=1.0)
    assert reply.tokens_per_second(1.1) is None
    take(reply, say("bcdefghijk", by=1), now=2.0)
    assert reply.tokens_per_second(2.0) == 10.0


def test_tokens_are_counted_as_the_engine_counts_them() -> None:
    reply = Reply(0.0)
    thought, answer = Delta(reasoning_content="hm hm"), Delta(content="Hello you.")
    for delta, made, now in ((thought, 3, 1.0), (thought, 8, 2.0), (answer, 14, 3.0)):
        reply.take(Chunk(choices=[Choice(delta=delta)], localchat=Report(completion_tokens=made)), now)
    assert (reply.reasoning_tokens, reply.text_tokens) == (8, 6)
    assert reply.tokens_per_second(3.0) == 5.5
    reply.stop(3.0)
    assert reply.completion_tokens() == 14


def test_a_reply_that_ended_stays_as_it_ended() -> None:
    reply = Reply(0.0)
    reply.stop(1.0)
    reply.fail(EngineFailed("too late"), 2.0)
    reply.prepare("late")
    assert reply.state == "stopped"


def test_what_is_kept_of_a_reply_shows_it_again() -> None:
    reply = Reply(asked_at=0.0)
    take(reply, progress("reading", 1, 2, cached_tokens=5), think("hm"), now=2.0)
    take(reply, say("Hello"), now=4.5)
    assert reply.kept_state() == "unfinished"
    saved = {"restored_from": "disk", "saved_ms": 1200.0, "drafted_tokens": 40, "accepted_tokens": 31}
    take(reply, finish("length"), usage(24, 12, speed=23.4, **saved), now=6.0)
    reply.finish(6.0)
    outcome = reply.outcome(7.0)
    assert {name: getattr(outcome, name) for name in saved} == saved
    assert (outcome.thinking_ms, outcome.finish_reason, outcome.cached_tokens) == (2500.0, "length", 5)
    again = Reply.of(Node(3, 2, reply.message(), reply.kept_state(), outcome=outcome))
    assert (again.node, again.state, again.text, again.reasoning) == (3, "done", "Hello", "hm")
    assert (again.usage, again.timings, again.context) == (reply.usage, reply.timings, reply.context)
    assert (again.thinking_seconds(99.0), again.tokens_per_second(99.0)) == (2.5, 23.4)
    assert again.outcome(99.0) == outcome
    assert again.message() == reply.message()


def test_a_kept_failure_tells_why() -> None:
    reply = Reply(0.0)
    reply.fail(EngineFailed("the engine died: ask again"), 1.0)
    again = Reply.of(Node(1, None, reply.message(), reply.kept_state(), outcome=reply.outcome(1.0)))
    assert again.error and again.error.message == "the engine died: ask again"
    assert (again.state, again.thinking_seconds(2.0)) == ("failed", None)


def test_what_nobody_writes_any_more_is_broken() -> None:
    assert Reply.of(Node(1, None, Message("assistant", "ha"), "unfinished")).state == "broken"
    assert Reply.of(Node(1, None, Message("assistant", "ha"), "broken", outcome=Outcome("m"))).model == "m"


def test_an_answer_that_goes_on_keeps_what_came() -> None:
    reply = Reply(0.0)
    take(reply, think("hm"), say("Hel"), now=1.0)
    reply.fail(EngineFailed("died"), 2.0)
    tokens = reply.completion_tokens()
    reply.resume(10.0)
    assert (reply.state, reply.running, reply.error, reply.text) == ("waiting", True, None, "Hel")
    reply.take(Chunk(choices=[Choice(delta=Delta(content="lo"))], localchat=Report(completion_tokens=4)), 11.0)
    assert (reply.text, reply.reasoning, reply.completion_tokens()) == ("Hello", "hm", tokens + 4)
    reply.finish(12.0)
    assert (reply.state, reply.outcome(12.0).error) == ("done", None)
