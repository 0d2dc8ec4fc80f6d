"""`--engine URL` against a real server of another maker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_cli
from tests.peer_server import MISSING, running_peer
from tests.tiny_models import LETTERS, write_model

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the server of llama-cpp-python needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = write_model(tmp_path_factory.mktemp("peer") / "tiny.gguf", speaks=LETTERS)
    with running_peer(model) as url:
        yield url


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_foreign_server_answers_at_every_form_of_its_url(peer: str, tmp_path: Path, end: str) -> None:
    done = run_cli("ask", "--engine", peer + end, "--max-tokens", "6", "hi", home=tmp_path)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.strip().isalpha()


def test_its_figures_are_reported_as_far_as_it_tells_them(peer: str, tmp_path: Path) -> None:
    options = ("--max-tokens", "6", "--temperature", "0", "--seed", "1", "-o", "top_k", "40", "-s", "be brief")
    done = run_cli("ask", "--engine", peer, *options, "--json", "hi", home=tmp_path)
    assert (done.stderr, done.returncode) == ("", 0)
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["finish_reason"], answer["seed"]) == ("peer", "length", None)
    assert len(answer["text"]) >= 6
    assert answer["timings"]["total_ms"] > 0 and answer["timings"]["first_token_ms"] > 0
    assert run_cli("ask", "--engine", peer, *options, "--stats", "hi", home=tmp_path).stderr.startswith(
        "localchat: peer"
    )


def test_its_refusal_is_one_sentence(peer: str, tmp_path: Path) -> None:
    done = run_cli("ask", "--engine", peer, home=tmp_path, input="x" * 2000)
    assert done.stdout == "" and done.returncode in (6, 7)
    assert done.stderr.startswith("localchat: ") and done.stderr.count("\n") == 1


def test_no_host_of_our_own_is_started(peer: str, tmp_path: Path) -> None:
    run_cli("ask", "--engine", peer, "--max-tokens", "2", "hi", home=tmp_path / "home")
    # What was asked is kept, and nothing else was made.
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["chats"]
