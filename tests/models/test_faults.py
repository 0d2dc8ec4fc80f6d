"""Every fault that a network, a server or a disk can have (T4), for one stream and for one of several connections.

The outcome is always the right file, or one clear sentence; a wrong file is never published.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localchat.errors import FetchError, Interrupted
from localchat.models import store
from localchat.models.fetch import FetchProgress, ensure
from localchat.models.transfer import partial, ranges, tasks, transport
from localchat.models.transfer.download import SourceFailed, download
from localchat.models.transfer.partial import Partial, Pin
from localchat.models.transfer.progress import Meter
from tests.loopback_hub import Fault, LoopbackHub, running_hub
from tests.models.conftest import FILE, REPO, Offer, asked_bytes, place

pytestmark = pytest.mark.usefixtures("quick")

HOUR = timedelta(hours=1)


@pytest.fixture
def impatient(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is about to meet a server that falls silent waits as long as a test can; all others as long as ever."""
    ask = ranges.request

    def briefly(*arguments: Any, **options: Any) -> transport.Reply:
        for fault in hub.faults:
            if fault.kind in ("drip", "hang"):
                monkeypatch.setattr(tasks, "_QUIET_S", 0.2)
                # (Which one of several requests it will be that meets the only fault, nobody knows.)
                if fault.times > 1 or (fault.times and not fault.skip):
                    # What drips must be seen to send something; where nothing is sent, nothing can come too late.
                    options["stall_s"] = 3.0 if fault.kind == "drip" else 1.0
        return ask(*arguments, **options)

    monkeypatch.setattr(ranges, "request", briefly)


def date_in(delta: timedelta) -> str:
    return format_datetime(datetime.now(UTC) + delta, usegmt=True)


# What one fault, met once, leads to: None for the right file, else what the sentence says; for one stream (whose first
# answer it is), and for several connections (where it meets the fourth answer, while others go on).
ONCE: dict[str, tuple[Fault, str | None, str | None]] = {
    "401": (Fault("status", status=401), "refused the token", "refused the token"),
    "403": (Fault("status", status=403), "does not allow", None),
    "404": (Fault("status", status=404), "no such file", "no such file"),
    "408": (Fault("status", status=408), None, None),
    "416": (Fault("status", status=416), None, None),
    "429": (Fault("status", status=429), None, None),
    "429, seconds": (Fault("status", status=429, retry_after="1"), None, None),
    "429, an hour": (Fault("status", status=429, retry_after="3600"), "come back in 3,600 s", None),
    "429, a date": (Fault("status", status=429, retry_after=date_in(-HOUR)), None, None),
    "429, a date in many hours": (Fault("status", status=429, retry_after=date_in(27 * HOUR)), "come back in 9", None),
    "429, nonsense": (Fault("status", status=429, retry_after="soon"), None, None),
    "500": (Fault("status", status=500), None, None),
    "503": (Fault("status", status=503), None, None),
    "reset at once": (Fault("reset", at=0), None, None),
    "reset in mid-body": (Fault("reset", at=100_000), None, None),
    "closed too early": (Fault("short", at=100_000), None, None),
    "longer": (Fault("longer"), None, None),
    "wrong size": (Fault("truncate", at=100_000), "bytes where", None),
    "wrong bytes": (Fault("wrong"), None, None),
    "200 for 206": (Fault("ignore_range"), None, None),
    "bad Content-Range": (Fault("bad_range"), None, None),
    "another ETag": (Fault("other_etag"), None, None),
    "changed file": (Fault("changed"), "other bytes than expected, twice", "other bytes than expected, twice"),
    "web page": (Fault("html"), "web page", "web page"),
    "compressed": (Fault("gzip"), "compressed", "compressed"),
    "gzip bomb": (Fault("bomb"), "compressed", "compressed"),
    "redirect to itself": (Fault("redirect", location="?again"), None, None),
    "redirect to http": (Fault("redirect", location="http://mirror.invalid/x"), "only https", "only https"),
    "redirect to a file": (Fault("redirect", location="file:///etc/passwd"), "only https", "only https"),
    "redirect to nonsense": (Fault("redirect", location="https://[half/x"), "none", "none"),
    "slow drip": (Fault("drip", pause=0.05), None, None),
    "silence": (Fault("hang", pause=60), None, None),
}

# The same faults, met by every request from then on.
ALWAYS: dict[str, tuple[str | None, str | None]] = {
    "403": ("does not allow", "does not allow"),
    "416": ("refused to go on", "refused to go on"),
    "429": ("asked too often", "asked too often"),
    "429, an hour": ("come back", "come back"),
    "503": ("answered 503", "answered 503"),
    "reset at once": ("broke", "broke"),
    "reset in mid-body": (None, None),
    "closed too early": (None, None),
    "wrong bytes": ("other bytes than expected, twice", "other bytes than expected, twice"),
    "200 for 206": (None, None),
    "bad Content-Range": (None, None),
    "another ETag": (None, None),
    "redirect to itself": ("redirects more than 5 times", "redirects more than 5 times"),
    "slow drip": ("nearly stopped", "nearly stopped"),
    "silence": ("sent nothing", "sent nothing"),
}


def until_two_ask(hub: LoopbackHub) -> Callable[[FetchProgress], None]:
    """Makes a hub too slow to be done with anything before a second connection asks; to be told of the progress."""
    hub.bytes_per_second = 20e3

    def let_go(_: FetchProgress) -> None:
        if len(hub.asked("GET")) > 1:
            hub.bytes_per_second = None

    return let_go


def meet(
    fault: Fault,
    expected: str | None,
    home: Path,
    hub: LoopbackHub,
    content: bytes,
    offer: Offer,
    on_progress: Callable[[FetchProgress], None] | None = None,
) -> None:
    """Fetch while the hub misbehaves, and hold the outcome against what is expected."""
    hub.add(REPO, FILE, content)
    hub.faults.append(fault)
    times = fault.times
    offer(content)
    began = time.monotonic()
    if expected is None:
        model = ensure("tiny", on_progress=on_progress)
        assert model.path.read_bytes() == content and model.sha256 == hashlib.sha256(content).hexdigest()
        assert sorted(path.name for path in model.path.parent.iterdir()) == [FILE, FILE + ".json"]
    else:
        with pytest.raises(FetchError) as failed:
            ensure("tiny", on_progress=on_progress)
        assert expected in failed.value.message and failed.value.exit_code == 4
        assert not place(home).exists() and store.installed() == []
    assert time.monotonic() - began < 60
    assert fault.times < times, "the fault was never met"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ONCE)
class TestOnce:
    """A fault that passes."""

    def test_in_one_stream(self, name: str, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
        fault, expected, _ = ONCE[name]
        meet(Fault(**vars(fault)), expected, home, hub, bigger, offer)

    @pytest.mark.usefixtures("ranged")
    def test_on_one_connection(self, name: str, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
        fault, _, expected = ONCE[name]
        # A server that has too much to do is left by one connection only where there are others.
        let_go = until_two_ask(hub) if "hour" in name else None
        meet(Fault(**{**vars(fault), "skip": 3}), expected, home, hub, bigger, offer, let_go)
        assert len({get.headers.get("range") for get in hub.asked("GET")}) > 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ALWAYS)
class TestAlways:
    """A fault that stays."""

    def test_in_one_stream(self, name: str, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
        meet(Fault(**{**vars(ONCE[name][0]), "times": 999}), ALWAYS[name][0], home, hub, bigger, offer)

    @pytest.mark.usefixtures("ranged")
    def test_on_all_connections(self, name: str, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
        fault = Fault(**{**vars(ONCE[name][0]), "times": 999, "skip": 3})
        meet(fault, ALWAYS[name][1], home, hub, bigger, offer)


@pytest.mark.usefixtures("ranged")
class TestSeveralConnections:
    """What only they have to get right."""

    def test_each_byte_is_asked_for_once(self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer) -> None:
        hub.bytes_per_second = 4e6
        hub.add(REPO, FILE, bigger)
        offer(bigger)
        steps: list[FetchProgress] = []
        ensure("tiny", on_progress=steps.append)
        gets = hub.asked("GET")
        assert sum(get.sent for get in gets) < len(bigger) * 1.5
        assert {get.headers["if-range"] for get in gets[1:]} == {f'"{hashlib.sha256(bigger).hexdigest()}"'}
        mine = [step for step in steps if step.source.startswith("hub")]
        assert [step.done for step in mine] == sorted(step.done for step in mine)
        assert mine[-1].done == len(bigger)

    def test_connections_are_kept_between_ranges(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.bytes_per_second = 4e6
        offer(bigger)
        ensure("tiny")
        # One for HEAD, and one more for each range that was cut short because another connection took its end.
        split = sum(get.sent > 0 for get in hub.asked("GET")) - -(-len(bigger) // ranges.CHUNK)
        assert len(hub.asked("GET")) > 16 and hub.connections <= 1 + ranges.CONNECTIONS + 2 * split

    def test_a_changed_entity_tag_on_any_connection_starts_all_over(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("other_etag", skip=5))
        offer(bigger)
        steps: list[FetchProgress] = []
        assert ensure("tiny", on_progress=steps.append).path.read_bytes() == bigger
        assert any(step.notice == "the file changed on its way: starting over" for step in steps)
        assert sum(get.start == 0 for get in hub.asked("GET")) == 2

    @pytest.mark.usefixtures("impatient")
    def test_a_thin_line_is_left_to_one_connection(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        """Eight connections that all bring next to nothing are no reason to give up before one was tried alone."""
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("drip", pause=0.05, skip=1, times=ranges.CONNECTIONS))
        offer(bigger)
        assert ensure("tiny").path.read_bytes() == bigger

    def test_redirects_are_followed_once_a_connection_and_tokens_stay(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.token = "hf_secret"
        hub.add(REPO, FILE, bigger)
        offer(bigger)
        with running_hub() as storage:
            storage.add("cdn/x", FILE, bigger)
            there = storage.address("cdn/x", FILE)
            hub.faults.append(Fault("redirect", location=there, methods=("GET", "HEAD"), times=99))
            ensure("tiny")
            assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.requests)
            assert len(storage.requests) > ranges.CONNECTIONS >= len(hub.asked("GET"))
            assert not any("authorization" in request.headers for request in storage.requests)

    def test_an_expired_address_is_asked_for_anew(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        offer(bigger)
        with running_hub() as storage:
            # So slow that it expires before it has given all, however late the first report comes.
            storage.bytes_per_second = 50e3
            for address in ("cdn/old", "cdn/new"):
                storage.add(address, FILE, bigger)
            redirect = Fault("redirect", location=storage.address("cdn/old", FILE), times=99)
            hub.faults.append(redirect)

            def expire(step: FetchProgress) -> None:
                if step.done:
                    redirect.location = storage.address("cdn/new", FILE)
                    storage.files.pop(("cdn/old", FILE), None)
                    storage.bytes_per_second = None

            assert ensure("tiny", on_progress=expire).path.read_bytes() == bigger
            assert any("cdn/new" in request.path for request in storage.requests)

    def test_an_address_that_expires_as_it_is_given_is_asked_for_anew(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        offer(bigger)
        with running_hub() as storage:
            storage.add("cdn/x", FILE, bigger)
            storage.faults.append(Fault("status", status=404, skip=2, times=4))
            hub.faults.append(Fault("redirect", location=storage.address("cdn/x", FILE), times=99))
            assert ensure("tiny").path.read_bytes() == bigger
            assert not storage.faults[0].times

    def test_what_was_withdrawn_meanwhile_is_not_asked_for_again_and_again(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("status", status=404, error_code="EntryNotFound", skip=2, times=99))
        offer(bigger)
        with pytest.raises(FetchError, match="no longer has this file"):
            ensure("tiny")
        assert hub.faults[0].times > 99 - 2 * ranges.CONNECTIONS

    def test_a_server_that_bears_few_connections_gets_few(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("status", status=503, retry_after="3600", skip=2, times=6))
        offer(bigger)
        assert ensure("tiny", on_progress=until_two_ask(hub)).path.read_bytes() == bigger
        assert not hub.faults[0].times

    def test_a_silent_connection_holds_up_nobody(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "_QUIET_S", 0.2)
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("hang", pause=60, skip=3))
        offer(bigger)
        began = time.monotonic()
        assert ensure("tiny").path.read_bytes() == bigger
        assert time.monotonic() - began < transport.STALL_S - 5, "the stall of one connection was waited for"

    def test_cancelling_is_quick_and_loses_nothing(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.bytes_per_second = 50e3
        offer(bigger)
        steps: list[FetchProgress] = []
        with pytest.raises(Interrupted):
            ensure("tiny", cancelled=lambda: bool(steps and steps[-1].done), on_progress=steps.append)
        kept = max(step.done for step in steps)
        assert 0 < kept < len(bigger)
        assert not [thread.name for thread in threading.enumerate() if thread.name == "localchat-range"]
        hub.bytes_per_second = None
        hub.requests.clear()
        steps.clear()
        assert ensure("tiny", on_progress=steps.append).path.read_bytes() == bigger
        assert next(step.done for step in steps if step.source.startswith("hub") and step.done) > 0
        assert np.count_nonzero(asked_bytes(hub.asked("GET"), len(bigger))) <= len(bigger) - kept

    def test_a_server_without_ranges_is_read_in_one_stream(
        self, home: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("ignore_range", times=99))
        offer(bigger)
        assert ensure("tiny").path.read_bytes() == bigger
        assert len(hub.asked("GET")) == 1, "the answer to the first request was good enough"


@pytest.mark.usefixtures("ranged")
class TestWithoutAPromise:
    """A file of which nobody said the sha256: only the entity tag tells whether parts belong together."""

    def bring(self, hub: LoopbackHub, content: bytes, folder: Path) -> Partial:
        brought = Partial(folder / FILE, Pin("", len(content)))
        brought.open(lambda _: None, None)
        url = hub.address(REPO, FILE)
        meter = Meter("", len(content), None)
        try:
            download(url, {}, brought, meter, explain=lambda reply: f"answered {reply.status}", cancelled=None)
        finally:
            brought.close()
        return brought

    def test_parts_are_put_together_under_one_entity_tag(self, hub: LoopbackHub, bigger: bytes, tmp_path: Path) -> None:
        hub.add(REPO, FILE, bigger)
        assert self.bring(hub, bigger, tmp_path).sha256 == hashlib.sha256(bigger).hexdigest()
        assert len(hub.asked("GET")) > 8

    def test_without_one_it_comes_in_one_stream(self, hub: LoopbackHub, bigger: bytes, tmp_path: Path) -> None:
        hub.add(REPO, FILE, bigger)
        hub.faults += [Fault("weak_etag", times=99)]
        assert self.bring(hub, bigger, tmp_path).sha256 == hashlib.sha256(bigger).hexdigest()
        assert len(hub.asked("GET")) == 2

    @pytest.mark.parametrize("kind", ["changed", "weak_etag"])
    def test_a_later_run_never_mixes_two_files(
        self, kind: str, hub: LoopbackHub, bigger: bytes, tmp_path: Path
    ) -> None:
        hub.add(REPO, FILE, bigger)
        hub.faults.append(Fault("status", status=404, skip=4, times=99))
        with pytest.raises(SourceFailed):
            self.bring(hub, bigger, tmp_path)
        other = bigger[:5] + bytes(len(bigger) - 5)
        hub.add(REPO, FILE, other)
        hub.faults[:] = [Fault("weak_etag", times=99)] if kind == "weak_etag" else []
        assert self.bring(hub, bigger, tmp_path).sha256 == hashlib.sha256(other).hexdigest()


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A disk of 8 MiB for the models folder."""
    folder = home / "models"
    folder.mkdir(mode=0o700)
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("mode", ["one stream", "ranged"])
class TestFullDisk:
    """On a real file system that really is full."""

    def test_it_is_seen_before_the_first_byte(
        self, mode: str, home: Path, small_disk: Path, hub: LoopbackHub, bigger: bytes, offer: Offer
    ) -> None:
        hub.add(REPO, FILE, bigger)
        offer(bigger)
        with pytest.raises(FetchError, match="is full"):
            ensure("tiny")
        assert not hub.asked("GET")

    def test_it_fills_up_meanwhile(
        self,
        mode: str,
        home: Path,
        small_disk: Path,
        hub: LoopbackHub,
        bigger: bytes,
        offer: Offer,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> None:
        if mode == "ranged":
            request.getfixturevalue("ranged")
        monkeypatch.setattr(partial, "MARGIN", 1 << 20)
        hub.add(REPO, FILE, bigger)
        offer(bigger)
        ballast = small_disk / "somebody's"
        write, lock, written = partial.SparseFile.write_at, threading.Lock(), 0

        def fill() -> None:
            # All of it at once, so that not the look at the free space but the write itself fails.
            monkeypatch.setattr(partial, "check_room", lambda *_: None)
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 16)):
                    pass

        def write_at(file: partial.SparseFile, start: int, data: bytes) -> None:
            nonlocal written
            with lock:
                if written > 2_000_000 and not ballast.exists():
                    fill()
            write(file, start, data)
            with lock:
                written += len(data)

        with monkeypatch.context() as patch:
            patch.setattr(partial.SparseFile, "write_at", write_at)
            with pytest.raises(FetchError, match="is full") as failed:
                ensure("tiny")
        assert failed.value.exit_code == 4 and not place(home).exists()
        ballast.unlink()
        hub.requests.clear()
        assert ensure("tiny").path.read_bytes() == bigger
        again = np.count_nonzero(asked_bytes(hub.asked("GET"), len(bigger)))
        assert again < len(bigger) - 1_900_000, "what was there is not used"
