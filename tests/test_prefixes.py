"""The prefix cache on disk: what is broken is not believed, the right things go when it is full, nothing raises."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import stat
import time
from array import array
from pathlib import Path

import pytest

from localchat import prefix_file
from localchat.prefix_file import Broken, Entry, Header, key_of
from localchat.prefix_index import CHUNK
from localchat.prefixes import KEPT_DAYS, PrefixStore, known_hashes, remember_hash

CAP = 1 << 30
KEY = key_of(model="a", engine="1")
DAY = 86_400


def header(tokens: list[int], parent: str = "", start: int = 0, **other: object) -> Header:
    fields = {"key": KEY, "model": "a" * 64, "engine": "1", "kind": "chunk", "read_ms": 12.5, **other}
    return Header(parent=parent, start=start, tokens=array("i", tokens).tobytes(), **fields)  # type: ignore[arg-type]


def payload_of(tokens: list[int], size: int = 1000) -> bytes:
    return random.Random(str(tokens)).randbytes(size)


def save(store: PrefixStore, tokens: list[int], **other: object) -> list[Header]:
    """Save a conversation as the engine does: in chunks, each on top of the one before it."""
    headers: list[Header] = []
    for start in range(0, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        headers.append(header(part, headers[-1].id if headers else "", start, **other))
        store.put(headers[-1], payload_of(part))
    return headers


def found(store: PrefixStore, tokens: list[int]) -> int:
    """How many tokens a prompt can have back, each piece read and verified."""
    covered = 0
    for entry in store.index.chain(KEY, array("i", tokens))[0]:
        if store.payload(entry) != payload_of(list(entry.tokens)):
            return covered
        covered = min(entry.end, len(tokens))
    return covered


def conversation(number: int, length: int = 600) -> list[int]:
    return [number * 1000 + index % 997 for index in range(length)]


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path / "prefixes", CAP)


def reopened(store: PrefixStore, **other: object) -> PrefixStore:
    again = PrefixStore(store.folder, store.cap, **other)  # type: ignore[arg-type]
    again.load()
    return again


def test_what_was_saved_is_found_by_another_process_and_belongs_to_this_user_alone(store: PrefixStore) -> None:
    tokens = conversation(1)
    before = os.umask(0)
    saved = save(store, tokens)
    os.umask(before)
    again = reopened(store)
    assert found(again, tokens) == found(store, tokens) == 600
    assert [entry.header for entry in again.index.chain(KEY, array("i", tokens))[0]] == saved
    for path in [store.folder, *store.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_branches_share_what_they_share_and_a_chunk_that_goes_on_otherwise_is_used_as_far_as_it_goes(
    store: PrefixStore,
) -> None:
    tokens = conversation(1, 700)
    branch = [*tokens[:300], *conversation(2, 300)]
    save(store, tokens)
    files = len(store.files())
    assert store.index.chain(KEY, array("i", branch))[1] == 300
    save(store, branch)
    assert len(store.files()) == files + 2
    assert store.index.chain(KEY, array("i", branch))[1] == 600
    assert store.index.chain(KEY, array("i", tokens))[1] == 700
    assert store.index.chain(KEY, array("i", conversation(3)))[1] == 0
    assert store.index.chain(key_of(model="b"), array("i", tokens)) == ([], 0)


def test_a_longer_last_chunk_takes_the_place_of_the_shorter_one(store: PrefixStore) -> None:
    tokens = conversation(1, 400)
    save(store, tokens[:300])
    save(store, tokens)
    assert len(store.files()) == len(store.index.entries()) == 2
    assert found(store, tokens) == found(reopened(store), tokens) == 400


def test_whole_states_are_found_by_all_their_tokens_and_old_ones_go(store: PrefixStore) -> None:
    tokens = conversation(1, 400)
    for length in (100, 200, 300):
        store.put(header(tokens[:length], kind="whole"), b"state")
    store.put(header(tokens[:250], kind="checkpoint"), b"checkpoint")
    kept = reopened(store).index
    assert sorted(entry.end for entry in kept.entries() if entry.header.kind == "whole") == [200, 300]
    for length, expected in ((400, 300), (299, 200), (199, None)):
        entry = kept.longest(KEY, "whole", array("i", tokens[:length]))
        assert (entry.end if entry else None) == expected
    checkpoint = kept.longest(KEY, "checkpoint", array("i", tokens))
    assert checkpoint and checkpoint.end == 250
    around = kept.beginning_with(KEY, "whole", checkpoint.tokens)
    assert around and around.end == 300


def test_no_cut_and_no_flipped_byte_anywhere_is_believed(
    store: PrefixStore, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    saved = header(conversation(1, 40))
    store.put(saved, payload_of([1], 300))
    path = store.files()[0]
    good = path.read_bytes()
    entry = prefix_file.describe(path)
    assert bytes(prefix_file.read(entry)) == payload_of([1], 300)
    cuts = {0, 1, 7, 51, 52, 53, len(good) - 1, len(good) - 32, len(good) - 33, *draw.sample(range(len(good)), 40)}
    damaged = [good[:cut] for cut in cuts] + [good + b"\0", good + good, good[:-100] + bytes(100)]
    for place in [*range(80), *draw.sample(range(len(good)), 150)]:
        damaged.append(good[:place] + bytes([good[place] ^ 1 << draw.randrange(8)]) + good[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(Broken):
            prefix_file.read(entry)
        again = reopened(store)
        for known in again.index.entries():
            assert again.payload(known) is None
        assert not again.index.entries()
        assert not path.exists()
    said = capsys.readouterr().err
    assert said.count("is ignored") == len(said.splitlines()) >= len(damaged) - 5


def test_an_entry_under_anothers_name_or_of_another_engine_or_without_its_parent_is_not_believed(
    store: PrefixStore,
) -> None:
    tokens = conversation(1)
    first, second, _ = (entry.path for entry in sorted(map(prefix_file.describe, _saved(store, tokens)), key=_start))
    second.rename(second.with_name("0" * 32 + ".kv"))
    assert found(reopened(store), tokens) == CHUNK
    assert store.files() == [first], "what was built on it is of no use any more"
    assert not reopened(store, engine="2").index.entries()
    assert not store.files()


def _start(entry: Entry) -> int:
    return entry.header.start


def _saved(store: PrefixStore, tokens: list[int]) -> list[Path]:
    save(store, tokens)
    return store.files()


def test_what_stands_in_the_way_costs_a_line_and_nothing_else(
    store: PrefixStore, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, other = conversation(1), conversation(2)
    place = store.folder / KEY / f"{header(tokens[:CHUNK]).id}.kv"
    place.mkdir(parents=True)
    os.mkfifo(place.with_name("1" * 32 + ".kv"))
    (store.folder / KEY / ("2" * 32 + ".kv")).symlink_to("/nowhere")
    (store.folder / "a file").write_text("hello")
    store.load()
    assert not store.put(header(tokens[:CHUNK]), b"x")
    assert not store.accepts, "after a failure there is a pause"
    assert "nothing more is saved for a minute" in capsys.readouterr().err
    store._quiet_until = 0
    save(store, other)
    assert found(store, other) == 600


def test_a_folder_that_is_a_file_read_only_or_removed_meanwhile_raises_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("hello")
    store = PrefixStore(tmp_path / "file" / "prefixes", CAP)
    store.load()
    assert not store.put(header([1, 2]), b"x")
    assert store.clear() == (0, 0, 0)
    assert not PrefixStore(Path("/proc/prefixes"), CAP).put(header([1, 2]), b"x")

    store = PrefixStore(tmp_path / "prefixes", CAP)
    tokens = conversation(1)
    save(store, tokens)
    for path in store.files():
        path.unlink()
    assert found(store, tokens) == 0
    assert not store.index.entries()
    save(store, tokens)
    assert found(store, tokens) == 600
    last = store.index.chain(KEY, array("i", tokens[: 2 * CHUNK]))[0][-1]
    _remove_all(store.folder)
    assert not store.put(header([1, 2, 3], last.id, last.end), b"x"), "its parent is gone, so it would be of no use"
    save(store, tokens)
    assert found(reopened(store), tokens) == 600
    assert "Traceback" not in capsys.readouterr().err


def _remove_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def _write_under_a_limit(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    store = PrefixStore(folder, CAP)
    assert store.put(header([1, 2, 3]), bytes(1000))
    assert not store.put(header([4, 5, 6]), bytes(100_000))
    assert not store.accepts


def test_a_disk_that_takes_no_more_leaves_no_half_file(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("fork").Process(target=_write_under_a_limit, args=(tmp_path / "p",))
    writer.start()
    writer.join(30)
    assert writer.exitcode == 0
    store = PrefixStore(tmp_path / "p", CAP)
    store.load()
    assert [path.stat().st_size > 1000 for path in store.files()] == [True]
    assert len(store.index.entries()) == 1


def test_a_disk_that_is_nearly_full_is_left_its_room(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(store, conversation(1, 20))
    usage = type("usage", (), {"total": 100 << 30, "free": (1 << 30) + 4000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert not store.put(header([7, 8]), bytes(50_000))
    assert found(store, conversation(1, 20)) == 20, "nothing goes for what would not fit all the same"
    assert "nearly full" in capfd.readouterr().err
    usage.free = 2 << 30
    assert store.put(header([7, 8]), bytes(50_000))


def test_the_cap_holds_and_the_longest_unused_goes_first_leaves_before_their_parents(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path / "prefixes", 60_000)
    for number in range(12):
        save(store, conversation(number, 3 * CHUNK))
        assert sum(path.stat().st_size for path in store.files()) <= store.cap
        lengths = [found(store, conversation(each, 3 * CHUNK)) for each in range(number + 1)]
        assert lengths == sorted(lengths), "what is gone is gone from the oldest, and from its end"
    oldest = next(each for each in range(12) if found(store, conversation(each, 3 * CHUNK)) == 3 * CHUNK)
    tokens = conversation(oldest, 3 * CHUNK)
    store.touch(reversed(store.index.chain(KEY, array("i", tokens))[0]))
    for number in range(12, 18):
        save(store, conversation(number, 3 * CHUNK))
    assert found(store, tokens) == 3 * CHUNK, "it was used"
    assert found(store, conversation(oldest + 1, 3 * CHUNK)) < 3 * CHUNK
    again = reopened(store)
    assert {entry.id for entry in again.index.entries()} == {entry.id for entry in store.index.entries()}


def test_what_is_larger_than_the_cap_and_a_conversation_that_fills_it_alone(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path / "prefixes", 20_000)
    assert not store.put(header([1]), bytes(30_000))
    tokens = conversation(1, 10 * CHUNK)
    save(store, tokens)
    covered = found(store, tokens)
    assert 0 < covered < len(tokens), "its own beginning does not go for its end"
    assert not PrefixStore(tmp_path / "off", 0).put(header([1]), b"x")
    assert not (tmp_path / "off").exists()


def test_a_clock_that_jumps_neither_empties_the_cache_nor_turns_its_order(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        save(store, conversation(number, 20))
    real = time.time_ns()
    now = real - 10 * DAY * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)
    save(store, conversation(3, 20))
    store = reopened(store)  # in the past, all times are still to come
    save(store, conversation(4, 20))
    order = [conversation(number, 20) for number in range(5)]
    assert [list(entry.tokens) for entry in store.index.least_useful_first()] == order
    now = 0  # a machine that woke without the time
    store = reopened(store)
    save(store, conversation(5, 20))
    now = real + DAY * 10**9
    assert [list(entry.tokens) for entry in reopened(store).index.least_useful_first()] == [
        *order,
        conversation(5, 20),
    ]
    now = real + int((KEPT_DAYS + 1) * DAY) * 10**9
    assert not reopened(store).index.entries()
    assert not store.files()


def test_clearing_by_age_and_altogether(store: PrefixStore) -> None:
    save(store, conversation(1, 20))
    save(store, conversation(2, 20))
    old = next(path for path in store.files() if prefix_file.describe(path).tokens[0] == 1000)
    os.utime(old, (time.time() - 3 * DAY,) * 2)
    assert store.clear(unused_days=4)[0] == 0
    assert store.clear(unused_days=2)[0] == 1
    assert (found(store, conversation(1, 20)), found(store, conversation(2, 20))) == (0, 20)
    (store.folder / KEY / ".half.kv.0123").write_bytes(b"somebody's words")
    before = store.cleared
    assert store.clear()[0] == 2
    assert store.cleared > before
    assert store.files() == store.index.entries() == []


def test_what_a_killed_writer_left_goes_after_an_hour(store: PrefixStore) -> None:
    save(store, conversation(1, 20))
    new, old = (store.folder / KEY / f".x.kv.{name}" for name in ("new", "old"))
    new.write_bytes(b"half")
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 3600,) * 2)
    reopened(store)
    assert (new.exists(), old.exists()) == (True, False)


def test_a_removed_model_takes_its_entries_along(store: PrefixStore) -> None:
    save(store, conversation(1))
    save(store, conversation(2), model="b" * 64)
    store.remove_model("b" * 64)
    assert (found(store, conversation(1)), found(store, conversation(2))) == (600, 0)


def test_hashes_of_model_files_are_remembered_and_rubbish_is_not_believed(tmp_path: Path) -> None:
    remember_hash(tmp_path, Path("/m.gguf"), "ab", (1, 2, 3))
    remember_hash(tmp_path, Path("/n.gguf"), "cd", (4, 5, 6))
    assert known_hashes(tmp_path)["/m.gguf"] == ["ab", 1, 2, 3]
    for rubbish in (b"", b"\xff", b"[1]", b'{"a": 1}', b"[" * 100_000):
        (tmp_path / "models.json").write_bytes(rubbish)
        assert known_hashes(tmp_path) == {}


def _write_for_ever(folder: Path, first: int, count: int) -> None:
    store = PrefixStore(folder, 400_000)
    store.load()
    for number in range(first, first + count):
        save(store, conversation(number))


def test_two_processes_write_at_once_and_are_killed_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    context = multiprocessing.get_context("fork")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for round_ in range(5):
        # Some conversations are written by both.
        writers = [context.Process(target=_write_for_ever, args=(folder, start, 10**6)) for start in (0, 1 + round_)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 30
        while not (folder / KEY).exists() or len(list((folder / KEY).iterdir())) < 20 * (round_ + 1):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.random() / 20)
        for writer in writers:
            os.kill(writer.pid or 0, signal.SIGKILL)
            writer.join()
        store = PrefixStore(folder, 400_000)
        store.load()
        assert store.index.entries()
        for entry in store.index.entries():
            assert store.payload(entry) == payload_of(list(entry.tokens)), "what is under its name is whole"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_what_cannot_be_read_just_now_is_there_the_next_time(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    tokens, other = conversation(1), conversation(2)
    first = save(store, tokens)[0]
    save(store, other)
    files = store.files()

    def refuses(path: os.PathLike[str], flags: int) -> int:
        if first.id in os.fspath(path):
            raise OSError(number, os.strerror(number))
        return really(path, flags)

    really = os.open
    with monkeypatch.context() as patch:
        patch.setattr(prefix_file.os, "open", refuses)
        assert found(store, tokens) == 0
        again = reopened(store)
        assert found(again, tokens) == 0
        assert found(again, other) == 600
    said = capsys.readouterr().err.splitlines()
    assert set(said) == {f"prefix cache: {first.id}.kv is ignored: {os.strerror(number)}"}
    assert store.files() == files, "neither it nor what is built on it is removed"
    again.load()
    assert found(again, tokens) == 600


def test_what_another_process_read_and_saved_too_is_the_same_entry(store: PrefixStore) -> None:
    tokens = conversation(1)
    save(store, tokens, read_ms=12.5)
    other = reopened(store)
    save(other, tokens, read_ms=99.0)
    assert found(store, tokens) == found(other, tokens) == 600
    assert len(store.files()) == 3
    # What is another entry under this name is no more believed than before.
    first = min((prefix_file.describe(path) for path in store.files()), key=_start)
    prefix_file.write(first.path, header(conversation(2)[:CHUNK]), payload_of(conversation(2)[:CHUNK]))
    with pytest.raises(Broken, match="another entry"):
        prefix_file.read(first)
