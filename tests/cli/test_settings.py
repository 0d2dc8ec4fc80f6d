"""The person's settings: part of every question, and in force with the next one after they were edited."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localchat.chats.records import ChatSettings
from localchat.cli import chat
from localchat.cli.options import ModelOptions, wishes
from localchat.engine.sampling import DEFAULTS
from localchat.protocol import Extras, Message, Sampling
from localchat.settings import Settings, load
from localchat.tui.actions import ACTIONS
from tests.conftest import forget_home, run_cli, status_of, stop_host
from tests.fake_engine import FakeEngine, say
from tests.tiny_models import LETTERS, write_model


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    stop_host(folder)


SETTINGS = 'model = "m"\nsystem = "Be brief."\ncontext = 2048\n[options]\ntemperature = 0.5\ntop_k = 7\n'


@pytest.mark.parametrize("command", [(), ("-m", "n", "-s", "", "-o", "top_k", "3", "-o", "context", "512")])
def test_settings_go_with_a_question_and_the_command_line_wins(home: Path, command: tuple[str, ...]) -> None:
    (home / "settings.toml").write_text(SETTINGS)
    with FakeEngine() as engine:
        engine.script(say("ok"))
        assert run_cli("ask", "--engine", engine.url, *command, "hi", home=home).returncode == 0
    request = engine.requests[0]
    typed = bool(command)
    assert (request.model, request.temperature, request.top_k) == ("n" if typed else "m", 0.5, 3 if typed else 7)
    assert request.messages == [*([] if typed else [Message("system", "Be brief.")]), Message("user", "hi")]
    assert request.localchat == Extras(progress=True, context=512 if typed else 2048)


def test_what_the_person_did_not_set_is_not_sent(home: Path) -> None:
    with FakeEngine() as engine:
        engine.script(say("ok"))
        run_cli("ask", "--engine", engine.url, "hi", home=home)
    assert (engine.requests[0].sampling(), engine.requests[0].localchat) == (Sampling(), Extras(progress=True))


def test_edited_settings_count_with_the_next_question(home: Path) -> None:
    for name in ("one", "two"):
        write_model(home / f"{name}.gguf", speaks=LETTERS)
    hosts = set()
    for name, seed in (("one", 11), ("two", 22)):
        (home / "settings.toml").write_text(f'model = "{name}.gguf"\n[options]\nseed = {seed}\n')
        done = run_cli("ask", "--json", "--max-tokens", "3", "hi", home=home)
        answer = json.loads(done.stdout)
        assert (answer["model"], answer["seed"]) == (str(home / f"{name}.gguf"), seed)
        hosts.add(status_of(home)["pid"])  # type: ignore[index]
    assert len(hosts) == 1


def test_a_path_in_the_settings_is_meant_from_their_folder(empty_home: Path, tmp_path: Path) -> None:
    empty_home.mkdir()
    (empty_home / "settings.toml").write_text('model = "./models/x.gguf"\n')
    forget_home()
    assert wishes("", None, ()).model == str(empty_home / "models" / "x.gguf")
    assert wishes("./y.gguf", None, ()).model == str(Path.cwd() / "y.gguf")
    assert wishes("a-name", None, ()).model == "a-name"


def test_the_chat_gets_every_option(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[ChatSettings] = []
    monkeypatch.setattr("localchat.tui.app.run", lambda engine, wanted, **options: got.append(wanted))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    pairs = (("stop", "X"), ("thinking", "false"), ("max_tokens", "9"), ("context", "512"), ("seed", "3"))
    chat.open_chat(wishes("m", "s", pairs), "http://127.0.0.1:9")
    assert got == [ChatSettings("m", "s", Sampling(seed=3), max_tokens=9, context=512, stop=["X"], thinking=False)]


def carried(home: Path) -> Path:
    """A model that was copied into the store by hand."""
    folder = home / "models" / "me" / "mine"
    folder.mkdir(parents=True)
    return write_model(folder / "mine.gguf", speaks=LETTERS)


@pytest.mark.parametrize("name", ["me/mine", ""])
def test_a_file_carried_over_by_hand_is_verified_where_the_person_sees_it(home: Path, name: str) -> None:
    path = carried(home)
    named = ("-m", name) if name else ()
    done = run_cli("ask", *named, "--max-tokens", "3", "hi", home=home)
    assert done.returncode == 0 and done.stdout.strip().isalpha()
    said = done.stderr.splitlines()
    assert said[0].startswith("localchat: 100%, ") and said[0].endswith("verifying the model file")
    assert said[-1].startswith("localchat: me/mine is here and verified")
    assert "no model is here" not in done.stderr
    assert path.with_name("mine.gguf.json").exists()
    assert run_cli("ask", *named, "--max-tokens", "3", "hi", home=home).stderr == ""


def test_a_store_that_cannot_be_written_to_still_answers(home: Path) -> None:
    folder = carried(home).parent
    # The record cannot be put in place of a folder, whoever one is.
    (folder / "mine.gguf.json").mkdir()
    done = run_cli("ask", "-m", "me/mine", "--max-tokens", "3", "hi", home=home)
    assert done.returncode == 0 and done.stdout.strip().isalpha()
    shutil.rmtree(folder)


# What the README says of them

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_has_every_key_and_its_default(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.+?)```", README, re.DOTALL)
    assert block
    (tmp_path / "settings.toml").write_text(block[1])
    written = load(tmp_path / "settings.toml")
    assert set(written.keys) <= {action.name for action in ACTIONS if action.where != "composer"}
    for name in Settings.__struct_fields__:
        line = re.search(rf"^(?:\[{name}\b.*|{name} = .*)$", block[1], re.MULTILINE)
        assert line, f"{name} is missing"
        if "example" not in line[0] and not line[0].startswith("["):
            assert getattr(written, name) == getattr(Settings(), name), name
        elif not line[0].startswith("["):
            assert getattr(Settings(), name) is None, name


def test_the_readme_has_every_option_and_its_default() -> None:
    rows = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| (.+?) \|$", README, re.MULTILINE))
    told = {name: default for names, default in rows.items() for name in re.findall(r"\w+", names)}
    for name in (*Sampling.__struct_fields__, *ModelOptions.__struct_fields__):
        usual = getattr(DEFAULTS, name, None)
        assert name in told and (usual is None or told[name] == f"{usual:g} *"), name
