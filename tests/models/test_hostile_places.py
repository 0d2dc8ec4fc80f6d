"""What lies in or beside the store, or comes from a hub, may be made to break whoever looks at it: nothing may."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelInfo

from localchat import machine
from localchat.errors import DamagedFile, FetchError, LocalchatError, UsageError
from localchat.models import about, catalogue, fetch, names, overview, plan, records, repos, store
from localchat.models.assess import Circumstances
from localchat.models.catalogue import Hub
from localchat.models.repos import RemoteFile, Repo
from localchat.models.transfer import connection, transport
from localchat.models.upkeep.exporting import export
from localchat.models.upkeep.importing import import_file
from localchat.models.wanted import of_repo
from localchat.paths import paths
from tests.conftest import run_cli
from tests.loopback_hub import LoopbackHub
from tests.models.conftest import FILE, REPO, forget

DEEP = b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"


def put(home: Path, content: bytes, name: str | bytes = FILE) -> Path:
    folder = home / "models" / REPO
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / os.fsdecode(name)
    path.write_bytes(content)
    return path


def test_json_that_is_too_deep_is_no_json(home: Path, tiny: bytes) -> None:
    path = put(home, tiny)
    records.record_file(path).write_bytes(DEEP)
    for kept in ("machine.json", "headers.json", "catalogue.json"):
        (paths().state / kept).write_bytes(DEEP)
    catalogue._catalogue.cache_clear()
    assert records.read(path) is None
    assert machine.load() is None
    assert [row.path for row in overview.rows(Circumstances.now()) if row.installed] == [str(path)]


@pytest.mark.parametrize("verified", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_record_from_the_end_of_the_calendar_is_none(home: Path, tiny: bytes, verified: str) -> None:
    path = put(home, tiny)
    status = path.stat()
    claim = {
        "sha256": "a" * 64,
        "size": len(tiny),
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "source": "x",
    }
    records.record_file(path).write_text(json.dumps({**claim, "verified": verified}))
    assert records.read(path) is None
    records.record_file(path).write_text(json.dumps({**claim, "verified": "2026-01-01T00:00:00Z"}))
    assert records.is_current(path)


def test_a_name_that_is_no_text_breaks_no_list(home: Path, tiny: bytes) -> None:
    try:
        put(home, tiny, b"\xff\xfe.gguf")
    except OSError:
        pytest.skip("this file system takes only names that are text")
    for arguments in (
        ["models"],
        ["models", "--json"],
        ["verify", "--json"],
        ["du", "--json"],
        ["show", REPO, "--json"],
    ):
        done = run_cli(*arguments, home=home)
        assert done.returncode == 0, done.stderr
        if "--json" in arguments:
            assert "\ufffd" in done.stdout or arguments[0] == "du"
            json.loads(done.stdout)
    asked = run_cli("ask", "-m", os.fsdecode(os.fsencode(home / "models" / REPO) + b"/\xff\xfe.gguf"), "hi", home=home)
    assert asked.returncode == 2 and "rename" in asked.stderr


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def header(**numbers: int) -> bytes:
    """A GGUF without tensors that says these numbers of its model."""
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    keys.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1) + text("a"))
    keys += [text(f"llama.{key}") + struct.pack("<IQ", 10, number) for key, number in numbers.items()]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)


@pytest.mark.parametrize(
    "numbers",
    [
        {"block_count": 2, "embedding_length": 64, "nextn_predict_layers": 2},
        {"block_count": 2, "embedding_length": (1 << 64) - 1, "context_length": (1 << 64) - 1},
        {"block_count": 2, "embedding_length": 64, "feed_forward_length": (1 << 64) - 1},
    ],
)
def test_impossible_numbers_in_a_header_break_no_list(home: Path, numbers: dict[str, int]) -> None:
    put(home, header(**numbers))
    for _ in range(2):  # the second time from what was kept
        rows = [row for row in overview.rows(Circumstances.now()) if row.installed]
        assert [row.tokens_per_second for row in rows] == [None]
    assert about._read().files


def test_countless_files_and_parts_are_not_all_looked_at() -> None:
    assert names.split_siblings("m-00001-of-99999.gguf") == ["m-00001-of-99999.gguf"]
    assert len(names.split_siblings("m-00001-of-00300.gguf")) == 300
    siblings = [{"rfilename": f"m{number}-00001-of-01024.gguf"} for number in range(100_000)]
    info = ModelInfo(id="o/r", siblings=siblings)
    assert len(repos._repo(info, "o/r").files) == repos._MOST_FILES


def test_offline_a_damaged_file_is_not_fetched_anew(
    home: Path, tiny: bytes, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = hub.add(REPO, FILE, tiny)
    wanted = of_repo("tiny", REPO, "main", FILE, len(tiny), offered.sha256)
    fetch.fetch_files([wanted])
    path = paths().models / wanted.place
    path.write_bytes(tiny[:-1] + b"\0" if tiny[-1:] != b"\0" else tiny[:-1] + b"\1")
    hub.requests.clear()
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    with pytest.raises(FetchError, match="stay offline"):
        fetch.fetch_files([wanted])
    with pytest.raises(transport.TransportError, match="stay offline"):
        transport.request("GET", "https://example.invalid/", {})
    assert hub.requests == []


def test_what_replaces_another_file_is_whole_wherever_it_is_killed(
    home: Path, tiny: bytes, bigger: bytes, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = hub.add(REPO, FILE, tiny)
    wanted = of_repo("tiny", REPO, "main", FILE, len(tiny), old.sha256)
    fetch.fetch_files([wanted])
    new = hub.add(REPO, FILE, bigger)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, "make", killed)
        fetch.fetch_files([replace(wanted, size=len(bigger), sha256=new.sha256)])
    forget()
    assert store.resolve(str(paths().models / wanted.place)).sha256 == new.sha256


def test_a_folder_with_the_stores_own_names_in_it(
    home: Path, tiny: bytes, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person who is in the root of a USB stick, where `export` put the same folders as the store has."""
    offered = hub.add(REPO, FILE, tiny)
    wanted = of_repo("tiny", REPO, "main", FILE, len(tiny), offered.sha256)
    here = fetch.fetch_files([wanted])
    stick = tmp_path / "stick"
    stick.mkdir()
    export(here.name, stick)
    monkeypatch.chdir(stick)
    assert fetch.fetch_files([wanted]).path == here.path
    for file in (here.path, records.record_file(here.path)):
        file.unlink()
    assert import_file(Path(REPO, FILE)).model.path == here.path


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HTTPS_PROXY", "nothing://here", "the proxy that is set"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "SOCKS"),
        ("SSL_CERT_FILE", "/not/there", "SSL_CERT_FILE"),
    ],
)
def test_an_environment_that_cannot_be_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    connection._certificates.cache_clear()
    try:
        with pytest.raises(transport.TransportError, match=said):
            transport.request("GET", "https://127.0.0.1:1/a.gguf", {})
    finally:
        connection._certificates.cache_clear()
    with pytest.raises(FetchError):
        repos.listing("owner/repo")


@pytest.mark.parametrize("endpoint", ["http://[bad", "nothing", "http://elsewhere.example"])
def test_an_endpoint_that_must_not_be_asked(home: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(LocalchatError, match="HF_ENDPOINT"):
        repos.listing("owner/repo")


@pytest.mark.parametrize("name", ["https://[bad/x.gguf", "https://host:99999999/x.gguf"])
def test_addresses_that_are_none(home: Path, name: str) -> None:
    with pytest.raises((UsageError, FetchError)):
        plan.make(name, Circumstances.now())


def test_hostile_folders_and_commits_of_a_repo(home: Path) -> None:
    repo = Repo("o/r", "a" * 40, (RemoteFile("b c/m-Q4_0.gguf", 5, None), RemoteFile("../../mmproj-m.gguf", 5, None)))
    assert plan.offers(repo) == [] and plan._projector(repo) is None
    with pytest.raises(UsageError):
        Hub("o/r", "../../x", "m.gguf")


def test_a_file_that_is_still_being_written_is_not_recorded(home: Path, tiny: bytes) -> None:
    path = put(home, tiny)

    def written_to(_done: int, _total: int) -> None:
        os.utime(path, ns=(1, 1))

    with pytest.raises(DamagedFile, match="changed while it was read"):
        store.resolve(str(path), on_hashed=written_to)
    assert records.read(path) is None
    assert store.resolve(str(path)).sha256


def test_a_hash_that_could_not_be_checked_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_shape_of", lambda *_: (None, None, None))
    parts = tuple(RemoteFile(f"m-Q8_0-0000{number}-of-00002.gguf", 5, None) for number in (1, 2))
    now = Circumstances.now()
    with pytest.raises(UsageError, match="2 parts"):
        plan.of_repo(Repo("o/r", "a" * 40, parts), now, sha256="0" * 64)
    with pytest.raises(UsageError, match="leave out --sha256"):
        plan.make("smollm2-135m", now, sha256="0" * 64)
    one = plan.of_repo(Repo("o/r", "a" * 40, (RemoteFile("m-Q8_0.gguf", 5, None),)), now, sha256="0" * 64)
    assert one.files[0].sha256 == "0" * 64
