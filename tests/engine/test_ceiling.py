"""One ceiling for all that the engine takes: it holds whatever is asked, or what would fit is said."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localchat.engine import attention, ceiling, mapped
from localchat.engine.context import Context
from localchat.engine.model import Model
from localchat.engine.offload import Offload
from localchat.engine.scheduler import Engine
from localchat.errors import ContextExceeded, DoesNotFit
from localchat.hardware import resident_memory
from localchat.protocol import Extras
from localchat.tuning import Tuning
from tests.engine.test_scheduler import LONG_S, Ask
from tests.tiny_models import LETTERS, write_model

MIB = 1 << 20


@pytest.fixture(autouse=True)
def flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a window takes depends on the attention, and which one is fast on the processor."""
    monkeypatch.setattr(attention, "_is_slow", lambda head: False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", context=4096, speaks=LETTERS)


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counts as one that has done nothing yet, whatever the tests before have left in it."""
    monkeypatch.setattr(ceiling, "resident_memory", lambda: 30 * MIB)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(1)
    yield engine
    engine.close()


def under(most: int, **extras: object) -> dict[str, object]:
    return {"localchat": Extras(max_ram=most, **extras)}


def plan(model: Path, most: int, tuning: Tuning = Tuning()) -> ceiling.Plan:  # noqa: B008
    return ceiling.plan(model, model.stem, tuning, Offload(), most, 20 * MIB)


def fixed(model: Path) -> int:
    """What a model takes in this process without a window."""
    return plan(model, 1 << 40).fixed


@pytest.mark.parametrize("size", [256, 1024, 4096])
@pytest.mark.parametrize("tuning", [Tuning(), Tuning(micro_batch=64)], ids=["usual", "small batches"])
def test_a_window_takes_what_was_told_before_it_was_made(tiny: Path, size: int, tuning: Tuning) -> None:
    told = Model(tiny, weightless=True)
    real = Model(tiny)
    for model in (told, real):
        window = Context(model, size, 1, tuning)
        window.close()
        taken = window.processor_bytes
        if model is told:
            expected = taken
        model.close()
    assert taken == expected > 0


@pytest.mark.usefixtures("fresh_process")
def test_the_larger_the_ceiling_the_larger_the_window(tiny: Path) -> None:
    base = fixed(tiny)
    sizes = [plan(tiny, base + room * MIB).largest for room in (1, 2, 4, 64)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2
    assert sizes[-1] == 4096  # what the model was trained for


@pytest.mark.usefixtures("fresh_process")
def test_a_ceiling_just_below_says_what_would_do(tiny: Path) -> None:
    with pytest.raises(DoesNotFit) as raised:
        plan(tiny, 20 * MIB)
    told = re.fullmatch(
        r"tiny needs (\d+) MiB with the smallest window and the ceiling is 20 MiB: "
        r"`localchat models --max-ram 20M` shows what fits, or raise --max-ram",
        raised.value.message,
    )
    assert told, raised.value.message
    enough = int(told[1]) * MIB
    assert plan(tiny, enough).largest >= 256
    with pytest.raises(DoesNotFit):
        plan(tiny, int(enough * 0.97))


@pytest.mark.usefixtures("fresh_process")
def test_a_conversation_grows_as_far_as_the_ceiling_allows_and_then_says_why(tiny: Path, engine: Engine) -> None:
    most = fixed(tiny) + 3 * MIB
    largest = plan(tiny, most).largest
    assert 256 < largest < 4096
    assert Ask(engine, tiny, "a" * (largest - 60), max_tokens=3, **under(most)).end().usage.completion_tokens == 3
    loaded = engine.loaded()
    assert loaded
    assert loaded.context == largest
    with pytest.raises(ContextExceeded, match=rf"holds {largest}: that is all that fits under the ceiling of \d+ MiB"):
        Ask(engine, tiny, "a" * 4000, max_tokens=3, **under(most)).end()
    # An answer without an end ends where the window does.
    assert Ask(engine, tiny, "b" * (largest - 60), **under(most)).end().reason == "length"
    assert engine.loaded().context == largest


@pytest.mark.usefixtures("fresh_process")
def test_a_request_that_lowers_the_ceiling_is_answered_under_it(tiny: Path, engine: Engine) -> None:
    Ask(engine, tiny, "a" * 3000, max_tokens=1).end()
    assert engine.loaded().context == 4096
    most = fixed(tiny) + 3 * MIB
    largest = plan(tiny, most).largest
    Ask(engine, tiny, "a", max_tokens=1, **under(most)).end()
    assert engine.loaded().context <= largest
    assert engine.max_ram == most
    # Without a ceiling it grows again, and comes back under the same one without being loaded anew.
    Ask(engine, tiny, "a" * 3000, max_tokens=1).end()
    assert (engine.max_ram, engine.loaded().context) == (None, 4096)
    Ask(engine, tiny, "a", max_tokens=1, **under(most)).end()
    assert engine.loaded().context == largest
    # One that nothing fits under is refused, and the next request finds an engine that works.
    with pytest.raises(DoesNotFit):
        Ask(engine, tiny, "a", max_tokens=1, **under(MIB)).end()
    assert Ask(engine, tiny, "a", max_tokens=1).end().usage.completion_tokens == 1


@pytest.mark.usefixtures("fresh_process")
def test_the_engines_own_ceiling_holds_for_who_names_none(tiny: Path) -> None:
    engine = Engine(1, max_ram=fixed(tiny) + 3 * MIB)
    try:
        for work in (engine.load, lambda spec: engine.tokenize(spec, "a")):
            work(Ask(engine, tiny, "a", max_tokens=1).job.spec).result(LONG_S)
        assert engine.loaded().context < 4096
        assert engine.load(Ask(engine, tiny, "a", max_tokens=1).job.spec, 4096).result(LONG_S) is None
        assert engine.loaded().context < 4096
    finally:
        engine.close()


@contextmanager
def highest(engine: Engine) -> Iterator[list[int]]:
    """The most memory that this process and that of the templates had together, in the one element of the list."""
    seen, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            seen[0] = max(seen[0], resident_memory() + engine.template_process_bytes)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


HOST = """
import sys
from pathlib import Path
from localchat.engine.scheduler import Engine
from localchat.errors import DoesNotFit
from localchat.protocol import Message
from tests.engine.test_ceiling import highest, least
from tests.engine.test_scheduler import Ask

model, words = Path(sys.argv[1]), int(sys.argv[2])
most = least(model) * 6 // 5
engine = Engine(1, max_ram=most)
with highest(engine) as seen:
    turns = []
    for number in range(4):
        turns.append(Message("user", f"Number {number}: " + "and so on, " * words))
        ask = Ask(engine, model, *turns, max_tokens=8)
        turns.append(Message("assistant", ask.text))
    for ask in [Ask(engine, model, f"{number} {'ships ' * (words // 2)}", max_tokens=4) for number in range(16)]:
        ask.end()
print(most, seen[0], engine.loaded().context)
engine.close()
"""
"""In a process of its own, as the one of the tests holds whatever those before have left."""


def least(model: Path) -> int:
    """The ceiling that a refusal names."""
    with pytest.raises(DoesNotFit) as raised:
        plan(model, MIB)
    told = re.search(r"needs (\d+) MiB", raised.value.message)
    assert told
    return int(told[1]) * MIB


def check_a_host(model: Path, words: int, patience_s: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOST, model, str(words)],
        capture_output=True,
        text=True,
        timeout=patience_s,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    most, peak, context = map(int, done.stdout.split())
    assert peak <= most, f"{peak / MIB:.1f} MiB under a ceiling of {most / MIB:.1f}"
    # And the conversation made use of what it may take.
    assert context > 256


def test_a_host_stays_under_a_ceiling_a_fifth_above_the_least(tmp_path: Path) -> None:
    wide = write_model(tmp_path / "wide.gguf", context=4096, layers=6, width=256, speaks=LETTERS)
    check_a_host(wide, 12, 100)


@pytest.mark.slow
def test_a_host_with_the_starter_does_too(starter: Path) -> None:
    check_a_host(starter, 24, 600)


def test_what_was_copied_from_the_mapped_file_leaves_memory(tmp_path: Path, starter: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("only Linux tells what of a mapping is in memory")
    model = Model(starter)
    try:
        before = _mapped_kib(starter)
        mapped.let_go_of_mapped(starter)
        after = _mapped_kib(starter)
        assert before > starter.stat().st_size / 1024 * 0.9
        assert after < before / 10
        # What is still used comes back, with the same content.
        context = Context(model, 256, 1)
        context.begin()
        context.add([1, 2, 3], 0, 0, output=True)
        context.decode()
        context.close()
        assert _mapped_kib(starter) > before / 2
    finally:
        model.close()


def _mapped_kib(path: Path) -> int:
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(path.name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total
