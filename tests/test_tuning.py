"""What was found out about models is kept, belongs to one engine and processor, and harms nobody when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from localchat import trials
from localchat.errors import LocalchatError
from localchat.host.spec import spec_of
from localchat.paths import paths
from localchat.settings import settings
from localchat.trials import AtThreads, Bench, Kept, Speeds, Tuned, Turn
from localchat.tuning import Tuning

KEY = "ab" * 32
FAST = Tuning(decode_threads=1, micro_batch=128, flash_attention=False)


def a_bench(prefill: float = 100.0, decode: float = 40.0, **values: object) -> Bench:
    rows = (AtThreads(prefill / 2, decode / 2, 1), AtThreads(prefill, decode, 2))
    fixed = {"used_threads": 2, "used_prefill_threads": 2, "read_tokens": 64, "answer_tokens": 8, "rounds": 1}
    return Bench(threads=rows, **{**fixed, "measured": "2026-01-01T00:00:00", **values})


def a_tuned(tuning: Tuning = FAST, **values: object) -> Tuned:
    after = Turn(120.0, 50.0)
    return Tuned(tuning=tuning, before=Turn(100.0, 40.0), after=after, **{"measured": "2026-01-02T00:00:00", **values})


def rewrite(**values: object) -> None:
    """Change what is kept of the one model that is."""
    content = json.loads(paths().tunings.read_text())
    content["models"] = [{**content["models"][0], **values}]
    paths().tunings.write_text(json.dumps(content))


def test_what_was_kept_is_there_again(empty_home: Path) -> None:
    assert trials.of_model(KEY) is None and trials.tuning_of(KEY) == Tuning()
    trials.keep(KEY, name="tiny", entry="smollm2-135m", bench=a_bench())
    assert trials.tuning_of(KEY) == Tuning()
    trials.keep(KEY, name="tiny", entry="smollm2-135m", tuned=a_tuned())
    kept = trials.of_model(KEY)
    assert kept and kept.bench == a_bench() and kept.tuned == a_tuned()
    assert trials.tuning_of(KEY) == FAST and trials.tuning_of("another") == Tuning()
    assert paths().tunings.stat().st_mode & 0o777 == 0o600


def test_what_another_process_kept_counts_at_once(empty_home: Path) -> None:
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    assert trials.tuning_of(KEY) == FAST
    other = msgspec.structs.replace(a_tuned(), tuning=Tuning(micro_batch=64))
    rewrite(tuned=msgspec.to_builtins(other))
    assert trials.tuning_of(KEY) == Tuning(micro_batch=64)
    paths().tunings.unlink()
    assert trials.tuning_of(KEY) == Tuning()
    trials.keep("other", name="other", tuned=a_tuned())
    assert trials.of_model(KEY) is None  # a file that was removed does not come back


def test_an_unchanged_file_is_not_read_again(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    assert trials.tuning_of(KEY) == FAST
    monkeypatch.setattr(Path, "read_bytes", lambda _path: pytest.fail("it was read again"))
    assert trials.tuning_of(KEY) == FAST


@pytest.mark.parametrize("change", [{"engine": "another"}, {"cpu": "another"}, {"cores": 999}])
def test_another_engine_or_processor_ignores_it_and_leaves_it(empty_home: Path, change: dict[str, object]) -> None:
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    rewrite(**change)
    assert trials.of_model(KEY) is None and trials.tuning_of(KEY) == Tuning()
    trials.keep(KEY, name="tiny", tuned=a_tuned(Tuning(micro_batch=64)))
    assert trials.tuning_of(KEY) == Tuning(micro_batch=64)
    assert len(json.loads(paths().tunings.read_text())["models"]) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"\xff\xfe", b'{"version": 1, "models": [3]}', b'{"version": 1, "models": 3}', b"[" * 100_000,
     b'{"version": 1, "models": [{"model": "\xff"}]}'],
)  # fmt: skip
def test_a_damaged_file_counts_as_none(empty_home: Path, content: bytes) -> None:
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    paths().tunings.write_bytes(content)
    assert trials.tuning_of(KEY) == Tuning()
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    assert trials.tuning_of(KEY) == FAST


def test_a_file_of_a_later_version_counts_as_none(empty_home: Path) -> None:
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    content = json.loads(paths().tunings.read_text())
    paths().tunings.write_text(json.dumps({**content, "version": 2}))
    assert trials.tuning_of(KEY) == Tuning()


@pytest.mark.parametrize("tuning", [{"decode_threads": 0}, {"kv_type": "q1"}, {"micro_batch": 10**9}])
def test_a_tuning_that_cannot_be_is_none_and_leaves_the_others(empty_home: Path, tuning: dict[str, object]) -> None:
    trials.keep("other", name="other", tuned=a_tuned())
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    content = json.loads(paths().tunings.read_text())
    content["models"][1]["tuned"]["tuning"] = tuning
    paths().tunings.write_text(json.dumps(content))
    assert trials.tuning_of(KEY) == Tuning() and trials.tuning_of("other") == FAST


def test_only_so_many_models_are_remembered(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_KEPT", 2)
    for name in ("a", "b", "c"):
        trials.keep(name, name=name, tuned=a_tuned())
    assert [trials.of_model(name) is None for name in ("a", "b", "c")] == [True, False, False]


def test_a_folder_that_cannot_be_written_is_said(empty_home: Path) -> None:
    empty_home.write_text("in the way")
    with pytest.raises((LocalchatError, OSError)):
        trials.keep(KEY, name="tiny", tuned=a_tuned())


def test_undoing_leaves_what_was_measured(empty_home: Path) -> None:
    assert not trials.forget_tuning(KEY)
    trials.keep(KEY, name="tiny", bench=a_bench(), tuned=a_tuned())
    assert trials.forget_tuning(KEY) and not trials.forget_tuning(KEY)
    kept = trials.of_model(KEY)
    assert kept and kept.bench and kept.tuning == Tuning()


def test_threads_that_a_person_chose_win(empty_home: Path) -> None:
    trials.keep(KEY, name="tiny", tuned=a_tuned())
    (empty_home / "settings.toml").write_text("threads = 2\n")
    settings.cache_clear()
    assert trials.tuning_of(KEY) == Tuning(micro_batch=128, flash_attention=False)


def test_the_speeds_that_count_are_the_last_ones_with_the_present_tuning() -> None:
    kept = Kept(model=KEY, engine="", cpu="", cores=2, bench=a_bench(), tuned=a_tuned())
    assert kept.speeds == Turn(120.0, 50.0)  # the bench was without that tuning
    again = a_bench(130.0, 60.0, tuning=FAST, measured="2026-01-03T00:00:00")
    assert msgspec.structs.replace(kept, bench=again).speeds == Speeds(130.0, 60.0)
    busy = msgspec.structs.replace(again, others=0.5)
    assert msgspec.structs.replace(kept, bench=busy).speeds == Turn(120.0, 50.0)
    assert msgspec.structs.replace(kept, bench=busy, tuned=None).speeds is None


def test_a_correction_is_what_the_prediction_was_wrong_by(empty_home: Path) -> None:
    assert trials.correction("smollm2-135m") is None
    bench = a_bench(predicted=Speeds(200.0, 10.0))
    trials.keep(KEY, name="tiny", entry="smollm2-135m", bench=bench)
    assert trials.correction("smollm2-135m") == Speeds(0.5, 2.0)  # four times is no machine's
    assert trials.correction("another") is None and trials.correction("") is None
    trials.keep(KEY, name="tiny", entry="smollm2-135m", bench=msgspec.structs.replace(bench, others=0.5))
    assert trials.correction("smollm2-135m") is None


def test_the_host_goes_by_what_was_tuned_last(home: Path) -> None:
    plain = spec_of("smollm2-135m")
    assert plain.tuning == Tuning() and plain.sha256
    trials.keep(plain.sha256, name="smollm2-135m", tuned=a_tuned())
    tuned = spec_of("smollm2-135m")
    assert tuned.tuning == FAST and not tuned.is_same(plain)
    trials.forget_tuning(plain.sha256)
    assert spec_of("smollm2-135m").is_same(plain)


def test_a_file_outside_the_store_goes_by_its_place_and_size(tmp_path: Path, empty_home: Path) -> None:
    model = tmp_path / os.fsdecode(b"\xff.gguf")
    assert trials.key_of("", model, 3) != trials.key_of("", model, 4)
    trials.keep(trials.key_of(None, model, 3), name="own", tuned=a_tuned())
    assert trials.tuning_of(trials.key_of("", model, 3)) == FAST
