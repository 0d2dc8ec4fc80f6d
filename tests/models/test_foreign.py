from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from localchat.errors import DamagedFile
from localchat.models import store
from localchat.models.names import check_file, check_repo
from localchat.models.upkeep import foreign
from localchat.models.upkeep.foreign import Findings
from localchat.models.upkeep.foreign_places import known
from localchat.models.upkeep.importing import import_file
from tests.models.conftest import make_gguf
from tests.models.foreign_homes import COMMIT, hub_cache, ollama, put
from tests.models.test_names import HOSTILE_FILES, HOSTILE_MEMBERS, HOSTILE_PARTS, HOSTILE_REPOS

LINUX = pytest.mark.skipif(os.uname().sysname != "Linux", reason="the folders of Linux")


@pytest.fixture
def person(tmp_path: Path) -> Path:
    """A person's home folder, empty."""
    made = tmp_path / "person"
    made.mkdir()
    return made


@pytest.fixture
def scan(home: Path, person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Looks for models of other programs, in the person's home and a root of its own only."""
    root = tmp_path / "root"

    def places(*_: object) -> list[object]:
        return known(environment, person, root)  # type: ignore[return-value]

    environment: dict[str, str] = {}

    def look(**variables: str) -> Findings:
        environment.clear()
        environment.update(variables)
        monkeypatch.setattr("localchat.models.upkeep.foreign.foreign_places.known", places)
        return foreign.find()

    return look


def model(tmp_path: Path, seed: int) -> bytes:
    return make_gguf(tmp_path / "scratch", seed=seed)


@LINUX
def test_every_program_is_found(scan, person: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = [model(tmp_path, seed) for seed in range(11)]
    hub_cache(person / ".cache/huggingface/hub", "maker/Hub-GGUF", "Q8_0/Hub-Q8_0.gguf", made[0])
    ollama(person / ".ollama/models", "library/llama3.2/3b", made[1])
    ollama(person / ".ollama/models", "maker/Tiny-GGUF/Q8_0", made[2], registry="hf.co")
    ollama(tmp_path / "root/usr/share/ollama/.ollama/models", "me/seer/latest", made[3], projector=made[9])
    put(person / ".lmstudio/models/maker/Studio-GGUF/Studio-Q8_0.gguf", made[4])
    put(person / ".lmstudio/models/maker/Studio-GGUF/mmproj-Studio-F16.gguf", made[9])
    put(person / ".cache/llama.cpp/manifest=maker=Cpp-GGUF=latest.json", b"{}")
    put(person / ".cache/llama.cpp/maker_Cpp-GGUF_cpp-q8_0.gguf", made[5])
    put(person / ".local/share/Jan/data/llamacpp/models/Jan-4B/model.gguf", made[6])
    put(person / "jan/models/old/old.gguf", made[7])
    put(person / ".local/share/nomic.ai/GPT4All/Some Model.Q8_0.gguf", made[8])
    found = scan()
    rows = {(one.program, one.name, one.repo, one.file, bool(one.projector)) for one in found.models}
    assert rows == {
        ("hub cache", "maker/Hub-GGUF", "maker/Hub-GGUF", "Hub-Q8_0.gguf", False),
        ("ollama", "llama3.2:3b", "ollama/llama3.2", "llama3.2-3b.gguf", False),
        ("ollama", "hf.co/maker/Tiny-GGUF:Q8_0", "maker/Tiny-GGUF", "Tiny-Q8_0.gguf", False),
        ("ollama", "me/seer:latest", "me/seer", "seer-latest.gguf", True),
        ("LM Studio", "maker/Studio-GGUF", "maker/Studio-GGUF", "Studio-Q8_0.gguf", True),
        ("llama.cpp", "maker_Cpp-GGUF_cpp-q8_0", "maker/Cpp-GGUF", "cpp-q8_0.gguf", False),
        ("Jan", "Jan-4B", "", "Jan-4B.gguf", False),
        ("Jan", "old", "", "old.gguf", False),
        ("GPT4All", "Some Model.Q8_0", "", "Some Model.Q8_0.gguf", False),
    }
    assert found.notices == [] and {one.quantization for one in found.models} == {"Q8_0"}
    assert {one.revision for one in found.models} == {COMMIT, ""}
    listing = {path: path.stat().st_mtime_ns for path in person.rglob("*") if path.is_file()}
    for one in found.models:
        done = import_file(one.path, held=one)
        assert done.how == "linked" and done.model.path.samefile(one.path)
        record = store.records.read(done.model.path)
        assert record and record.source == f"imported from {one.program}"
    assert {path: path.stat().st_mtime_ns for path in person.rglob("*") if path.is_file()} == listing
    assert {one.name for one in store.installed()} >= {"maker/Hub-GGUF", "ollama/llama3.2", "me/seer", "local/Jan-4B"}
    for one in found.models:
        assert import_file(one.path, held=one).how is None


@LINUX
def test_moved_folders_are_found(scan, person: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    elsewhere = tmp_path / "elsewhere"
    made = [model(tmp_path, seed) for seed in range(20, 28)]
    hub_cache(elsewhere / "hf" / "hub", "a/one", "one-Q8_0.gguf", made[0])
    hub_cache(elsewhere / "cache", "a/two", "two-Q8_0.gguf", made[1])
    ollama(elsewhere / "ollama", "library/three/1b", made[2])
    put(elsewhere / "studio/models/a/four/four-Q8_0.gguf", made[3])
    put(person / ".lmstudio-home-pointer", f"{elsewhere / 'studio'}\n".encode())
    put(elsewhere / "studio/settings.json", json.dumps({"downloadsFolder": str(elsewhere / "more")}).encode())
    put(elsewhere / "more/a/five/five-Q8_0.gguf", made[4])
    hub_cache(elsewhere / "llama", "a/six", "six-Q8_0.gguf", made[5])
    put(person / ".local/share/Jan/settings.json", json.dumps({"data_folder": str(elsewhere / "jan")}).encode())
    put(elsewhere / "jan/llamacpp/models/a/seven/seven-Q8_0.gguf", made[6])
    found = scan(
        HF_HOME=str(elsewhere / "hf"),
        HF_HUB_CACHE=str(elsewhere / "cache"),
        OLLAMA_MODELS=str(elsewhere / "ollama"),
        LLAMA_CACHE=str(elsewhere / "llama"),
    )
    assert {one.name for one in found.models} == {"a/one", "a/two", "three:1b", "a/four", "a/five", "a/six", "a/seven"}


def test_settings_that_are_nonsense_do_no_harm(scan, person: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for content in (b"", b"\xff\xfe", b"../..", b"a\0b", b"/proc", b"x" * (1 << 20), b"[" * 100_000, b'{"a": 1}'):
        put(person / ".lmstudio-home-pointer", content)
        put(person / ".lmstudio/settings.json", content)
        put(person / ".local/share/Jan/settings.json", content)
        assert scan(OLLAMA_MODELS="~nobody-such/x", HF_HOME="relative", LLAMA_CACHE="a\0b").models == []


def test_one_file_is_listed_once(scan, person: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    content = model(tmp_path, 1)
    hub = person / ".cache/huggingface/hub"
    link = hub_cache(hub, "a/b", "x-Q8_0.gguf", content)
    hub_cache(hub, "a/b", "x-Q8_0.gguf", content, commit="f" * 40)
    studio = person / ".lmstudio/models/a/b/x-Q8_0.gguf"
    studio.parent.mkdir(parents=True)
    os.link(link.resolve(), studio)
    assert len(scan().models) == 1


def test_hostile_manifests_and_digests(scan, person: Path, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    secret = put(tmp_path / "secret.gguf", model(tmp_path, 1))
    models = person / ".ollama/models"
    good = hashlib.sha256(secret.read_bytes()).hexdigest()
    for blob in (f"sha256-{good}", f"sha256-{good}0", f"sha256-{good.upper()}", f"sha256-{good[:-1]}"):
        put(models / "blobs" / blob, secret.read_bytes())
    digests = [
        *[f"sha256:{name}" for name in [*HOSTILE_PARTS, *HOSTILE_MEMBERS]],
        f"sha256:{'../' * 8}{str(secret).lstrip('/')}",
        str(secret),
        f"sha256:{good}\n",
        f"sha256:{good.upper()}",
        f"sha256-{good}",
        f"sha512:{good}",
        f"sha256:{good[:-1]}",
        f"sha256:{good}0",
    ]
    assert len(digests) > 80
    for number, digest in enumerate(digests):
        layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]
        content = json.dumps({"layers": layers}).encode("utf-8", "replace")
        put(models / "manifests/registry.ollama.ai/library/evil" / f"t{number}", content)
    for number, content in enumerate([b"", b"{", b"[]", b"null", b'{"layers": 3}', b"[" * 100_000, b"\xff" * 99]):
        put(models / "manifests/registry.ollama.ai/library/odd" / f"t{number}", content)
    put(models / "manifests/registry.ollama.ai/library/huge/t", b'{"layers": []}' + b" " * (2 << 20))
    os.mkfifo(models / "manifests/registry.ollama.ai/library/odd/pipe")
    assert scan().models == []
    assert store.installed() == []


def test_a_blob_that_is_not_what_its_digest_says(scan, person: Path, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    blob = ollama(person / ".ollama/models", "library/x/1b", model(tmp_path, 1))
    blob.write_bytes(model(tmp_path, 2))
    (one,) = scan().models
    with pytest.raises(DamagedFile, match="its name says"):
        import_file(one.path, held=one)
    assert store.installed() == []


def test_hostile_names_land_inside_the_models_folder(scan, person: Path, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    names = dict.fromkeys([*HOSTILE_PARTS, *HOSTILE_FILES, *HOSTILE_REPOS, *HOSTILE_MEMBERS])
    hub, studio, manifests = person / ".cache/huggingface/hub", person / ".lmstudio/models", person / ".ollama/models"
    seed = 200
    for raw in names:
        name = raw.encode("utf-8", "replace").decode()
        if "/" in name or "\0" in name or name in ("", ".", "..") or len(name.encode()) > 200:
            continue
        seed += 1
        kind = seed % 4
        if kind == 0:
            hub_cache(hub, f"a{name}--{name}", "x-Q8_0.gguf", model(tmp_path, seed))
        elif kind == 1:
            put(studio / name / name / "x-Q8_0.gguf", model(tmp_path, seed))
        elif kind == 2:
            put(
                studio / "a" / name / (name if name.lower().endswith(".gguf") else f"{name}.gguf"),
                model(tmp_path, seed),
            )
        else:
            ollama(manifests, f"{name}/{name}/{name}", model(tmp_path, seed))
    found = scan()
    assert len(found.models) > 50, found.unsound
    outside = {path for path in tmp_path.rglob("*") if home not in path.parents}
    for one in found.models:
        assert not one.repo or check_repo(one.repo)
        done = import_file(one.path, held=one)
        owner, repo, file = done.model.path.relative_to(home / "models").parts
        assert check_repo(f"{owner}/{repo}") and check_file(file)
    assert len(store.installed()) == len(found.models)
    assert {path for path in tmp_path.rglob("*") if home not in path.parents} == outside


def test_hostile_links_and_folders_are_bounded(
    scan, person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    studio = person / ".lmstudio/models/a/b"
    put(studio / "real-Q8_0.gguf", model(tmp_path, 1))
    (studio / "up").symlink_to(person)  # a folder that holds itself
    (studio / "self.gguf").symlink_to("self.gguf")
    (studio / "gone.gguf").symlink_to("nothing.gguf")
    (studio / "device.gguf").symlink_to("/dev/zero")
    (studio / "folder.gguf").mkdir()
    os.mkfifo(studio / "pipe.gguf")
    deep = studio
    for _ in range(12):
        deep = deep / "deeper"
    put(deep / "deep.gguf", model(tmp_path, 2))
    put(studio / "cut.gguf", model(tmp_path, 3)[:-9])
    began = time.monotonic()
    found = scan()
    assert [one.path.name for one in found.models] == ["real-Q8_0.gguf"]
    assert time.monotonic() - began < 30
    assert found.notices == [] and len(found.unsound) == 1 and "cut.gguf" in found.unsound[0]
    monkeypatch.setattr(foreign, "_MOST_ENTRIES", 500)
    for number in range(600):
        put(person / ".lmstudio/models/many" / f"{number}.txt", b"")
    found = scan()
    assert [notice for notice in found.notices if "stopped looking" in notice] != []


def test_folders_that_cannot_be_read_are_skipped_with_a_word(
    scan, person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    put(person / ".lmstudio/models/a/b/x-Q8_0.gguf", model(tmp_path, 1))
    ollama(person / ".ollama/models", "library/x/1b", model(tmp_path, 2))
    real = os.scandir

    def refuse(folder: str | Path) -> object:
        if str(folder).endswith(".lmstudio/models"):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    # Permissions do not stop root, so the refusal is made where the folder is read.
    monkeypatch.setattr(foreign.os, "scandir", refuse)
    found = scan()
    assert [one.program for one in found.models] == ["ollama"]
    assert found.notices == [f"skipped {person / '.lmstudio/models'} (Permission denied)"]


def test_a_file_of_another_program_named_by_hand_goes_where_the_scan_would_put_it(
    scan, person: Path, home: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    blob = ollama(person / ".ollama/models", "library/llama3.2/3b", model(tmp_path, 1))
    link = hub_cache(person / ".cache/huggingface/hub", "a/b", "x-Q8_0.gguf", model(tmp_path, 2))
    scan()
    assert import_file(blob).model.name == "ollama/llama3.2"
    assert import_file(link).model.name == "a/b"
