"""`localchat cache`: it says what is kept and is rid of it, also beside an engine that runs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from array import array
from pathlib import Path

import pytest

from localchat.prefix_file import Header, key_of
from localchat.prefixes import PrefixStore
from tests.conftest import run_cli, stop_host
from tests.tiny_models import write_model

DAY = 86_400
TEXT = "The keeper of the light counts the ships at night. " * 6


def put(home: Path, tokens: list[int], model: str = "ab" * 32) -> PrefixStore:
    store = PrefixStore(home / "cache" / "prefixes", 1 << 30)
    store.load()
    header = Header(
        key=key_of(model=model),
        model=model,
        engine="1",
        kind="chunk",
        parent="",
        start=0,
        tokens=array("i", tokens).tobytes(),
        read_ms=1.0,
    )
    assert store.put(header, bytes(2000))
    return store


def test_what_is_kept_is_shown_and_cleared(empty_home: Path) -> None:
    done = run_cli("cache", home=empty_home)
    assert done.returncode == 0
    assert "0 bytes, of at most 4.3 GB" in done.stdout
    put(empty_home, [1, 2, 3])
    put(empty_home, [7, 8])
    done = run_cli("cache", home=empty_home)
    assert "unknown model abababababab…  2 prompts  5 tokens" in done.stdout
    assert "used today" in done.stdout
    found = json.loads(run_cli("cache", "--json", home=empty_home).stdout)
    assert found["models"][0]["prompts"] == 2
    assert found["size"] == found["models"][0]["size"] > 4000
    refused = run_cli("cache", "clear", home=empty_home)
    assert refused.returncode == 2
    assert "localchat cache clear --yes" in refused.stderr
    assert run_cli("cache", "clear", "-y", home=empty_home).stdout.startswith("2 files removed, ")
    assert "0 bytes" in run_cli("cache", home=empty_home).stdout
    assert run_cli("cache", "clear", "-y", home=empty_home).stdout == "Nothing is kept.\n"


def test_what_was_of_no_use_for_some_days(empty_home: Path) -> None:
    store = put(empty_home, [1, 2, 3])
    (old,) = store.files()
    os.utime(old, (time.time() - 3 * DAY,) * 2)
    put(empty_home, [7, 8])
    assert run_cli("cache", "clear", "--older-than", "5", "-y", home=empty_home).stdout.startswith("0 files")
    assert run_cli("cache", "clear", "--older-than", "2", "-y", home=empty_home).stdout.startswith("1 file removed")
    for wrong in ("0", "1.5", "x"):
        assert run_cli("cache", "clear", "--older-than", wrong, "-y", home=empty_home).returncode == 2


def test_a_cache_that_is_switched_off_or_full_of_rubbish(empty_home: Path) -> None:
    empty_home.mkdir()
    (empty_home / "settings.toml").write_text('prefix_cache = "0"\n')
    put(empty_home, [1, 2, 3])
    folder = empty_home / "cache" / "prefixes" / "x"
    folder.mkdir()
    for name in ("a.kv", ".b.kv.1", "c"):
        (folder / name).write_bytes(b"rubbish")
    done = run_cli("cache", home=empty_home)
    assert 'switched off: prefix_cache = "0" in settings.toml' in done.stdout
    assert done.returncode == 0
    assert len(list(folder.iterdir())) == 3, "who only looks removes nothing"
    assert run_cli("cache", "clear", "-y", home=empty_home).stdout.startswith("4 files removed")


def test_a_question_about_a_file_is_read_once_also_by_the_next_engine(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "manual.md"
    file.write_text(TEXT)

    def ask() -> dict[str, object]:
        done = run_cli(
            "ask", "-f", str(file), "Who?", "--json", "--max-tokens", "2", "-o", "temperature", "0", home=home
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    first = ask()
    stop_host(home)
    second = ask()
    assert (first.get("restored_from"), second["restored_from"]) == (None, "disk")
    assert second["text"] == first["text"]
    assert "smollm2-135m  1 prompt " in run_cli("cache", home=home).stdout
    # The engine has all of it in memory, and does not write again what is cleared.
    assert run_cli("cache", "clear", "-y", home=home).returncode == 0
    stop_host(home)
    assert "0 bytes" in run_cli("cache", home=home).stdout
    assert ask().get("restored_from") is None


def test_what_a_removed_model_had_read_goes_with_it(empty_home: Path) -> None:
    folder = empty_home / "models" / "own" / "tiny"
    folder.mkdir(parents=True)
    path = write_model(folder / "tiny.gguf")
    assert run_cli("verify", home=empty_home).returncode == 0
    put(empty_home, [1, 2, 3], sha256(path))
    other = put(empty_home, [7, 8])
    assert run_cli("rm", "--yes", "own/tiny", home=empty_home).returncode == 0
    assert [path.exists() for path in other.files()] == [True] and len(other.files()) == 1


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root removes what it likes")
def test_what_cannot_be_removed_is_no_success(empty_home: Path) -> None:
    put(empty_home, [1, 2, 3])
    folders = [each for each in (empty_home / "cache" / "prefixes").iterdir() if each.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    done = run_cli("cache", "clear", "-y", home=empty_home)
    for folder in folders:
        folder.chmod(0o700)
    assert (done.returncode, "could not be removed" in done.stderr) == (1, True)
