from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import localchat
from localchat.errors import DamagedFile, Interrupted, NeedsVerification, NoSuchModel
from localchat.models import records, store
from localchat.protocol import Sampling
from tests.models.conftest import FILE, REPO, Offer, forget, make_gguf, place


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed from now on."""
    hashed: list[Path] = []
    real = records.hash_file

    def counted(path: Path, **options: object) -> str:
        hashed.append(path)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "hash_file", counted)
    return hashed


def test_nothing_is_installed(home: Path) -> None:
    assert store.installed() == []
    with pytest.raises(NoSuchModel) as missing:
        store.resolve(None)
    assert missing.value.exit_code == 3


def test_a_file_carried_over_by_hand_is_adopted_once(
    home: Path, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tiny)
    path = put(place(home), tiny)
    hashed = count_hashing(monkeypatch)
    (before,) = store.installed()
    assert before.sha256 is None and not hashed
    model = store.resolve("tiny")
    assert model == store.resolve("TINY:Q8_0") == store.resolve(None)
    assert model.path == path and model.name == "tiny" and model.size == len(tiny)
    assert model.sha256 == hashlib.sha256(tiny).hexdigest()
    assert model.sampling == Sampling(temperature=0.5)
    assert (model.quantization, model.source) == ("Q8_0", "carried over by hand")
    assert hashed == [path]
    assert store.installed() == [model]
    kept = json.loads(records.record_file(path).read_text())
    assert kept["sha256"] == model.sha256 and kept["size"] == len(tiny)
    assert records.record_file(path).stat().st_mode & 0o777 == 0o600


def test_a_carried_file_with_wrong_bytes_is_refused(home: Path, tiny: bytes, offer: Offer) -> None:
    offer(tiny)
    path = put(place(home), tiny[:-1] + b"x")
    with pytest.raises(DamagedFile, match="sha256"):
        store.resolve("tiny")
    path.write_bytes(tiny[:-5])
    with pytest.raises(DamagedFile, match="bytes where"):
        store.resolve("tiny")
    assert not records.record_file(path).exists()


def test_a_file_nobody_pinned_is_adopted_if_its_header_is_sound(home: Path, tiny: bytes) -> None:
    path = put(home / "models" / "me" / "mine" / "any-Q8_0.gguf", tiny)
    model = store.resolve("me/mine")
    assert model.sha256 == hashlib.sha256(tiny).hexdigest() and model.sampling == Sampling()
    for name in ("me/mine:q8_0", "any-q8_0", "ANY-Q8_0.gguf", "me/mine/any-Q8_0.gguf", str(path), model.name):
        assert store.resolve(name) == model
    put(home / "models" / "me" / "bad" / "bad.gguf", tiny[:-5])
    with pytest.raises(DamagedFile, match="cut short"):
        store.resolve("me/bad")


def test_a_changed_file_is_hashed_again(home: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(home / "models" / "a" / "b" / "c.gguf", tiny)
    first = store.resolve("a/b")
    hashed = count_hashing(monkeypatch)
    os.utime(path, ns=(1, 1))  # touched, but the same
    assert store.resolve("a/b") == first
    assert hashed == [path]
    assert store.resolve("a/b") == first
    assert hashed == [path], "the refreshed record was not used"
    path.write_bytes(tiny[:-1] + b"x")
    with pytest.raises(DamagedFile, match=r"its sha256 is not"):
        store.resolve("a/b")
    assert [model.sha256 for model in store.installed()] == [None]
    path.write_bytes(tiny + b"x")
    with pytest.raises(DamagedFile, match="bytes where"):
        store.resolve("a/b")
    path.write_bytes(tiny)
    assert store.resolve("a/b").sha256 == first.sha256


def test_a_record_that_is_not_one_counts_as_none(home: Path, tiny: bytes) -> None:
    path = put(home / "models" / "a" / "b" / "c.gguf", tiny)
    for content in (b"", b"{", b"[]", b'{"sha256": 3}', b"\xff"):
        records.record_file(path).write_bytes(content)
        assert store.resolve("a/b").sha256 == hashlib.sha256(tiny).hexdigest()


def test_a_folder_that_cannot_be_written_still_serves(home: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = put(home / "models" / "a" / "b" / "c.gguf", tiny)
    store.resolve("a/b")
    carried = put(home / "models" / "d" / "e" / "f.gguf", tiny)
    hashed = count_hashing(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    # Permissions do not stop root, so the refusal is made where the record is written.
    monkeypatch.setattr(records.os, "fsync", refuse)
    assert store.resolve("a/b").path == recorded
    assert not hashed
    first = store.resolve("d/e")
    assert store.resolve("d/e") == first and first.sha256
    assert hashed == [carried], "what was verified was not remembered"
    assert sorted(path.name for path in carried.parent.iterdir()) == ["f.gguf"]


def test_paths_outside_the_store(home: Path, tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "else where" / "my model.gguf", tiny)
    model = store.resolve(str(path))
    assert (model.path, model.sha256, model.source, model.size) == (path, None, "your own file", len(tiny))
    assert store.resolve(model.name) == model
    monkeypatch.chdir(path.parent)
    assert store.resolve("my model.gguf") == store.resolve("./my model.gguf") == model
    link = path.with_name("link.gguf")
    link.symlink_to(path)
    assert store.resolve("link.gguf").path == link
    assert not list(path.parent.rglob("*.json"))
    path.write_bytes(tiny[:-5])
    with pytest.raises(DamagedFile, match="cut short"):
        store.resolve(str(path))
    path.write_bytes(b"#!/bin/sh")
    with pytest.raises(DamagedFile, match="not a model"):
        store.resolve(str(path))
    with pytest.raises(NoSuchModel, match="no file"):
        store.resolve("./absent.gguf")


def test_links_in_the_store_are_fine(home: Path, tiny: bytes, tmp_path: Path) -> None:
    real = put(tmp_path / "elsewhere" / "x.gguf", tiny)
    folder = home / "models" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x.gguf").symlink_to(real)
    (folder / "gone.gguf").symlink_to(tmp_path / "nothing")
    assert store.resolve("a/b").path == folder / "x.gguf"
    assert len(store.installed()) == 1


def test_close_names_are_offered(home: Path, tiny: bytes, offer: Offer) -> None:
    offer(tiny)
    put(home / "models" / "me" / "mine" / "some.gguf", tiny)
    for asked, close in {
        "smolm2": "smollm2-135m",
        "me/mien": "me/mine",
        "tyny": "tiny",
        "135m": "smollm2-135m",
    }.items():
        with pytest.raises(NoSuchModel) as missing:
            store.resolve(asked)
        assert f'"{asked}"' in missing.value.message and close in missing.value.message
    with pytest.raises(NoSuchModel, match="localchat models"):
        store.resolve("zzzzzzzzzz")
    with pytest.raises(NoSuchModel, match="not on this machine"):
        store.resolve("tiny")


@pytest.mark.parametrize(
    "name", ["\x1b[31m", "x" * 5000, "a\0b", "~nobody/x.gguf", "a/b/c/d", ":", "/", "..", "con", "\ud800"]
)
def test_hostile_names_get_one_safe_sentence(home: Path, name: str) -> None:
    with pytest.raises(NoSuchModel) as missing:
        store.resolve(name)
    assert missing.value.message.isprintable() and len(missing.value.message) < 5200


def test_every_name_leads_back_to_its_file(home: Path, tiny: bytes, offer: Offer, tmp_path: Path) -> None:
    offer(tiny)
    other = make_gguf(tmp_path / "other.gguf", seed=7)
    put(place(home), tiny)
    models = home / "models"
    for where in (
        "a/b/x-Q8_0.gguf",
        "a/b/x-Q4_K_M.gguf",
        "a/c/x-Q8_0.gguf",
        "a/c/y-Q8_0.gguf",
        "flat.gguf",
        "d/deep.gguf",
    ):
        put(models / where, other)
    put(models / "a" / "b" / "mmproj-x.gguf", other)
    put(models / "a" / "b" / ".hidden.gguf", other)
    found = store.installed()
    assert len(found) == 7 and len({model.name for model in found}) == 7
    for _ in range(2):  # before and after they were verified
        for model in found:
            assert store.resolve(model.name).path == model.path
        found = store.installed()
    assert {"tiny", "a/b:q4_k_m", "flat", "deep"} <= {model.name for model in found}


def test_a_copy_elsewhere_leaves_the_short_name_to_the_one_in_its_place(home: Path, tiny: bytes, offer: Offer) -> None:
    offer(tiny)
    copy = put(home / "models" / "a" / "copy" / FILE, tiny)
    assert store.resolve("tiny").path == copy
    put(place(home), tiny)
    for _ in range(2):
        assert {model.name: model.path for model in store.installed()} == {"tiny": place(home), "a/copy": copy}
        assert store.resolve("tiny").path == place(home)
        assert store.resolve("a/copy").path == copy


def test_the_last_verified_model_is_the_default(home: Path, tiny: bytes) -> None:
    put(home / "models" / "a" / "one" / "x.gguf", tiny)
    two = put(home / "models" / "a" / "two" / "x.gguf", tiny)
    assert store.resolve("a/one").name == "a/one"
    assert store.resolve(None).name == "a/one", "a file that was never verified must not come first"
    store.resolve("a/two")
    record = records.read(two)
    assert record
    later = record.verified.replace(year=record.verified.year + 1)
    records.write(
        two, records.Record(**{**{f: getattr(record, f) for f in record.__struct_fields__}, "verified": later})
    )
    assert store.resolve(None).name == "a/two"
    (home / "settings.toml").write_text('model = "a/one"\n')
    forget()
    assert store.resolve(None).name == "a/one"


def test_a_model_in_parts_is_one_model(home: Path, tiny: bytes) -> None:
    folder = home / "models" / "a" / "b"
    for number in (1, 2):
        put(folder / f"m-0000{number}-of-00002.gguf", tiny)
    (model,) = store.installed()
    resolved = store.resolve(model.name)
    assert resolved.path.name == "m-00001-of-00002.gguf" and resolved.size == 2 * len(tiny)
    assert resolved.sha256 not in (None, hashlib.sha256(tiny).hexdigest())
    (folder / "m-00002-of-00002.gguf").write_bytes(tiny[:-1] + b"x")
    with pytest.raises(DamagedFile):
        store.resolve(model.name)
    (folder / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(DamagedFile, match="missing"):
        store.resolve(model.name)


def test_what_would_have_to_be_read_can_be_refused(home: Path, tiny: bytes) -> None:
    path = put(home / "models" / "a" / "b" / "c.gguf", tiny)
    for name in ("a/b", "", str(path)):
        with pytest.raises(NeedsVerification, match="ask again"):
            store.resolve(name, may_hash=False)
    checked = store.resolve("a/b")
    assert store.resolve("a/b", may_hash=False) == store.resolve("", may_hash=False) == checked
    os.utime(path, (1, 1))
    with pytest.raises(NeedsVerification):
        store.resolve("a/b", may_hash=False)


def test_checking_can_be_followed_and_stopped(home: Path, bigger: bytes) -> None:
    put(home / "models" / "a" / "b" / "c.gguf", bigger)
    with pytest.raises(Interrupted):
        store.resolve("a/b", cancelled=lambda: True)
    steps: list[tuple[int, int]] = []
    store.resolve("a/b", on_hashed=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (len(bigger), len(bigger)) and len(steps) > 3


def test_listing_forty_models_opens_each_record_once(home: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list must come at once, however many models there are, and however large they are."""
    put_here = [put(home / "models" / f"owner{number}" / "repo" / "x-Q8_0.gguf", tiny) for number in range(40)]
    for number in range(40):
        store.resolve(f"owner{number}/repo")
    forget()
    hashed, opened, real = count_hashing(monkeypatch), list[str](), io.open

    def counted(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return real(file, *arguments, **options)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", counted)
    assert len(store.installed()) == 40
    assert not hashed
    found = [name for name in opened if name.startswith(str(home / "models"))]
    assert sorted(found) == sorted(f"{path}.json" for path in put_here)


def test_the_store_imports_nothing_that_connects() -> None:
    """The engine process imports it on its way to the first token."""
    code = "import sys, localchat.models.store; print(*sys.modules)"
    source = str(Path(localchat.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    loaded = set(run.stdout.split())
    heavy = {
        "huggingface_hub",
        "httpx2",
        "psutil",
        "ssl",
        "socket",
        "subprocess",
        "numpy",
        "hashlib",
        "tomllib",
        "difflib",
    }
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("localchat.")} & {
        f"localchat.models.{name}" for name in ("fetch", "download", "transport", "hub", "wheel", "sources")
    }


def test_the_shipped_constants_agree() -> None:
    assert FILE.endswith(f"{store.label_in(FILE)}.gguf")
    assert store.label_in("gemma-3-270m-q4_k_m.gguf") == "Q4_K_M"
    assert store.label_in("Qwen3-4B-UD-IQ2_XXS.gguf") == "IQ2_XXS"
    assert store.label_in("x-f16-00001-of-00002.gguf") == "F16"
    assert store.label_in("model.gguf") == "" and store.label_in(REPO) == ""


def test_a_copy_that_kept_its_time_and_its_record_is_read_again(home: Path, tiny: bytes) -> None:
    first = home / "models" / "me" / "first" / "tiny.gguf"
    first.parent.mkdir(parents=True)
    first.write_bytes(tiny)
    store.resolve("me/first")
    copy = home / "models" / "me" / "copy" / "tiny.gguf"
    shutil.copytree(first.parent, copy.parent)
    assert copy.stat().st_mtime_ns == first.stat().st_mtime_ns
    with pytest.raises(NeedsVerification):
        store.resolve("me/copy", may_hash=False)
    wrong = bytearray(tiny)
    wrong[-1] ^= 1
    copy.write_bytes(wrong)
    os.utime(copy, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    with pytest.raises(DamagedFile, match="sha256"):
        store.resolve("me/copy")
    copy.write_bytes(tiny)
    assert store.resolve("me/copy").sha256 == store.resolve("me/first").sha256
