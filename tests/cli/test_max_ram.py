"""The ceiling on memory: from where a person sets it to where the engine reads it, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localchat.cli.main import _without_globals
from localchat.cli.status import _lines
from localchat.client.local import _limited
from localchat.errors import DoesNotFit, UsageError
from localchat.models.assess import Assessment, Circumstances, is_capped
from localchat.models.fit import Memory, Speed
from localchat.models.plan import Plan
from localchat.protocol import ChatRequest, Extras, LoadedModel, Message, Status
from localchat.settings import load, max_ram, ram_bytes, size_bytes
from tests.conftest import forget_home, run_cli, status_of

GIB = 1 << 30


@pytest.fixture(autouse=True)
def no_ceiling(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what a test leaves in it is taken back.
    monkeypatch.setenv("LOCALCHAT_MAX_RAM", "")
    monkeypatch.delenv("LOCALCHAT_MAX_RAM")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6G", 6 * GIB),
        ("6 GiB", 6 * GIB),
        ("6gb", 6 * GIB),
        (" 1.5T ", 1536 * GIB),
        ("500MB", 500 << 20),
        ("64k", 64 << 10),
        ("0", 0),
        ("999999999T", 1 << 60),
    ],
)
def test_sizes_as_people_write_them(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "6", "G", "-1G", "6X", "1e3G", "6 G iB", "0G", "0", "six", "6G 1M", "\x1b[31m"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r'^--max-ram: it takes a size such as "6G"') as raised:
        ram_bytes(text, "--max-ram")
    assert "\x1b" not in raised.value.message


@pytest.mark.parametrize("value", ['"six"', "6", '"0"', "true", '["6G"]', '""'])
def test_a_wrong_setting_is_named_with_its_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "settings.toml").write_text(f"vim = true\nmax_ram = {value}\n")
    with pytest.raises(UsageError, match=r'settings.toml, line 2, key max_ram: it takes a size such as "6G"$'):
        load(tmp_path / "settings.toml")


@pytest.mark.parametrize(
    ("arguments", "left", "expected"),
    [
        (["ask", "hi"], ["ask", "hi"], None),
        (["ask", "--max-ram", "6G", "hi"], ["ask", "hi"], 6 * GIB),
        (["--max-ram=6G", "models", "--offline"], ["models"], 6 * GIB),
        (["ask", "--max-ram", "1G", "--max-ram", "2G", "hi"], ["ask", "hi"], 2 * GIB),
        (["ask", "--", "--max-ram", "6G"], ["ask", "--", "--max-ram", "6G"], None),
    ],
)
def test_it_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], left: list[str], expected: int | None
) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "")
    assert _without_globals(arguments) == left
    assert max_ram() == expected


@pytest.mark.parametrize("arguments", [["ask", "--max-ram"], ["--max-ram", "lots", "chat"], ["models", "--max-ram="]])
def test_a_wrong_one_ends_any_command_at_once(empty_home: Path, arguments: list[str]) -> None:
    done = run_cli(*arguments, home=empty_home)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'localchat: --max-ram: it takes a size such as "6G"' in done.stderr


def test_the_command_line_wins_over_the_settings_and_a_request_over_both(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ChatRequest(messages=[Message("user", "hi")], localchat=Extras(thinking=True))
    assert _limited(asked) is asked
    empty_home.mkdir()
    (empty_home / "settings.toml").write_text('max_ram = "3G"\n')
    forget_home()
    limited = _limited(asked).localchat
    assert limited == Extras(thinking=True, max_ram=3 * GIB)
    monkeypatch.setenv("LOCALCHAT_MAX_RAM", "2G")
    assert _limited(ChatRequest(messages=[])).localchat == Extras(max_ram=2 * GIB)
    own = ChatRequest(messages=[], localchat=Extras(max_ram=5))
    assert _limited(own) is own


def test_what_fits_is_judged_by_the_ceiling(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Circumstances.now().available
    assert not is_capped(free)
    monkeypatch.setenv("LOCALCHAT_MAX_RAM", "1G")
    allowed = Circumstances.now().available
    assert GIB // 2 < allowed < GIB
    assert is_capped(allowed)
    need = Assessment(Memory(2 * GIB, 0, 0), "no", Speed(None, None), 4096)
    with pytest.raises(DoesNotFit, match=r"1\.0 GB are left for it under --max-ram: raise it, take a smaller model"):
        Plan("big", "Q4_0", (), need, allowed).check_fit()
    monkeypatch.setenv("LOCALCHAT_MAX_RAM", "9999T")
    assert not is_capped(Circumstances.now().available)


def test_status_shows_ceiling_threads_and_what_is_kept(empty_home: Path) -> None:
    model = LoadedModel("m", "/m.gguf", "llama", 1, 2, 3, 4, 5, 2, prefill_threads=4, kept_bytes=12_000_000)
    status = Status(
        version="1", pid=1, started=0, idle_s=1, model=model, max_ram=6 * GIB, taken_bytes=2_000_000_000
    )  # fmt: skip
    said = dict(_lines(status))
    assert said["ceiling"] == "6.4 GB (--max-ram), of which 2.0 GB are taken"
    assert said["threads"] == "2 while answering, 4 while reading"
    assert said["kept"] == "12.0 MB of what was read, beside the context"
    assert said["prefixes"] == "0 bytes of at most 4.3 GB on disk"
    (empty_home / "settings.toml").parent.mkdir(exist_ok=True)
    (empty_home / "settings.toml").write_text('prefix_cache = "0"\n')
    forget_home()
    assert dict(_lines(Status(version="1", pid=1, started=0, idle_s=1)))["prefixes"] == "none on disk"


def test_a_real_engine_keeps_to_it_and_says_what_would_do(home: Path) -> None:
    refused = run_cli("ask", "--max-ram", "100M", "hi", home=home)
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "needs 2" in refused.stderr
    assert (
        "MiB with the smallest window and the ceiling is 100 MiB: `localchat models --max-ram 100M`" in refused.stderr
    )
    done = run_cli("ask", "--max-ram", "300M", "--max-tokens", "2", "hi", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    status = status_of(home)
    assert status
    assert status["max_ram"] == 300 << 20
    assert 0 < status["taken_bytes"] < 300 << 20
    assert json.loads(run_cli("status", "--json", home=home).stdout)["max_ram"] == 300 << 20


def test_a_ceiling_that_was_said_once_holds_no_longer_than_that(home: Path) -> None:
    for options, expected in ((("--max-ram", "400M"), 400 << 20), ((), None)):
        assert run_cli("ask", *options, "--max-tokens", "2", "hi", home=home).returncode == 0
        status = status_of(home)
        assert status and status.get("max_ram") == expected  # by one host, which the first of them started
        assert status["answered"] == (1 if options else 2)
