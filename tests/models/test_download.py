"""Fetching over the web, against a real hub on this machine that misbehaves in every way a network does."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from localchat.errors import FetchError, Interrupted
from localchat.models import store
from localchat.models.fetch import FetchProgress, ensure
from localchat.models.store import ModelFile
from localchat.models.transfer import download, partial, progress, ranges, retries, transport
from tests.conftest import wait_for
from tests.loopback_hub import COMMIT, Fault, LoopbackHub, running_hub
from tests.models.conftest import FILE, REPO, Offer, forget, hub_source, make_gguf, place

pytestmark = pytest.mark.usefixtures("quick")


def fetched(home: Path, content: bytes, model: ModelFile, path: Path | None = None) -> None:
    """Hold a fetched model against what it should be, and the folder against leftovers."""
    assert model.path == (path or place(home)) and model.path.read_bytes() == content
    assert model.sha256 == hashlib.sha256(content).hexdigest()
    assert sorted(path.name for path in model.path.parent.iterdir()) == [FILE, FILE + ".json"]


def leave_partial(home: Path, content: bytes, done: int) -> None:
    """Put a partial as an interrupted run of localchat 0.1 left it: in one piece, without a journal."""
    path = place(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(FILE + ".partial").write_bytes(content[:done])
    pin = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    path.with_name(FILE + ".partial.json").write_text(json.dumps(pin))


def test_a_model_is_fetched_recorded_and_then_just_there(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer
) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    steps: list[FetchProgress] = []
    model = ensure("tiny", on_progress=steps.append)
    fetched(home, tiny, model)
    assert steps[-1].done == steps[-1].total == len(tiny) and steps[-1].source == f"hub {REPO}"
    assert model.source == f"hub {REPO}"
    record = json.loads(place(home).with_name(FILE + ".json").read_text())
    assert record["revision"] == COMMIT and record["name"] == "tiny:q8_0" and record["quantization"] == "Q8_0"
    assert place(home).stat().st_mode & 0o777 == 0o600
    for folder in place(home).parents[:3]:
        assert folder.stat().st_mode & 0o777 == 0o700
    # The bytes were asked for at the commit that was pinned, not at whatever "main" is by then.
    assert f"/resolve/{COMMIT}/" in hub.asked("GET")[0].path
    before = len(hub.requests)
    assert ensure("tiny") == ensure(None) == model
    assert len(hub.requests) == before


def test_without_a_pin_the_hubs_own_hash_is_taken(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny, pinned=False)
    fetched(home, tiny, ensure("tiny"))


def test_without_any_promise_nothing_is_fetched(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    hub.faults.append(Fault("no_promise", times=9, methods=("HEAD",)))
    offer(tiny, pinned=False)
    # The entity tag alone still tells the hash of a large file; the size is in the answer itself.
    fetched(home, tiny, ensure("tiny"))
    hub.files[REPO, FILE].content = tiny
    place(home).unlink()
    place(home).with_name(FILE + ".json").unlink()
    hub.faults[:] = [Fault("html", times=9, methods=("HEAD",))]
    forget()
    with pytest.raises(FetchError, match="could not be verified"):
        ensure("tiny")


def test_a_hub_with_another_file_is_left_before_any_byte(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer
) -> None:
    hub.add(REPO, FILE, tiny[:-1] + b"x")
    offer(tiny)
    with pytest.raises(FetchError, match="another file under this name"):
        ensure("tiny")
    hub.add(REPO, FILE, tiny + b"x")
    with pytest.raises(FetchError):
        ensure("tiny")
    assert not hub.asked("GET")


RECOVERED = {
    "503": [Fault("status", status=503)],
    "500 twice": [Fault("status", times=2, status=500)],
    "503 for HEAD": [Fault("status", status=503, methods=("HEAD",))],
    "429 with seconds": [Fault("status", status=429, retry_after="0")],
    "429 with a date": [Fault("status", status=429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")],
    "429 with nonsense": [Fault("status", status=429, retry_after="soon")],
    "429 without": [Fault("status", status=429)],
    "408": [Fault("status", status=408)],
    "reset at once": [Fault("reset", at=0)],
    "reset in mid-body": [Fault("reset", at=1_000_000)],
    "resets all the way": [Fault("reset", at=600_000, times=6)],
    "closed too early": [Fault("short", at=1_500_000)],
    "longer": [Fault("longer")],
    "wrong bytes once": [Fault("wrong")],
    "whole file for a range": [Fault("reset", at=1_000_000), Fault("ignore_range")],
    "another range": [Fault("reset", at=1_000_000), Fault("bad_range")],
    "403 in mid-transfer": [Fault("reset", at=1_000_000), Fault("status", status=403)],
    "416": [Fault("reset", at=1_000_000), Fault("status", status=416)],
}


@pytest.mark.parametrize("name", RECOVERED)
def test_what_is_survived(name: str, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, bigger)
    hub.faults += [Fault(**vars(fault)) for fault in RECOVERED[name]]
    offer(bigger)
    fetched(home, bigger, ensure("tiny"))
    assert not any(fault.times for fault in hub.faults), "the fault was never met"


GIVEN_UP = {
    "no such file": (
        Fault("status", status=404, error_code="EntryNotFound", methods=("HEAD",)),
        "no longer has this file",
    ),
    "no such revision": (
        Fault("status", status=404, error_code="RevisionNotFound", methods=("HEAD",)),
        "this revision",
    ),
    "no such repo": (Fault("status", status=401, error_code="RepoNotFound", methods=("HEAD",)), "no such repo"),
    "gated": (Fault("status", status=403, error_code="GatedRepo", methods=("HEAD",)), "licence accepted first"),
    "401": (Fault("status", status=401, methods=("HEAD",)), "refused the token"),
    "403": (Fault("status", status=403), "does not allow"),
    "404 for the bytes": (Fault("status", status=404), "no such file"),
    "503 for ever": (Fault("status", status=503), "answered 503"),
    "429 for an hour": (Fault("status", status=429, retry_after="3600"), "come back in 3,600 s"),
    "429 until a date": (
        Fault(
            "status",
            status=429,
            retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=99_000), usegmt=True),
        ),
        "come back in 9",
    ),
    "wrong bytes": (Fault("wrong"), "other bytes than expected, twice"),
    "wrong size": (Fault("truncate", at=2_000_000), "bytes where"),
    "web page": (Fault("html"), "web page"),
    "compressed": (Fault("gzip"), "compressed"),
    "resets without end": (Fault("reset", at=0), "broke"),
    "redirect loop": (Fault("redirect", location="/again"), "redirects more than 5 times"),
    "redirect to plain http": (Fault("redirect", location="http://mirror.invalid/x"), "only https is safe"),
    "redirect to a file": (Fault("redirect", location="file:///etc/passwd"), "only https is safe"),
    "redirect to nonsense": (Fault("redirect", location="https://[half/x"), "an address that is none"),
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_is_given_up(name: str, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    fault, reason = GIVEN_UP[name]
    hub.add(REPO, FILE, bigger)
    if name == "redirect loop":
        hub.files["x/y", "z"] = hub.files[REPO, FILE]
        fault = Fault("redirect", location=f"{hub.url}/{REPO}/resolve/{COMMIT}/{FILE}")
    hub.faults.append(Fault(**{**vars(fault), "times": 50}))
    offer(bigger)
    began = time.monotonic()
    with pytest.raises(FetchError) as failed:
        ensure("tiny")
    assert reason in failed.value.message
    assert failed.value.exit_code == 4 and time.monotonic() - began < 60
    # What a person without a network needs to know.
    for fact in (
        FILE,
        f"{len(bigger):,} bytes",
        hashlib.sha256(bigger).hexdigest(),
        str(place(home).parent),
        "-m path",
    ):
        assert fact in failed.value.message
    assert not place(home).exists() and store.installed() == []


def test_a_hub_that_is_not_there_is_left_at_once(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tiny)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    waits: list[float] = []
    monkeypatch.setattr(retries.Patience, "pause_s", lambda *_: waits.append(1.0) or 1.0)
    with pytest.raises(FetchError, match="cannot be reached"):
        ensure("tiny")
    assert not waits, "it was asked again"


def test_a_silent_name_server_costs_five_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """No system can interrupt a name look-up, so it must not be waited for."""
    monkeypatch.setattr(transport, "CONNECT_S", 0.3)
    over = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: over.wait(60))
    began = time.monotonic()
    with pytest.raises(transport.TransportError, match="did not answer within") as failed:
        transport.request("HEAD", "https://hub.invalid/x", {})
    assert not failed.value.reached and time.monotonic() - began < 20
    over.set()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("drip", pause=0.01, times=50), "nearly stopped sending"),
        (Fault("hang", pause=60, times=50), "sent nothing"),
    ],
)
def test_a_stalled_transfer_is_given_up(
    fault: Fault,
    reason: str,
    home: Path,
    hub: LoopbackHub,
    bigger: bytes,
    offer: Offer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = ranges.request
    waits = 3.0 if fault.kind == "drip" else 1.0
    monkeypatch.setattr(ranges, "request", lambda *given, **more: ask(*given, **{**more, "stall_s": waits}))
    hub.add(REPO, FILE, bigger)
    hub.faults.append(Fault(**vars(fault)))
    offer(bigger)
    began = time.monotonic()
    with pytest.raises(FetchError, match=reason):
        ensure("tiny")
    assert time.monotonic() - began < 50
    wait_for(lambda: len(hub.asked("GET")) >= 2)
    assert len(hub.asked("GET")) == 2, "two stalls of half a minute are enough"


def test_a_hub_that_says_nothing_is_left_after_one_wait(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STALL_S", 0.3)
    hub.add(REPO, FILE, tiny)
    hub.faults.append(Fault("hang", pause=60, times=9, methods=("HEAD",)))
    offer(tiny)
    with pytest.raises(FetchError, match="sent nothing"):
        ensure("tiny")
    wait_for(lambda: hub.requests)
    assert len(hub.requests) == 1


class Sender:
    """Sends pieces of `size` bytes, each `pause` seconds after the one before, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int, pause: float) -> None:
        self.now, self.stall_s = 1000.0, transport.STALL_S
        self._size, self._pause = size, pause
        monkeypatch.setattr(transport, "time", self)
        self.reply = transport.Reply("", 200, {}, self)  # type: ignore[arg-type]

    def monotonic(self) -> float:
        return self.now

    def next(self, deadline: float) -> bytes:
        """As `_Worker`: waits until the deadline, and no longer; it looks at the clock where nothing came for a bit."""
        self.now += self._pause
        if self._pause > transport._POLL_S and self.now > deadline:
            raise transport.TransportError("nothing came", reached=True, stalled=True)
        return bytes(self._size)


@pytest.mark.parametrize("pieces", [1, 8, 1024])
def test_a_slow_but_steady_transfer_is_not_a_stall(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(monkeypatch, transport.STALL_BYTES // pieces, (transport.STALL_S - 1) / pieces)
    chunks = sender.reply.chunks()
    assert sum(len(next(chunks)) for _ in range(100 * pieces)) == 100 * transport.STALL_BYTES


@pytest.mark.parametrize("pieces", [1, 8, 1024])
def test_a_steady_transfer_that_is_too_slow_is_one(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(monkeypatch, transport.STALL_BYTES // pieces, (transport.STALL_S + 1) / pieces)
    with pytest.raises(transport.TransportError) as failed:
        list(sender.reply.chunks())
    assert failed.value.stalled and sender.now < 1000 + 2 * transport.STALL_S
    assert ("nearly stopped" in failed.value.reason) == (pieces > 1)


def test_the_speed_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    steps: list[FetchProgress] = []
    meter = progress.Meter("hub", 100_000_000, steps.append)
    meter.start(40_000_000)
    for second in range(1, 11):
        now += 1
        meter.at(40_000_000 + second * 2_000_000)
    assert steps[0].bytes_per_second == 0 and steps[0].eta is None, "what was there before is no speed"
    assert steps[-1].bytes_per_second == 2e6 and steps[-1].eta == 20


def test_it_goes_on_where_it_stopped(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, bigger)
    offer(bigger)
    leave_partial(home, bigger, 3_000_000)
    steps: list[FetchProgress] = []
    fetched(home, bigger, ensure("tiny", on_progress=steps.append))
    (get,) = hub.asked("GET")
    assert get.headers["range"] == "bytes=3000000-"
    assert any("going on after 3 MB" in step.notice for step in steps)


def test_a_file_that_changed_meanwhile_is_fetched_anew(
    home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
) -> None:
    """If-Range with the entity tag of the first half: the answer is the whole new file, which is not the pinned one."""
    hub.add(REPO, FILE, bigger)
    hub.faults += [Fault("reset", at=1_000_000), Fault("changed")]
    offer(bigger)
    with pytest.raises(FetchError):
        ensure("tiny")
    asked = [get.headers for get in hub.asked("GET")]
    assert asked[1]["if-range"] == f'"{hashlib.sha256(bigger).hexdigest()}"'
    assert not place(home).exists()


def test_a_partial_with_garbage_is_set_aside_and_fetched_again(
    home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
) -> None:
    hub.add(REPO, FILE, bigger)
    offer(bigger)
    leave_partial(home, bytes(bigger[:100]) + bytes(2_000_000), 2_000_000)
    pin = {"sha256": hashlib.sha256(bigger).hexdigest(), "size": len(bigger)}
    place(home).with_name(FILE + ".partial.json").write_text(json.dumps(pin))
    fetched(home, bigger, ensure("tiny"))
    assert ["range" in get.headers for get in hub.asked("GET")] == [True, False]


@pytest.mark.parametrize("sidecar", [b"", b"{}", b'{"sha256": "00", "size": 5}', b"\xff"])
def test_a_partial_of_something_else_is_not_gone_on_with(
    sidecar: bytes, home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer
) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    leave_partial(home, tiny, 1000)
    place(home).with_name(FILE + ".partial.json").write_bytes(sidecar)
    fetched(home, tiny, ensure("tiny"))
    assert "range" not in hub.asked("GET")[0].headers


def test_a_complete_partial_needs_no_bytes(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    leave_partial(home, tiny, len(tiny))
    fetched(home, tiny, ensure("tiny"))
    assert not hub.asked("GET")


def test_a_token_stays_with_its_host(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    with running_hub() as storage:
        storage.add("cdn/x", FILE, tiny)
        hub.faults.append(Fault("redirect", location=storage.address("cdn/x", FILE), methods=("GET", "HEAD"), times=9))
        fetched(home, tiny, ensure("tiny"))
        assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.requests)
        assert storage.requests and not any("authorization" in request.headers for request in storage.requests)


def test_a_redirect_within_the_hub_is_followed(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    hub.add("renamed/Repo", FILE, tiny)
    target = f"/renamed/Repo/resolve/main/{FILE}"
    hub.faults += [Fault("redirect", location=target, methods=("HEAD",)), Fault("redirect", location=target)]
    offer(tiny)
    fetched(home, tiny, ensure("tiny"))


def test_the_hub_is_told_nothing_but_what_it_needs(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    ensure("tiny")
    assert [request.method for request in hub.requests] == ["HEAD", "GET"]
    for request in hub.requests:
        assert request.headers["user-agent"].startswith("localchat/")
        assert "authorization" not in request.headers and request.headers["accept-encoding"] == "identity"


def test_mirror_after_hub(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    with running_hub() as mirror:
        mirror.add("m/m", FILE, tiny)
        source = f'kind = "mirror"\nurl = "{mirror.url}/m/m/resolve/main/{{file}}"'
        offer(tiny, hub_source(), source)
        steps: list[FetchProgress] = []
        model = ensure("tiny", on_progress=steps.append)
        fetched(home, tiny, model)
        assert model.source == "mirror 127.0.0.1"
        (notice,) = [step.notice for step in steps if step.notice]
        assert notice == f"hub {REPO}: 127.0.0.1 no longer has this file; trying mirror 127.0.0.1"


def test_another_source_goes_on_with_the_same_partial(
    home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
) -> None:
    hub.add(REPO, FILE, bigger)
    hub.faults += [Fault("reset", at=2_000_000), Fault("status", status=404, times=9)]
    with running_hub() as mirror:
        mirror.add("m/m", FILE, bigger)
        offer(bigger, hub_source(), f'kind = "mirror"\nurl = "{mirror.url}/m/m/resolve/main/{{file}}"')
        fetched(home, bigger, ensure("tiny"))
        (get,) = mirror.asked("GET")
        assert get.headers["range"].startswith("bytes=") and "if-range" not in get.headers


def test_cancelling_is_quick_and_keeps_what_is_there(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = 50e3
    offer(bigger)
    steps: list[FetchProgress] = []
    with pytest.raises(Interrupted) as stopped:
        ensure("tiny", cancelled=lambda: bool(steps and steps[-1].done), on_progress=steps.append)
    assert stopped.value.exit_code == 130
    kept = place(home).with_name(FILE + ".partial").stat().st_size
    assert 0 < kept < len(bigger)
    hub.bytes_per_second = None
    fetched(home, bigger, ensure("tiny"))
    assert hub.asked("GET")[-1].headers["range"] == f"bytes={kept}-"


def test_cancelling_while_the_server_is_silent(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    hub.faults.append(Fault("hang", pause=60, methods=("HEAD",)))
    offer(tiny)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        ensure("tiny", cancelled=lambda: bool(hub.requests))
    assert time.monotonic() - began < transport.STALL_S - 5


def test_two_at_once_fetch_once(home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = 20e3
    offer(bigger)
    models: list[ModelFile] = []
    notices: list[str] = []

    def note(step: FetchProgress) -> None:
        notices.append(step.notice)
        if sum("another localchat" in notice for notice in notices) == 2:
            hub.bytes_per_second = None

    def work() -> None:
        models.append(ensure("tiny", on_progress=note))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(models) == 3 and len(set(map(repr, models))) == 1
    assert len(hub.asked("GET")) == 1
    assert sum("another localchat" in notice for notice in notices) == 2
    fetched(home, bigger, models[0])


def test_a_full_disk_is_one_sentence(
    home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILE, bigger)
    offer(bigger)
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda _: usage._replace(free=60_000_000))
    with pytest.raises(FetchError, match=r"is full \(4 MB and 67 MB to spare are needed, 60 MB are free\)") as failed:
        ensure("tiny")
    assert failed.value.exit_code == 4 and not hub.asked("GET")
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda _: usage)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial.os, "pwrite", full)
    with pytest.raises(FetchError, match="is full"):
        ensure("tiny")
    assert not place(home).exists()


def test_a_home_that_cannot_be_written_is_one_sentence(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    (home / "models").write_text("a file where a folder belongs")
    with pytest.raises(FetchError, match="LOCALCHAT_HOME") as failed:
        ensure("tiny")
    assert failed.value.exit_code == 4


def test_offline_opens_nothing(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    for name in ("tiny", None):
        with pytest.raises(FetchError, match="stay offline") as failed:
            ensure(name)
        assert str(place(home).parent) in failed.value.message
    assert not hub.requests
    place(home).parent.mkdir(parents=True)
    place(home).write_bytes(tiny)  # as the sentence said
    assert ensure(None).path == place(home)
    assert not hub.requests


def test_the_hubs_own_offline_switch_counts(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        ensure("tiny")
    assert not hub.requests


def test_something_installed_means_no_starter(home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer) -> None:
    offer(tiny)
    path = home / "models" / "me" / "mine" / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(make_gguf(home / "x.gguf", seed=5))
    (home / "x.gguf").unlink()
    assert ensure(None).path == path
    assert not hub.requests


def test_a_damaged_file_in_its_place_is_not_replaced_silently(
    home: Path, hub: LoopbackHub, tiny: bytes, offer: Offer
) -> None:
    from localchat.errors import DamagedFile

    hub.add(REPO, FILE, tiny)
    offer(tiny)
    ensure("tiny")
    place(home).write_bytes(tiny[:-1] + b"x")
    with pytest.raises(DamagedFile, match="remove it"):
        ensure("tiny")
    place(home).unlink()
    fetched(home, tiny, ensure("tiny"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("17", 17.0), (" 5 ", 5.0), ("", None), ("soon", None), ("-5", None), ("1e9", None), ("9" * 30, None)],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert download.retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    soon = download.retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=2000), usegmt=True))
    assert soon is not None and 1900 < soon <= 2000
    assert download.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
