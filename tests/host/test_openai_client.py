"""The host as an OpenAI-compatible server, asked by OpenAI's own client over TCP."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.conftest import STARTER, status_of, wait_for
from tests.host.conftest import Server
from tests.tiny_models import LETTERS, write_model


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=server.token, max_retries=0, timeout=60)


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (STARTER, "model", "localchat")


def test_a_whole_answer(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=STARTER, messages=QUESTION, max_tokens=8, temperature=0)
    (choice,) = done.choices
    assert (done.object, done.model) == ("chat.completion", STARTER)
    assert done.id.startswith("chatcmpl-") and done.created > 1_700_000_000
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content
    assert done.usage and done.usage.completion_tokens == 8
    assert done.usage.total_tokens == done.usage.prompt_tokens + 8
    assert not done.model_extra, "a foreign client gets nothing that it did not ask for"


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    options = {"model": STARTER, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.content
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.role] == ["assistant"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert not any(chunk.usage for chunk in chunks), "usage was not asked for"


def test_usage_comes_in_a_chunk_of_its_own(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=STARTER, messages=QUESTION, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert all(chunk.choices for chunk in chunks[:-1])


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    def answer(seed: int) -> str | None:
        done = client.chat.completions.create(
            model=STARTER, messages=QUESTION, max_tokens=12, temperature=1.5, seed=seed
        )
        return done.choices[0].message.content

    assert answer(0) == answer(0) != answer(1)


def test_stop_strings_end_the_answer(client: openai.OpenAI) -> None:
    options = {"model": STARTER, "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.content
    assert whole
    word = whole.split()[3]
    for stop in (word, ["never said", word]):
        done = client.chat.completions.create(**options, stop=stop).choices[0]
        assert (done.finish_reason, done.message.content) == ("stop", whole.partition(word)[0])


def test_the_newer_name_of_the_token_limit(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=STARTER, messages=QUESTION, max_completion_tokens=3)
    assert done.usage and done.usage.completion_tokens == 3


def test_system_messages_and_lists_of_parts(client: openai.OpenAI) -> None:
    def prompt_tokens(*messages: dict[str, object]) -> int:
        done = client.chat.completions.create(model=STARTER, messages=messages, max_tokens=1)  # type: ignore[arg-type]
        assert done.usage
        return done.usage.prompt_tokens

    plain = prompt_tokens({"role": "user", "content": "one two"})
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert prompt_tokens({"role": "user", "content": parts}) == plain
    user = {"role": "user", "content": "one two"}
    longer = prompt_tokens({"role": "system", "content": "Be brief. " * 20}, user)
    assert longer > plain + 20
    assert prompt_tokens({"role": "developer", "content": "Be brief. " * 20}, user) == longer


def test_a_conversation_that_goes_on_is_not_read_again(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me of the red fox. " * 10}]
    first = client.chat.completions.create(model=STARTER, messages=messages, max_tokens=8, temperature=0)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "More."},
    ]
    second = client.chat.completions.create(model=STARTER, messages=messages, max_tokens=4, temperature=0)
    assert second.usage and second.usage.prompt_tokens_details and first.usage
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens


def test_errors_are_the_clients_own_kinds(client: openai.OpenAI, server: Server) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        create(model="no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="'n'"):
        create(model=STARTER, messages=QUESTION, n=2)
    with pytest.raises(openai.BadRequestError, match="'tools'"):
        create(
            model=STARTER,
            messages=QUESTION,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        )
    with pytest.raises(openai.BadRequestError, match="'response_format'"):
        create(model=STARTER, messages=QUESTION, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="no messages"):
        create(model=STARTER, messages=[])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        create(model=STARTER, messages=QUESTION, temperature=-1)
    with pytest.raises(openai.BadRequestError) as exceeded:
        create(model=STARTER, messages=[{"role": "user", "content": "fox " * 9000}])
    assert exceeded.value.code == "context_length_exceeded"
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError):
        create(model=STARTER, messages=[{"role": "user", "content": image}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url, api_key="wrong", max_retries=0).models.list()


def test_n_of_one_and_fields_of_hosted_services_are_fine(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=STARTER,
        messages=QUESTION,
        n=1,
        max_tokens=1,
        user="me",
        store=False,
        service_tier="auto",
        logprobs=False,
        parallel_tool_calls=True,
        response_format={"type": "text"},
    )
    assert done.choices


def test_leaving_in_mid_answer_frees_the_engine(client: openai.OpenAI, server: Server, tmp_path: Path) -> None:
    endless = write_model(tmp_path / "endless.gguf", speaks=LETTERS, context=1 << 16, layers=4, width=256)
    stream = client.chat.completions.create(model=str(endless), messages=QUESTION, stream=True)
    next(iter(stream))
    before = status_of(server.home)
    assert before and before["active"] == 1
    stream.close()
    after = wait_for(lambda: (status := status_of(server.home)) and not status.get("active") and status, seconds=60)
    assert after.get("answered") == before.get("answered"), "it was not answered to its end"


async def test_the_asynchronous_client_too(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.token, max_retries=0) as client:
        stream = await client.chat.completions.create(model=STARTER, messages=QUESTION, stream=True, max_tokens=4)
        assert [chunk async for chunk in stream]
