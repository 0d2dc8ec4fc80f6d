"""The modules that everything stands on: errors, paths, settings, safe text, and the protocol's own promises."""

from __future__ import annotations

import json
import os
import random
import stat
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies

from localchat import errors, protocol
from localchat import settings as settings_module
from localchat.errors import LocalchatError, UsageError, from_code
from localchat.paths import Paths, paths, private_folder
from localchat.safe_text import safe_json, safe_line, safe_text
from tests.conftest import forget_home, run_cli
from tests.escapes import PAYLOADS, unsafe

# Safe text


@pytest.mark.parametrize("text", PAYLOADS, ids=lambda text: ascii(text)[1:40])
def test_no_payload_gets_through_wherever_it_is_split(text: str) -> None:
    whole = safe_text(text)
    assert unsafe(whole) == []
    for at in range(len(text) + 1):
        assert safe_text(text[:at]) + safe_text(text[at:]) == whole
    assert "".join(map(safe_text, text)) == whole
    assert unsafe(safe_line(text)) == [] and not {"\n", "\t"} & set(safe_line(text))


def test_payloads_split_at_every_byte_stay_harmless() -> None:
    for text in PAYLOADS:
        raw = text.encode()
        for at in range(len(raw) + 1):
            pieces = (raw[:at].decode(errors="replace"), raw[at:].decode(errors="replace"))
            assert unsafe("".join(map(safe_text, pieces))) == []


def test_every_single_character_is_judged() -> None:
    for code in range(sys.maxunicode + 1):
        assert unsafe(safe_text(chr(code))) == [], hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "two\nlines\tand a tab",
        "Grüße, naïve café",
        "日本語 한국어 العربية עברית हिन्दी",
        "👩‍👩‍👧 🏳️‍🌈 🇫🇷",
        "a\u00a0b\u2009c",
        "𝔘𝔫𝔦",
        "e\u0301",
    ],
)
def test_honest_text_is_not_changed(text: str) -> None:
    assert safe_text(text) == text


def test_what_is_replaced_stays_visible() -> None:
    assert safe_text("\x1b[2J\x07\x7f") == "␛[2J␇␡"
    assert safe_text("Windows\r\nline\r\n") == "Windows\nline\n"
    assert safe_text("\x9b31m") == "\ufffd31m"
    assert safe_text("a\u202eb") == "ab"
    assert safe_text("\ud800") == "\ufffd"


def test_random_texts_are_safe_and_safe_again() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    alphabet = [*PAYLOADS, *"abc \n\t", "é", "😀", "\u200d"]
    for _ in range(300):
        text = "".join(source.choice(alphabet) for _ in range(source.randrange(1, 30)))
        once = safe_text(text)
        assert unsafe(once) == [] and safe_text(once) == once


@given(
    strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.integers(-(1 << 53), 1 << 53) | strategies.text(),
        lambda inner: (
            strategies.lists(inner, max_size=4) | strategies.dictionaries(strategies.text(), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_safe_json_changes_no_value(value: object) -> None:
    shown = safe_json(msgspec.json.encode(value))
    assert json.loads(shown) == value
    assert unsafe(shown) == []


def test_safe_json_of_every_payload() -> None:
    shown = safe_json(msgspec.json.encode(PAYLOADS))
    assert json.loads(shown) == PAYLOADS
    assert unsafe(shown) == [] and "\n" not in shown


# Errors


def test_every_error_has_a_documented_exit_code_and_survives_the_protocol() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LocalchatError)]
    assert sorted({kind.exit_code for kind in kinds}) == [1, 2, 3, 4, 5, 6, 7, 8, 130]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        back = from_code(kind.code, "a sentence")
        assert type(back) is kind and back.message == str(back) == "a sentence"
        assert 400 <= kind.status < 600


@pytest.mark.parametrize("code", [None, "", "rate_limit_exceeded", "None", "500"])
def test_an_unknown_code_is_a_failed_engine(code: str | None) -> None:
    assert type(from_code(code, "x")) is errors.EngineFailed


# Paths


def places(monkeypatch: pytest.MonkeyPatch, **environment: str | None) -> Paths:
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    forget_home()
    found = paths()
    forget_home()
    return found


def test_a_home_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = places(monkeypatch, LOCALCHAT_HOME=str(tmp_path))
    for name in ("settings", "own_catalogue", "models", "host_log", "socket", "host_lock", "start_lock"):
        assert getattr(found, name).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is made by asking"


def test_a_home_may_be_relative_or_of_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places(monkeypatch, LOCALCHAT_HOME="here").data == tmp_path / "here"
    assert places(monkeypatch, LOCALCHAT_HOME="~/there", HOME=str(tmp_path)).data == tmp_path / "there"


def test_without_a_home_the_platforms_folders_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("these are Linux's variables")
    found = places(
        monkeypatch,
        LOCALCHAT_HOME=None,
        XDG_CONFIG_HOME=str(tmp_path / "config"),
        XDG_DATA_HOME=str(tmp_path / "data"),
        XDG_STATE_HOME=str(tmp_path / "state"),
        XDG_RUNTIME_DIR=None,
    )
    assert found.settings == tmp_path / "config" / "localchat" / "settings.toml"
    assert found.models == tmp_path / "data" / "localchat" / "models"
    assert found.host_log == tmp_path / "state" / "localchat" / "host.log"
    assert not found.runtime.is_relative_to(tmp_path / "data")


@pytest.mark.parametrize("length", [1, 60, 90, 94, 95, 96, 97, 98, 99, 100, 120, 250])
def test_the_socket_always_fits(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    found = places(monkeypatch, LOCALCHAT_HOME="/" + "é" * (length // 2) + "x" * (length % 2), XDG_RUNTIME_DIR=None)
    assert len(os.fsencode(found.socket)) <= 107
    assert found.host_lock.parent == found.start_lock.parent == found.socket.parent


@pytest.mark.parametrize("ours", [True, False])
def test_one_person_has_one_runtime_folder_with_and_without_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    run, us = tmp_path / "run", os.getuid()
    (run / str(us)).mkdir(parents=True)
    (run / str(us + 1)).mkdir()
    monkeypatch.setattr("localchat.paths._RUN_USER", str(run))
    places(monkeypatch, LOCALCHAT_HOME=None)  # what asks for the uid while it is being imported has done so
    if not ours:
        monkeypatch.setattr(os, "getuid", lambda: us + 1)
    found = {
        places(monkeypatch, LOCALCHAT_HOME=None, XDG_RUNTIME_DIR=variable).runtime
        for variable in (None, str(run / str(us)), str(tmp_path / "gone"))
    }
    assert len(found) == 1 and found.pop().is_relative_to(run) is ours


def test_two_deep_homes_have_two_runtime_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    one, again, two = (places(monkeypatch, LOCALCHAT_HOME="/" + letter * 200).runtime for letter in "aab")
    assert one == again != two


def test_a_private_folder_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = private_folder(tmp_path / "a")
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        made.chmod(0o755)
        assert stat.S_IMODE(private_folder(made).stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_link_in_place_of_a_shared_runtime_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    with pytest.raises(LocalchatError, match="belongs to another user"):
        private_folder(tmp_path / "run", shared_parent=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalchatError, match="LOCALCHAT_HOME"):
        private_folder(tmp_path / "file" / "below")


# Settings


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    found = settings_module.load(tmp_path / "settings.toml")
    assert found == settings_module.Settings()
    assert (found.idle, found.offline, found.options) == (300, False, protocol.Sampling())


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        'model = "m"\nsystem = "s"\nengine = "http://x"\noffline = true\nidle = 5\nthreads = 2\ncontext = 100\n'
        'gpu_layers = 0\nshow_thinking = true\nmax_ram = "6G"\nprefix_cache = "500 MB"\ndrafts = false\n'
        'theme = "light"\nvim = true\nnewline_on_enter = true\nsidebar = true\ntitles = false\nkeep_asks = false\n'
        "[options]\ntemperature = 0\nseed = 0\n"
        '[presets.short]\nsystem = "Be brief."\ntop_p = 0.5\n[keys]\nagain = "ctrl+y"\n'
    )
    found = settings_module.load(file)
    assert msgspec.structs.asdict(found) == {
        "model": "m",
        "system": "s",
        "engine": "http://x",
        "offline": True,
        "idle": 5,
        "threads": 2,
        "context": 100,
        "gpu_layers": 0,
        "max_ram": "6G",
        "prefix_cache": "500 MB",
        "drafts": False,
        "show_thinking": True,
        "options": protocol.Sampling(temperature=0, seed=0),
        "presets": {"short": settings_module.Preset(system="Be brief.", top_p=0.5)},
        "theme": "light",
        "vim": True,
        "newline_on_enter": True,
        "sidebar": True,
        "titles": False,
        "keep_asks": False,
        "keys": {"again": "ctrl+y"},
    }
    assert found.presets["short"].sampling() == protocol.Sampling(top_p=0.5)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("Expected `int`, got `str`", "it takes a whole number, not text"),
        ("Expected `int | null` >= 1", "it takes a whole number of at least 1"),
        ("Expected `float` <= 1.0", "it takes a number of at most 1.0"),
        ("Expected `str | array`, got `bool`", "it takes text or a list, not true or false"),
        ("Object missing required field `name`", "the key name is missing"),
        ("Invalid enum value 'x'", "invalid enum value 'x'"),
        ("Expected `datetime`, got `str`", 'expected "datetime", got "str"'),
    ],
)
def test_faults_are_said_plainly(problem: str, said: str) -> None:
    assert settings_module.plainly(problem) == said


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[options]\nseed = 1\ntop_p = 3\n", 3, "options.top_p"),
        ("options.top_p = 3\n", 1, "options.top_p"),
        ('system = """\ntop_p = 1\n"""\noptions = { seed = 1, top_p = 3 }\n', 4, "options.top_p"),
        ('"idle" = "x"\n', 1, "idle"),
        ("  idle   =   'x' # idle\n", 1, "idle"),
        ('vim = true\ntheme = "drak"\n', 2, "theme"),
        ("[presets.a]\ntop_p = 1\n[presets.b]\ntop_p = 3\n", 4, "presets.b.top_p"),
        ("[presets.a]\nfoo = 1\n", 2, "presets.a.foo"),
        ('[keys]\nsend = "f9"\nagain = 3\n', 3, "keys.again"),
    ],
)
def test_the_line_of_a_fault_is_found(tmp_path: Path, text: str, line: int, key: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as raised:
        settings_module.load(file)
    assert f"{file}, line {line}, key {key}: " in raised.value.message


def test_what_can_be_chosen_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('theme = "drak"\n')
    with pytest.raises(UsageError, match=r'it takes "dark" or "light" or "contrast" or "ansi"$'):
        settings_module.load(tmp_path / "settings.toml")


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_offline_by_environment(empty_home: Path, monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", value)
    assert settings_module.is_offline() is offline


# The protocol


def test_what_other_clients_look_for_is_always_sent() -> None:
    chunk = json.loads(msgspec.json.encode(protocol.Chunk(choices=[protocol.Choice(finish_reason="stop")])))
    assert chunk == {
        "id": "",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    }
    assert json.loads(msgspec.json.encode(protocol.Chunk(usage=protocol.Usage(1, 2, 3))))["choices"] == []
    message = protocol.CompletionMessage("hi")
    assert json.loads(msgspec.json.encode(message)) == {"content": "hi", "role": "assistant"}
    assert json.loads(msgspec.json.encode(protocol.ModelCard("m"))) == {
        "id": "m",
        "object": "model",
        "created": 0,
        "owned_by": "",
    }
    assert json.loads(msgspec.json.encode(protocol.Message("assistant", ""))) == {"role": "assistant", "content": ""}


def test_a_request_says_only_what_was_said() -> None:
    request = protocol.ChatRequest(messages=[protocol.Message("user", "hi")], seed=0)
    assert json.loads(msgspec.json.encode(request)) == {"messages": [{"role": "user", "content": "hi"}], "seed": 0}


def test_two_chunks_share_no_list() -> None:
    assert protocol.Chunk().choices is not protocol.Chunk().choices


def test_relative_folders_of_the_platform_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("localchat.paths._RUN_USER", str(tmp_path / "run"))
    names = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
    usual = places(monkeypatch, LOCALCHAT_HOME=None, **dict.fromkeys(names))
    assert places(monkeypatch, LOCALCHAT_HOME=None, **dict.fromkeys(names, "mine")) == usual


def test_a_home_of_somebody_who_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    done = run_cli("status", home=Path("~nobody-of-that-name/x"), cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("localchat: LOCALCHAT_HOME is ~nobody-of-that-name/x, and nobody here has that name")


def test_a_long_temporary_folder_is_none_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localchat.paths._RUN_USER", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    found = places(monkeypatch, LOCALCHAT_HOME="/" + "deep" * 40, XDG_RUNTIME_DIR=None)
    assert len(os.fsencode(found.socket)) <= 107 and found.runtime.parent == Path("/tmp")
