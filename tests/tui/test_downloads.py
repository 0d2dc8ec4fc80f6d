"""Downloads in the background, from a hub on this machine: one after the other, stopped and taken up again."""

# Fixtures are imported by their names, and named again as arguments.
# ruff: noqa: F811

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localchat.errors import DoesNotFit, FetchError, LocalchatError, NoSuchModel
from localchat.models import store
from localchat.paths import paths
from localchat.settings import settings
from localchat.tui.downloads import Download, Downloads, describe
from tests.conftest import wait_for
from tests.escapes import PAYLOADS, unsafe
from tests.loopback_hub import Fault, LoopbackHub
from tests.models.conftest import FILE, REPO, Offer, bigger, forget, hub, offer, place, quick, tiny  # noqa: F401

RATE = 50_000  # bytes/s: a file of 4 MB is not there before it is stopped, however late that comes


@pytest.fixture
def home(own_home: None) -> Path:
    """The folder of every test here, which the models' own fixtures ask for."""
    forget()
    return paths().config


class Watch:
    """Downloads, and all that they told."""

    def __init__(self) -> None:
        self.told: list[Download] = []
        self.downloads = Downloads(self.told.append)

    def until(self, *stages: str, name: str = "tiny") -> Download:
        def reached() -> Download | None:
            found = self.downloads.of(name)
            return found if found and found.stage in stages else None

        return wait_for(reached)


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    yield made
    made.downloads.close()


def test_a_model_comes_with_progress(watch: Watch, hub: LoopbackHub, offer: Offer, bigger: bytes) -> None:
    hub.add(REPO, FILE, bigger)
    watch.downloads.begin(f" {offer(bigger)} ")
    found = watch.until("here")
    assert found.installed == "tiny" and store.resolve("tiny").size == len(bigger)
    stages = [one.stage for one in watch.told]
    assert stages[0] == "looking" and stages[-1] == "here" and "fetching" in stages
    sizes = [one.done for one in watch.told if one.stage == "fetching"]
    assert sizes == sorted(sizes) and watch.told[-1].total == len(bigger)
    assert not watch.downloads.current and describe(found) == "tiny is here"


def test_one_that_is_here_is_only_verified(watch: Watch, hub: LoopbackHub, offer: Offer, tiny: bytes) -> None:
    hub.add(REPO, FILE, tiny)
    watch.downloads.begin(offer(tiny))
    watch.until("here")
    asked = len(hub.requests)
    watch.downloads.begin("tiny")
    wait_for(lambda: watch.told[-1].stage == "here" and len([one for one in watch.told if one.stage == "here"]) == 2)
    assert len(hub.requests) == asked


def test_stopped_and_taken_up_again(
    watch: Watch,
    hub: LoopbackHub,
    offer: Offer,
    bigger: bytes,
    home: Path,
) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = RATE
    watch.downloads.begin(offer(bigger))
    wait_for(lambda: (one := watch.downloads.of("tiny")) and one.stage == "fetching" and one.done > 20_000)
    watch.downloads.cancel("tiny")
    found = watch.until("stopped")
    assert found.error is None and describe(found) == "tiny: stopped, what came is kept"
    assert not place(home).exists() and list(place(home).parent.glob("*"))
    hub.bytes_per_second = None
    hub.requests.clear()
    watch.downloads.begin("tiny")
    watch.until("here")
    # What had come was not asked for again.
    assert sum(request.sent for request in hub.asked("GET")) < len(bigger)
    assert place(home).read_bytes() == bigger


def test_the_second_waits_for_the_first(watch: Watch, hub: LoopbackHub, offer: Offer, bigger: bytes) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = RATE
    watch.downloads.begin(offer(bigger))
    watch.until("fetching")
    for name in ("no-such-model", "nor-this"):
        watch.downloads.begin(name)
    watch.downloads.begin("tiny")  # on its way already
    assert [one.stage for one in watch.downloads.known] == ["fetching", "waiting", "waiting"]
    assert watch.downloads.current and watch.downloads.current.name == "tiny"
    assert describe(watch.downloads.known[1]) == "no-such-model waits for the download before it"
    watch.downloads.cancel("nor-this")
    assert watch.downloads.of("nor-this").stage == "stopped"  # type: ignore[union-attr]
    hub.bytes_per_second = None
    watch.downloads.cancel("tiny")
    watch.until("stopped", "here")
    assert isinstance(watch.until("failed", name="no-such-model").error, NoSuchModel)
    assert watch.downloads.of("nor-this").stage == "stopped"  # type: ignore[union-attr]


def test_what_does_not_fit_is_refused_before_a_byte_moves(
    watch: Watch,
    hub: LoopbackHub,
    offer: Offer,
    tiny: bytes,
    home: Path,
) -> None:
    offer(tiny)
    text = (home / "models.toml").read_text().replace(f"size = {len(tiny)}", "size = 900000000000000")
    (home / "models.toml").write_text(text)
    watch.downloads.begin("tiny")
    failed = watch.until("failed")
    assert isinstance(failed.error, DoesNotFit) and "close other programs" in describe(failed)
    assert not hub.requests and not (home / "models").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("no-such-model", NoSuchModel), ("../evil/x:Q4_K_M", LocalchatError), ("/etc/x.gguf", NoSuchModel)],
)
def test_a_bad_name_gives_its_sentence(watch: Watch, hub: LoopbackHub, name: str, kind: type[Exception]) -> None:
    watch.downloads.begin(name)
    failed = watch.until("failed", name=name)
    assert isinstance(failed.error, kind) and describe(failed)
    assert not hub.asked("GET") or kind is not NoSuchModel


def test_a_name_of_the_hub_is_taken(watch: Watch, hub: LoopbackHub, tiny: bytes) -> None:
    hub.add(REPO, FILE, tiny)
    watch.downloads.begin(f"{REPO}:Q8_0")
    found = watch.until("here", "failed", name=f"{REPO}:Q8_0")
    assert found.stage == "here" and store.find(found.installed).path.name == FILE


def test_a_hub_that_fails_gives_its_sentence(
    watch: Watch,
    hub: LoopbackHub,
    offer: Offer,
    tiny: bytes,
    quick: None,
) -> None:
    hub.add(REPO, FILE, tiny)
    hub.faults.append(Fault("status", times=99, methods=("GET", "HEAD"), status=503))
    watch.downloads.begin(offer(tiny))
    failed = watch.until("failed")
    assert isinstance(failed.error, FetchError) and "could not fetch tiny" in describe(failed)
    hub.faults.clear()
    watch.downloads.begin("tiny")
    watch.until("here")


@pytest.mark.parametrize("name", ["tiny", f"{REPO}:Q8_0"])
def test_offline_nothing_is_asked(
    watch: Watch,
    hub: LoopbackHub,
    offer: Offer,
    tiny: bytes,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    settings.cache_clear()
    watch.downloads.begin(name)
    failed = watch.until("failed", name=name)
    assert isinstance(failed.error, FetchError) and "offline" in describe(failed)
    assert hub.connections == 0


def test_something_nobody_expected_is_a_sentence(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("\x1b[2Jodd")

    monkeypatch.setattr("localchat.models.plan.make", broken)
    watch.downloads.begin("x")
    said = describe(watch.until("failed", name="x"))
    assert "ZeroDivisionError" in said and said.endswith("try again") and not unsafe(said)
    watch.downloads.begin("y")
    watch.until("failed", name="y")


def test_leaving_loses_nothing(hub: LoopbackHub, offer: Offer, bigger: bytes, home: Path) -> None:
    hub.add(REPO, FILE, bigger)
    hub.bytes_per_second = RATE
    left = Watch()
    left.downloads.begin(offer(bigger))
    wait_for(lambda: (one := left.downloads.of("tiny")) and one.stage == "fetching" and one.done > 20_000)
    left.downloads.close()
    told = len(left.told)
    left.downloads.begin("other")  # nothing begins after the end
    assert len(left.told) == told and not left.downloads.of("other")
    hub.bytes_per_second = None
    hub.requests.clear()
    again = Watch()
    again.downloads.begin("tiny")
    again.until("here")
    assert sum(request.sent for request in hub.asked("GET")) < len(bigger)
    assert place(home).read_bytes() == bigger


def test_a_wait_and_a_failed_source_are_noticed(watch: Watch) -> None:
    watch.downloads._known["x"] = Download("x")
    watch.downloads._change("x", notice="hub a: 503; trying hub b")
    assert watch.told[-1].notice == "hub a: 503; trying hub b"


@pytest.mark.parametrize(
    ("download", "text"),
    [
        (Download("m", "looking"), "looking for m"),
        (Download("m", "measuring", 40, 100), "measuring this machine to choose what is fast here, 40%"),
        (Download("m", "fetching"), "fetching m"),
        (
            Download("m", "fetching", 850_000_000, 2_500_000_000, 12_300_000, 134.0),
            "fetching m: 34%, 2 min 14 s left, 12 MB/s, 850 MB of 2.5 GB",
        ),
        (Download("m", "verifying", 1, 2), "verifying m: 50%, 1 bytes of 2 bytes"),
    ],
)
def test_in_words(download: Download, text: str) -> None:
    assert describe(download) == text


@pytest.mark.parametrize(
    "make", [lambda text: Download(text, "fetching"), lambda text: Download("m", "here", installed=text)]
)
def test_names_do_not_drive_the_terminal(make: Callable[[str], Download]) -> None:
    for text in PAYLOADS:
        said = describe(make(text))
        assert not unsafe(said) and "\n" not in said


def test_importing_it_is_cheap() -> None:
    script = (
        "import sys, localchat.tui.downloads; "
        "print([name for name in sys.modules if name.startswith(('textual', 'huggingface', 'localchat.models'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
