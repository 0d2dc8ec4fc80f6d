from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path

import msgspec
import pytest

from localchat.errors import DamagedFile, FetchError, Interrupted, LocalchatError, NoSuchModel, UsageError
from localchat.locks import FileLock
from localchat.models import records, store
from localchat.models.names import check_file, check_part
from localchat.models.upkeep import checking, copying, housekeeping, projectors
from localchat.models.upkeep.exporting import export
from localchat.models.upkeep.importing import Imported, import_file
from localchat.models.upkeep.placing import plain
from tests.models.conftest import FILE, REPO, Offer, forget, make_gguf, place
from tests.models.foreign_homes import put
from tests.models.test_names import HOSTILE_FILES, HOSTILE_MEMBERS, HOSTILE_PARTS, HOSTILE_REPOS


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's own folder, on the disk of the store; no other program is found."""
    monkeypatch.setattr("localchat.models.upkeep.foreign_places.known", lambda *_: [])
    made = tmp_path / "Downloads"
    made.mkdir()
    return made


def with_metadata(path: Path, seed: int = 5, **values: str) -> bytes:
    """A model whose file says more of itself."""
    import gguf as gguf_writer

    real = gguf_writer.GGUFWriter.add_name

    def add(writer: gguf_writer.GGUFWriter, name: str) -> None:
        real(writer, name)
        for key, value in values.items():
            writer.add_string(f"general.{key}", value)

    gguf_writer.GGUFWriter.add_name = add
    try:
        return make_gguf(path, seed=seed)
    finally:
        gguf_writer.GGUFWriter.add_name = real


def placed(done: Imported, home: Path) -> str:
    return done.model.path.relative_to(home / "models").as_posix()


def clip(path: Path, seed: int = 9) -> bytes:
    """A projector."""
    import gguf as gguf_writer
    import numpy

    writer = gguf_writer.GGUFWriter(str(path), "clip")
    writer.add_file_type(1)
    writer.add_tensor("v.x", numpy.random.default_rng(seed).standard_normal((8, 8), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_file_is_linked_and_recorded(home: Path, folder: Path, tiny: bytes) -> None:
    file = put(folder / "any-Q8_0.gguf", tiny)
    done = import_file(file)
    assert (done.how, done.files, placed(done, home)) == ("linked", 1, "local/any/any-Q8_0.gguf")
    assert done.model.path.samefile(file)
    record = records.read(done.model.path)
    assert record and record.sha256 == hashlib.sha256(tiny).hexdigest() and record.source == "imported"
    assert store.resolve("local/any", may_hash=False).sha256 == record.sha256, "it would have to be hashed again"
    assert sorted(path.name for path in done.model.path.parent.iterdir()) == ["any-Q8_0.gguf", "any-Q8_0.gguf.json"]
    assert import_file(file) == Imported(store.find("local/any"), None)
    elsewhere = put(folder / "other name.gguf", tiny)
    assert import_file(elsewhere).model.path == done.model.path, "the same bytes were taken in twice"
    assert import_file(done.model.path).how is None, "a file of the store was imported into it"


def test_a_linked_file_that_its_program_rewrites_is_refused(home: Path, folder: Path, tiny: bytes) -> None:
    file = put(folder / "any-Q8_0.gguf", tiny)
    model = import_file(file).model
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"x")
    os.utime(file, (1, 1))
    with pytest.raises(DamagedFile, match="sha256"):
        store.resolve(model.name)


@pytest.mark.parametrize("blocked", ["link", "link and clone"])
def test_what_cannot_be_linked_is_cloned_or_copied(
    home: Path, folder: Path, bigger: bytes, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    file = put(folder / "any-Q8_0.gguf", bigger)
    monkeypatch.setattr(os, "link", refuse)
    if "clone" in blocked:
        monkeypatch.setattr(copying, "_clone", refuse)
    told: list[str] = []
    done = import_file(file, on_progress=lambda state: told.append(f"{state.source} {state.done}"))
    assert done.how in ({"cloned", "copied"} if blocked == "link" else {"copied"})
    assert done.model.path.read_bytes() == bigger and not done.model.path.samefile(file)
    assert done.model.path.stat().st_mode & 0o777 == 0o600
    assert told[0].startswith("reading and hashing")
    if done.how == "copied":
        assert told[-1] == f"copying {len(bigger)}"


def test_copy_shares_nothing(home: Path, folder: Path, tiny: bytes) -> None:
    file = put(folder / "any-Q8_0.gguf", tiny)
    done = import_file(file, copy=True)
    assert done.how == "copied" and not done.model.path.samefile(file)


def test_a_copy_that_fails_leaves_nothing(
    home: Path, folder: Path, bigger: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(folder / "any-Q8_0.gguf", bigger)

    def left() -> list[str]:
        return [path.name for path in (home / "models").rglob("*")]

    with pytest.raises(Interrupted):
        calls = iter(range(100))
        import_file(file, copy=True, cancelled=lambda: next(calls) > 6)
    assert left() == []
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(FetchError, match="too little room"):
        import_file(file, copy=True)
    assert left() == []
    monkeypatch.undo()
    monkeypatch.setenv("LOCALCHAT_HOME", str(home))
    forget()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "publish", full)
    with pytest.raises(FetchError, match="is full"):
        import_file(file, copy=True)
    assert left() == []


def test_a_file_that_changes_while_it_is_read_is_refused(home: Path, folder: Path, tiny: bytes) -> None:
    file = put(folder / "any-Q8_0.gguf", tiny)

    def touch(_: object) -> None:
        file.write_bytes(tiny + b"more")

    with pytest.raises(DamagedFile, match="changed while it was read"):
        import_file(file, on_progress=touch)
    assert store.installed() == []


def test_a_link_is_followed(home: Path, folder: Path, tiny: bytes) -> None:
    real = put(folder / "deep" / "real.gguf", tiny)
    link = folder / "Nice-Q8_0.gguf"
    link.symlink_to(real)
    done = import_file(link)
    assert done.model.path.name == "Nice-Q8_0.gguf" and not done.model.path.is_symlink()
    assert done.model.path.samefile(real)


def test_where_it_goes(home: Path, folder: Path, tiny: bytes, offer: Offer) -> None:
    def take(name: str, content: bytes, repo: str = "") -> str:
        return placed(import_file(put(folder / name, content), repo=repo), home)

    offer(tiny)
    assert take("whatever.gguf", tiny) == f"{REPO}/{FILE}", "the catalogue knows these bytes"
    scratch = folder / "scratch"
    told = with_metadata(scratch, organization="Maker", basename="Thing", size_label="4B")
    assert take("thing-Q8_0.gguf", told) == "Maker/Thing-4B/thing-Q8_0.gguf"
    url = with_metadata(scratch, seed=6, repo_url="https://hub.example/Someone/Thing-GGUF/")
    assert take("thing.gguf", url) == "Someone/Thing-GGUF/thing-Q8_0.gguf"
    rude = with_metadata(scratch, seed=7, organization="../..", basename="/etc", repo_url="https://x/../../y")
    assert take("rude-Q8_0.gguf", rude) == "local/rude/rude-Q8_0.gguf"
    said = make_gguf(scratch, seed=8)
    assert take("said-Q8_0.gguf", said, repo="my/own") == "my/own/said-Q8_0.gguf"
    blank = make_gguf(scratch, seed=10, name="A Fine Model")
    digest = hashlib.sha256(blank).hexdigest()
    assert take(f"sha256-{digest}", blank) == "local/A-Fine-Model/A-Fine-Model-Q8_0.gguf"


def test_a_file_cannot_talk_itself_into_a_place_of_the_catalogue(
    home: Path, folder: Path, tiny: bytes, offer: Offer
) -> None:
    offer(tiny)
    impostor = with_metadata(folder / "scratch", repo_url=f"https://hub.example/{REPO}")
    done = import_file(put(folder / FILE, impostor))
    assert placed(done, home) == f"local/tiny/{FILE}" and done.model.name != "tiny"
    with pytest.raises(NoSuchModel):
        store.resolve("tiny")
    other = with_metadata(folder / "scratch", seed=31)
    for repo in (REPO, REPO.upper(), REPO.lower()):
        with pytest.raises(UsageError, match="is the place of tiny"):
            import_file(put(folder / FILE, other), repo=repo)


def test_another_file_in_the_way_stays(home: Path, folder: Path, tiny: bytes) -> None:
    import_file(put(folder / "any-Q8_0.gguf", tiny))
    other = make_gguf(folder / "scratch", seed=3)
    file = put(folder / "new" / "any-Q8_0.gguf", other)
    with pytest.raises(UsageError, match="--name"):
        import_file(file, repo="local/any")
    assert import_file(file).model.path.parent.name == "any-2"
    assert store.resolve("local/any").sha256 == hashlib.sha256(tiny).hexdigest()


def test_a_damaged_copy_is_replaced(home: Path, folder: Path, tiny: bytes) -> None:
    model = import_file(put(folder / "any-Q8_0.gguf", tiny), copy=True).model
    model.path.write_bytes(tiny[:-1] + b"x")
    assert import_file(folder / "any-Q8_0.gguf").how == "linked"
    assert store.resolve("local/any").path.read_bytes() == tiny


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("absent.gguf", None, NoSuchModel, "no file"),
        ("x.gguf", b"", DamagedFile, "too short"),
        ("x.gguf", b"#!/bin/sh\n" * 10, DamagedFile, "not a GGUF"),
        ("x.gguf.partial", b"GGUF", DamagedFile, "not finished"),
        ("sha256-00-partial", b"GGUF", DamagedFile, "not finished"),
        ("sha256-" + "0" * 64, "tiny", DamagedFile, "its name"),
        ("m-00001-of-00002.gguf", "tiny", DamagedFile, "missing"),
        ("cut.gguf", "cut", DamagedFile, "cut short"),
    ],
)
def test_what_is_no_model(
    home: Path, folder: Path, tiny: bytes, name: str, content: bytes | str | None, kind: type[LocalchatError], says: str
) -> None:
    if content is not None:
        put(folder / name, {"tiny": tiny, "cut": tiny[:-9]}.get(content, content))  # type: ignore[arg-type]
    with pytest.raises(kind, match=says) as refused:
        import_file(folder / name)
    assert ":" in refused.value.message, "it says nothing to do"
    assert not (home / "models").exists() or not list((home / "models").rglob("*.gguf"))


def test_folders_and_pipes_are_no_models(home: Path, folder: Path, tiny: bytes) -> None:
    put(folder / "a.gguf", tiny)
    with pytest.raises(UsageError, match=r"is a folder.*a\.gguf"):
        import_file(folder)
    os.mkfifo(folder / "pipe.gguf")
    with pytest.raises(UsageError, match="not a plain file"):
        import_file(folder / "pipe.gguf")
    loop = folder / "loop.gguf"
    loop.symlink_to(loop)
    with pytest.raises(NoSuchModel):
        import_file(loop)


def test_all_parts_and_the_projector_come_along(
    home: Path, folder: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = copying.place

    def noted(source: Path, target: Path, **options: object) -> object:
        assert store.installed() == [], "it was seen as a model before it was whole"
        order.append(target.name)
        return real(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "place", noted)
    parts = [tiny, make_gguf(folder / "scratch", seed=12)]
    (folder / "scratch").unlink()
    for number, content in enumerate(parts, 1):
        put(folder / f"big one-Q8_0-0000{number}-of-00002.gguf", content)
    clip(folder / "mmproj-big-BF16.gguf")
    clip(folder / "mmproj-big-F16.gguf")
    done = import_file(folder / "big one-Q8_0-00002-of-00002.gguf", repo="a/b")
    assert done.files == 3
    there = sorted(path.name for path in done.model.path.parent.glob("*.gguf"))
    assert there == [
        "big-one-Q8_0-00001-of-00002.gguf",
        "big-one-Q8_0-00002-of-00002.gguf",
        "mmproj-big-F16.gguf",
    ]
    assert sorted(order) == there and order[-1] == there[0]
    assert store.resolve("a/b", may_hash=False).size == sum(map(len, parts))
    assert import_file(folder / "big one-Q8_0-00001-of-00002.gguf").how is None
    with pytest.raises(UsageError, match="is a projector"):
        import_file(folder / "mmproj-big-F16.gguf")


def test_in_a_folder_of_many_models_only_its_own_projector_comes_along(home: Path, folder: Path, tiny: bytes) -> None:
    seeing = put(folder / "seer-7b-Q8_0.gguf", tiny)
    blind = put(folder / "bat-1b-Q8_0.gguf", make_gguf(folder / "scratch", seed=13))
    (folder / "scratch").unlink()
    clip(folder / "mmproj-seer-7b-f16.gguf")
    assert import_file(blind).files == 1
    assert import_file(seeing).files == 2


def test_a_record_that_comes_along_is_kept_and_checked(home: Path, folder: Path, tiny: bytes) -> None:
    file = put(folder / "someone" / "thing" / "any-Q8_0.gguf", tiny)
    origin = records.make(file, sha256=hashlib.sha256(tiny).hexdigest(), source="hub someone/thing", revision="c0ffee")
    records.write(file, origin)
    model = import_file(file).model
    kept = records.read(model.path)
    assert kept and (kept.source, kept.revision) == ("hub someone/thing", "c0ffee")
    assert placed(Imported(model, None), home) == "someone/thing/any-Q8_0.gguf"
    wrong = put(folder / "b" / "c" / "other-Q8_0.gguf", make_gguf(folder / "scratch", seed=14))
    records.write(wrong, msgspec.structs.replace(origin))
    with pytest.raises(DamagedFile, match="the record beside it"):
        import_file(wrong)


def test_a_place_that_is_being_fetched_is_left_alone(home: Path, folder: Path, tiny: bytes) -> None:
    target = home / "models" / "a" / "b" / "any-Q8_0.gguf"
    target.parent.mkdir(parents=True)
    with FileLock(target.with_name(f".{target.name}.lock")), pytest.raises(FetchError, match="right now"):
        import_file(put(folder / "any-Q8_0.gguf", tiny), repo="a/b")
    assert not target.exists()


def test_what_is_exported_can_be_imported_or_copied(
    home: Path, folder: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(folder / "any-Q8_0.gguf", tiny)
    clip(folder / "mmproj-any-F16.gguf")
    import_file(folder / "any-Q8_0.gguf", repo="someone/thing")
    stick = tmp_path / "stick"
    done = export("someone/thing", stick)
    assert [path.relative_to(stick).as_posix() for path in done.copied] == [
        "someone/thing/any-Q8_0.gguf",
        "someone/thing/mmproj-any-F16.gguf",
    ]
    assert not list(stick.rglob(".*")), "a temporary file was left"
    for path in done.copied:
        assert path.stat().st_nlink == 1 and records.is_current(path)
    assert export("someone/thing", stick).copied == []
    for way in ("import", "copy"):
        other = tmp_path / way
        monkeypatch.setenv("LOCALCHAT_HOME", str(other))
        forget()
        if way == "import":
            import_file(done.copied[0])
        else:
            other.mkdir()
            (stick).rename(other / "models")
        model = store.resolve("someone/thing")
        assert model.path.read_bytes() == tiny and projectors.in_folder(model.path.parent)
        record = records.read(model.path)
        assert record and record.source == "imported"


def test_export_refuses_to_overwrite_and_to_spread_damage(
    home: Path, folder: Path, tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = import_file(put(folder / "any-Q8_0.gguf", tiny), repo="a/b", copy=True).model
    stick = tmp_path / "stick"
    target = put(stick / "a" / "b" / "any-Q8_0.gguf", b"x" * len(tiny))
    with pytest.raises(UsageError, match="--force"):
        export("a/b", stick)
    assert target.read_bytes() == b"x" * len(tiny)
    assert export("a/b", stick, force=True).copied == [target]
    assert target.read_bytes() == tiny
    model.path.write_bytes(tiny[:-1] + b"x")
    with pytest.raises(DamagedFile):
        export("a/b", tmp_path / "second")
    assert not list((tmp_path / "second").rglob("*.gguf"))
    with pytest.raises(UsageError, match="is the disk mounted"):
        export("a/b", tmp_path / "no" / "such" / "folder")
    with pytest.raises(UsageError, match="models folder itself"):
        export("a/b", home / "models")
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    model.path.write_bytes(tiny)
    with pytest.raises(FetchError, match="too little room"):
        export("a/b", tmp_path / "third")


def test_hostile_names_never_leave_the_models_folder(home: Path, folder: Path, tiny: bytes, tmp_path: Path) -> None:
    corpus = list(dict.fromkeys([*HOSTILE_PARTS, *HOSTILE_FILES, *HOSTILE_REPOS, *HOSTILE_MEMBERS]))
    assert len(corpus) >= 120
    file = put(folder / "any-Q8_0.gguf", tiny)
    for name in HOSTILE_REPOS:
        with pytest.raises(UsageError):
            import_file(file, repo=name)
    for name in corpus:
        made = plain(name)
        assert check_part(made) == made and len(made) <= 160
        assert check_file(f"{made}.gguf")
    before = set(tmp_path.rglob("*"))
    seed = 100
    tried = 0
    for name in corpus:
        if "/" in name or "\0" in name or name in ("", ".", "..") or len(os.fsencode(plain_bytes(name))) > 240:
            continue
        seed += 1
        tried += 1
        source = put(folder / str(tried) / plain_bytes(name), make_gguf(folder / "scratch", seed=seed))
        before |= {source, source.parent, folder / "scratch"}
        try:
            done = import_file(source)
        except LocalchatError as error:
            assert error.message.isprintable()
            continue
        assert done.model.path.is_relative_to(home / "models")
        owner, repo, final = done.model.path.relative_to(home / "models").parts
        assert check_part(owner) and check_part(repo) and check_file(final)
        housekeeping.remove_model(housekeeping.removal(done.model))
    assert tried > 50
    assert {path for path in set(tmp_path.rglob("*")) - before if home not in path.parents} == set()


def plain_bytes(name: str) -> str:
    """A name that the file system of a test can hold (lone surrogates are the bytes of another encoding there)."""
    return name.encode("utf-8", "replace").decode()


def test_records_are_data(home: Path, folder: Path, tiny: bytes) -> None:
    """What a record says never becomes a path, and one that says nonsense is none."""
    path = put(home / "models" / "a" / "b" / "c.gguf", tiny)
    store.resolve("a/b")
    good = json.loads(records.record_file(path).read_text())
    for name in [*HOSTILE_PARTS, *HOSTILE_FILES, *HOSTILE_REPOS]:
        if "\ud800" in name:
            continue
        hostile = {**good, "name": name, "source": name, "revision": name, "quantization": name}
        records.record_file(path).write_text(json.dumps(hostile))
        (model,) = store.installed()
        assert model.path == path and store.resolve(model.name).path == path
        records.record_file(path).write_text(json.dumps({**good, "sha256": name}))
        assert records.read(path) is None
    for field, value in {
        "size": -1,
        "mtime_ns": "now",
        "verified": "0001-01-01T00:00:00",
        "sha256": good["sha256"].upper(),
    }.items():
        records.record_file(path).write_text(json.dumps({**good, field: value}))
        assert records.read(path) is None, field
    records.record_file(path).write_text(json.dumps({**good, "name": "x" * (1 << 17)}))
    assert records.read(path) is None


def test_verify_finds_what_size_and_time_do_not_show(home: Path, tiny: bytes) -> None:
    path = put(home / "models" / "a" / "b" / "c.gguf", tiny)
    store.resolve("a/b")
    status = path.stat()
    path.write_bytes(tiny[:-1] + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.resolve("a/b"), "the record fits"
    (found,) = checking.check()
    assert found.state == "damaged" and "localchat rm a/b" in found.problem
    with pytest.raises(DamagedFile):
        store.resolve("a/b")
    path.write_bytes(tiny)
    assert [one.state for one in checking.check("a/b")] == ["ok"]
    assert store.resolve("a/b", may_hash=False)


def test_verify_judges_by_the_catalogue_too(home: Path, tiny: bytes, offer: Offer, tmp_path: Path) -> None:
    offer(tiny)
    path = put(place(home), tiny)
    assert [one.state for one in checking.check()] == ["recorded"]
    record = records.read(path)
    assert record
    records.write(path, msgspec.structs.replace(record, sha256="0" * 64))
    assert [one.state for one in checking.check()] == ["corrected"]
    assert store.resolve("tiny", may_hash=False).sha256 == record.sha256
    path.write_bytes(make_gguf(tmp_path / "scratch", seed=21))
    assert [one.state for one in checking.check()] == ["damaged"]
    records.record_file(path).unlink()
    assert [one.state for one in checking.check()] == ["damaged"]
    made = records.make(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), source="hub", revision="older")
    records.write(path, made)
    assert [one.state for one in checking.check()] == ["other revision"]
    (old,) = housekeeping.leftovers(old_revisions=True)[0]
    assert (old.kind, old.path) == ("old revision", path) and housekeeping.leftovers() == ([], [])
    housekeeping.remove_leftovers([old])
    assert not path.exists() and not records.record_file(path).exists()


def test_verify_misses_a_part(home: Path, tiny: bytes) -> None:
    folder = home / "models" / "a" / "b"
    for number in (1, 2):
        put(folder / f"m-Q8_0-0000{number}-of-00002.gguf", tiny)
    assert [one.state for one in checking.check("a/b")] == ["recorded", "recorded"]
    (folder / "m-Q8_0-00002-of-00002.gguf").unlink()
    found = list(checking.check("a/b"))
    assert [one.state for one in found] == ["ok", "missing"] and "00002-of-00002.gguf is missing" in found[1].problem


def test_leftovers_are_only_what_localchat_named(home: Path, tiny: bytes) -> None:
    seed = 4
    print("seed", seed)
    models = home / "models"
    ours = [
        "a/b/x.gguf.partial",
        "a/b/x.gguf.partial.json",
        "a/b/x.gguf.partial.journal",
        "a/b/x.gguf.partial.json.new",
        "a/b/x.gguf.damaged",
        "a/b/.x.gguf.lock",
        "a/b/.x.gguf.import",
        "a/b/.x.gguf.wheel/pip.log",
        "a/b/.x.gguf.01234567.json",
        "flat.gguf.partial",
    ]
    theirs = ["a/b/keep.txt", "a/b/.hidden", "a/b/x.partial", "a/b/notes.gguf.json", "a/b/c/d/e.gguf.partial", "README"]
    names = [*ours, *theirs]
    random.Random(seed).shuffle(names)
    for name in names:
        put(models / name, b"{}" * 1000)
    for name in ("a/b/.x.gguf.01234567.json",):
        os.utime(models / name, (1, 1))
    put(models / "a/b/.x.gguf.89abcdef.json", b"{}")  # somebody may be writing it
    model = put(models / "a/b/gone.gguf", tiny)
    store.resolve("a/b")
    model.unlink()
    found, busy = housekeeping.leftovers()
    listed = {one.path.relative_to(models).as_posix() for one in found}
    assert listed == {
        *(name.removesuffix("/pip.log") for name in ours),
        "a/b/gone.gguf.json",
    }
    assert busy == []
    with FileLock(models / "a/b/.x.gguf.lock"):
        found, busy = housekeeping.leftovers()
        assert busy == [models / "a/b/x.gguf"] and {one.belongs_to.name for one in found} == {"gone.gguf", "flat.gguf"}
        all_of_them = [*found, housekeeping.Leftover(models / "a/b/x.gguf.partial", "unfinished download", busy[0], 1)]
        housekeeping.remove_leftovers(all_of_them)
        assert (models / "a/b/x.gguf.partial").exists(), "a fetch in progress lost its partial"
    assert housekeeping.remove_leftovers(housekeeping.leftovers()[0]) > 0
    left = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    assert left == {*theirs, "a/b/.x.gguf.89abcdef.json"}


def test_removing_takes_what_only_that_model_needs(home: Path, folder: Path, tiny: bytes) -> None:
    models = home / "models" / "a" / "b"
    for number in (1, 2):
        put(models / f"m-Q8_0-0000{number}-of-00002.gguf", tiny)
    other = put(models / "m-Q4_K_M.gguf", make_gguf(folder / "scratch", seed=15))
    clip(models / "mmproj-F16.gguf")
    put(models / "m-Q8_0-00001-of-00002.gguf.damaged", b"old")
    for model in store.installed():
        store.resolve(model.name)
    housekeeping.remove_model(housekeeping.removal(store.find("a/b:q8_0")))
    assert sorted(path.name for path in models.iterdir()) == ["m-Q4_K_M.gguf", "m-Q4_K_M.gguf.json", "mmproj-F16.gguf"]
    housekeeping.remove_model(housekeeping.removal(store.find(str(other))))
    assert list((home / "models").iterdir()) == [], "empty folders were left"
