"""The conversation by itself: states, durations, what is sent next."""

from __future__ import annotations

from fake_engine import finish, progress, say, think, usage

from localchat.errors import EngineFailed
from localchat.protocol import Choice, Chunk, Delta, Extras, Message, Report, Sampling, StreamOptions
from localchat.chats.reply import Reply
from localchat.tui.conversation import Conversation


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


def test_what_is_sent() -> None:
    conversation = Conversation(
        "m", "Be brief.", Sampling(temperature=0.5), max_tokens=9, context=2048, stop=["X"], thinking=False
    )
    take(conversation.ask("one", 0.0).reply, think("hm"), say("first"))
    conversation.turns[-1].reply.stop(1.0)
    conversation.ask("never answered", 2.0).reply.fail(EngineFailed("died"), 3.0)
    conversation.ask("two", 4.0)
    request = conversation.request()
    assert request.messages == [
        Message("system", "Be brief."),
        Message("user", "one"),
        Message("assistant", "first"),
        Message("user", "two"),
    ]
    assert (request.model, request.temperature, request.max_tokens, request.stream) == ("m", 0.5, 9, True)
    assert request.localchat == Extras(progress=True, context=2048, thinking=False)
    assert request.stop == ["X"]
    assert request.stream_options == StreamOptions(include_usage=True)


def test_another_attempt_keeps_the_ones_before() -> None:
    conversation = Conversation()
    assert not conversation.can_retry()
    take(conversation.ask("q", 0.0).reply, say("half"))
    assert not conversation.can_retry()
    conversation.turns[-1].reply.stop(1.0)
    assert conversation.can_retry()
    turn = conversation.retry(2.0)
    assert [attempt.text for attempt in turn.attempts] == ["half", ""]
    assert conversation.request().messages == [Message("user", "q")]


def test_a_new_conversation_keeps_the_settings_only() -> None:
    conversation = Conversation("m", "s", Sampling(top_k=3), 5, 6, ["X"], True)
    conversation.ask("q", 0.0)
    assert conversation.empty_copy() == Conversation("m", "s", Sampling(top_k=3), 5, 6, ["X"], True)
