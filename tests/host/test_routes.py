"""What localchat's own client asks of a host beyond chatting, and what it is told beyond the standard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localchat import protocol
from localchat.client.connect import connect_if_running
from localchat.client.local import LocalEngine
from localchat.errors import NeedsVerification, UsageError
from tests.conftest import run_cli, start_cli, status_of, wait_for
from tests.tiny_models import LETTERS, write_model


@pytest.fixture
def model(empty_home: Path, tmp_path: Path) -> str:
    return str(write_model(tmp_path / "tiny.gguf", speaks=LETTERS))


def question(model: str, extras: protocol.Extras | None) -> protocol.ChatRequest:
    messages = [protocol.Message("user", "hi")]
    return protocol.ChatRequest(messages=messages, model=model, stream=True, max_tokens=200, localchat=extras)


def post(path: str) -> int:
    connection = connect_if_running()
    assert connection
    connection.request("POST", path, body=b"{}", headers={"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_model_is_loaded_asked_for_tokens_and_unloaded(model: str) -> None:
    engine = LocalEngine()
    loaded = engine.load(model, context=512).model
    assert loaded and loaded.path == model and loaded.context >= 512
    tokens = engine.tokenize("hi you", model)
    assert tokens and tokens[0] == engine.tokenize("hi", model)[0]
    assert post(protocol.UNLOAD_PATH) == 200
    status = wait_for(lambda: (now := engine.status()) and not now.model and now)
    assert status.version


@pytest.mark.parametrize("extras", [None, protocol.Extras(progress=True)])
def test_tokens_are_told_on_the_way_to_whoever_speaks_localchat(model: str, extras: protocol.Extras | None) -> None:
    chunks = [chunk for chunk in LocalEngine().chat(question(model, extras)) if chunk.choices]
    told = [chunk.localchat and chunk.localchat.completion_tokens for chunk in chunks[:-1]]
    if extras:
        assert told == sorted(told) and told[-1] in (199, 200)  # type: ignore[type-var]
        assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 200
    else:
        assert not any(told)


def carried(home: Path) -> Path:
    folder = home / "models" / "me" / "mine"
    folder.mkdir(parents=True)
    return write_model(folder / "mine.gguf", speaks=LETTERS)


def test_a_file_to_be_verified_is_refused_to_those_who_want_to_do_that_themselves(empty_home: Path) -> None:
    record = carried(empty_home).with_name("mine.gguf.json")
    with pytest.raises(NeedsVerification, match="me/mine"):
        LocalEngine().chat(question("me/mine", protocol.Extras(verified_only=True)))
    with pytest.raises(NeedsVerification, match="me/mine"):
        LocalEngine().load("me/mine", verified_only=True)
    with pytest.raises(NeedsVerification, match="me/mine"):
        LocalEngine().tokenize("hi", "me/mine", verified_only=True)
    assert not record.exists()
    assert list(LocalEngine().chat(question("me/mine", None)))
    assert record.exists()
    assert list(LocalEngine().chat(question("me/mine", protocol.Extras(verified_only=True))))


def test_a_host_listens_before_it_verifies_anything(empty_home: Path) -> None:
    record = carried(empty_home).with_name("mine.gguf.json")
    serving = start_cli("serve", "-m", "me/mine", home=empty_home)
    status = wait_for(lambda: status_of(empty_home))
    assert "model" not in status and not record.exists()
    assert json.loads(run_cli("status", "--json", home=empty_home).stdout)["pid"] == serving.pid
    serving.terminate()
    serving.communicate(timeout=60)


def test_a_catalogue_that_is_edited_is_seen_by_a_running_host(empty_home: Path) -> None:
    carried(empty_home)
    list(LocalEngine().chat(question("me/mine", None)))
    (empty_home / "models.toml").write_text(
        '[[model]]\nname = "pet"\nfamily = "Pets"\nparameters = 1\nlicense = "MIT"\nabilities = ["chat"]\n'
        '[[model.quantization]]\nname = "f32"\nfile = "mine.gguf"\n'
        '[[model.quantization.source]]\nkind = "hub"\nrepo = "me/mine"\nrevision = "main"\nfile = "mine.gguf"\n'
    )
    list(LocalEngine().chat(question("pet", None)))


def test_an_answer_that_broke_off_is_continued_where_it_ended(model: str) -> None:
    def said(*messages: protocol.Message, tokens: int, go_on: bool = False) -> str:
        extras = protocol.Extras(continue_final=go_on)
        request = protocol.ChatRequest(
            messages=list(messages), model=model, stream=True, max_tokens=tokens, temperature=0, localchat=extras
        )
        chunks = LocalEngine().chat(request)
        return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

    hi = protocol.Message("user", "hi")
    whole = said(hi, tokens=40)
    assert len(whole) == 40
    begun = protocol.Message("assistant", whole[:15])
    assert said(hi, begun, tokens=25, go_on=True) == whole[15:]
    with pytest.raises(UsageError, match="end with a question"):
        said(hi, begun, tokens=5)
    with pytest.raises(UsageError, match="end with an answer to go on with"):
        said(hi, tokens=5, go_on=True)
