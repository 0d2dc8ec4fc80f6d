"""`localchat tune`: what it says it gained, what it keeps, and how it is undone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from localchat import trials as kept_trials
from localchat.cli.tune import command, describe
from localchat.errors import NoSuchModel, UsageError
from localchat.host.spec import spec_of
from localchat.models import comparing
from localchat.models.assess import Circumstances, corrected
from localchat.models.comparing import Compared, Subject
from localchat.models.fit import Speed
from localchat.models.store import ModelFile, resolve
from localchat.trials import Order, Speeds
from localchat.tuning import Tuning
from tests.cli.trial_processes import TUNED, measured_machine, prints
from tests.conftest import run_cli
from tests.tiny_models import LETTERS, write_model

Said = pytest.CaptureFixture[str]


def tune(*arguments: str) -> None:
    """Run the command in this process."""
    command.main(list(arguments), prog_name="localchat tune", standalone_mode=False)


def test_what_gained_is_kept_and_said(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    measured_machine()
    prints(monkeypatch, {"share": 0.5, "doing": "2 threads"}, {"tuned": TUNED})
    tune("smollm2-135m")
    out = capsys.readouterr().out
    assert "Kept for smollm2-135m: 1 thread for answering, micro-batches of 128 tokens, no flash attention." in out
    assert "reads 110 tokens/s instead of 100 (+10%), answers 50.0 tokens/s instead of 40.0 (+25%)" in out
    assert "30.0 tokens/s instead of 10.0 (+200%) after 2,048 tokens" in out
    assert "`localchat tune --undo smollm2-135m`" in out
    assert [line.split()[:5] for line in out.splitlines() if line.startswith("1 thread")] == [
        ["1", "thread", "+", "80.0", "50.0"]
    ]
    assert spec_of("smollm2-135m").tuning == TUNED.tuning

    tune("--show", "smollm2-135m")
    assert "Kept for smollm2-135m: 1 thread" in capsys.readouterr().out
    tune("--undo", "smollm2-135m")
    assert "is forgotten" in capsys.readouterr().out
    assert spec_of("smollm2-135m").tuning == Tuning()
    tune("--undo", "smollm2-135m")
    assert "Nothing is kept" in capsys.readouterr().out
    tune("--show", "--json", "smollm2-135m")
    assert json.loads(capsys.readouterr().out)["tuned"] is None


def test_nothing_is_kept_of_a_busy_machine(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    measured_machine()
    prints(monkeypatch, {"tuned": msgspec.structs.replace(TUNED, others=0.5)})
    tune("smollm2-135m")
    assert "Other programs had 50% of the processor meanwhile" in capsys.readouterr().out
    assert spec_of("smollm2-135m").tuning == Tuning()


def test_no_gain_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    measured_machine()
    prints(monkeypatch, {"tuned": msgspec.structs.replace(TUNED, tuning=Tuning(), after=TUNED.before)})
    tune("smollm2-135m")
    assert "fastest as the engine runs it by itself" in capsys.readouterr().out


def test_a_chosen_kv_cache_stays_chosen(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_machine()
    orders: list[Order] = []

    def take(order: Order, *_: object) -> object:
        orders.append(order)
        kv_type = None if order.kv_type == "f16" else order.kv_type
        return msgspec.structs.replace(TUNED, tuning=Tuning(kv_type=kv_type))

    monkeypatch.setattr("localchat.client.trials.tune", take)
    for arguments in (["--kv", "q8_0"], [], ["--kv", "f16"], []):
        tune(*arguments, "smollm2-135m")
    assert [order.kv_type for order in orders] == ["q8_0", "q8_0", "f16", None]
    assert spec_of("smollm2-135m").tuning == Tuning()


def test_memory_is_that_of_the_kept_cache(home: Path) -> None:
    measured_machine()
    from localchat.models import overview

    def memory() -> int:
        return next(row.memory or 0 for row in overview.rows(Circumstances.now()) if row.name == "smollm2-135m")

    before = memory()
    halved = msgspec.structs.replace(TUNED, tuning=Tuning(kv_type="q8_0"))
    kept_trials.keep(resolve("smollm2-135m").sha256 or "", name="smollm2-135m", tuned=halved)
    assert before - memory() == pytest.approx(4096 * 30 * 2 * 3 * 64 * (2 - 34 / 32), rel=0.01)


def test_a_real_model_is_tuned(home: Path, tmp_path: Path) -> None:
    measured_machine(threads=1)
    model = write_model(tmp_path / "tiny.gguf", speaks=LETTERS, context=512)
    done = run_cli("tune", "--quick", "--json", str(model), home=home)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {one["setting"] for one in said["tuned"]["tried"]} >= {"kv cache", "flash attention", "micro-batch"}
    # Whatever was best: the engine obeys it.
    asked = run_cli("ask", "-n", "-m", str(model), "--max-tokens", "4", "--json", "hi", home=home)
    assert asked.returncode == 0, asked.stderr


def compared(label: str, prefill: float, decode: float, **values: object) -> Compared:
    return Compared(label=label, size=100, prefill=prefill, decode=decode, **values)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([], None),
        ([compared("Q4_0", 400.0, 90.0, pull="m:q4_0")], "Q4_0"),
        ([compared("Q4_0", 400.0, 90.0)], None),  # nobody offers it
        ([compared("Q4_0", 400.0, 90.0, pull="m:q4_0", fits="no")], None),
        ([compared("Q4_0", 105.0, 52.0, pull="m:q4_0")], None),  # the same, as far as that can be told
        ([compared("Q2_K", 900.0, 200.0, pull="m:q2_k")], None),  # fast, and no longer the same model
        ([compared("Q4_0", 200.0, 60.0, pull="m:q4_0"), compared("IQ4_NL", 400.0, 90.0, pull="m:iq4_nl")], "IQ4_NL"),
    ],
    ids=["none", "faster", "not offered", "too large", "alike", "worse", "fastest"],
)
def test_another_quantization_is_named_where_it_pays(others: list[Compared], chosen: str | None) -> None:
    found = comparing.better([compared("Q4_1", 100.0, 50.0, is_this=True), *others])
    assert (found.label if found else None) == chosen


def test_a_model_far_off_its_prediction_makes_no_other_quantization_faster() -> None:
    file = ModelFile(name="m", path=Path("m.gguf"), size=1)
    ratio = comparing._ratio(Subject(file=file, key="m", predicted=Speed(100.0, 1000.0)), Speeds(200.0, 20.0))
    assert corrected(Speed(100.0, 1000.0), ratio) == Speed(20.0, 200.0)


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (Tuning(), ""),
        (Tuning(decode_threads=2, prefill_threads=1), "2 threads for answering, 1 thread for reading"),
        (Tuning(kv_type="q8_0", flash_attention=True), "flash attention, a KV cache of q8_0, as you chose"),
    ],
    ids=["nothing", "threads", "cache"],
)
def test_a_tuning_in_words(tuning: Tuning, words: str) -> None:
    assert describe(tuning) == words


@pytest.mark.parametrize("arguments", [["--undo", "--show"], ["--show", "--kv", "f16"], ["--undo", "--quick"]])
def test_what_excludes_each_other_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="give one of them alone"):
        tune(*arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no-such-model"], 3, "there is no model"),
        (["--undo", "qwen3-4b"], 3, "localchat pull"),
        (["--kv", "q2"], 2, "--kv"),
        (["--show", "--undo"], 2, "give one of them alone"),
    ],
    ids=["unknown", "not here", "kv", "both"],
)
def test_bad_input_is_a_sentence(empty_home: Path, arguments: list[str], code: int, said: str) -> None:
    done = run_cli("tune", *arguments, home=empty_home)
    assert done.returncode == code and done.stdout == ""
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["smollm2-135m", ""])
def test_a_model_whose_time_has_changed_is_the_one_that_was_tuned(
    home: Path, name: str, capsys: Said, tmp_path: Path
) -> None:
    file = resolve("smollm2-135m")
    kept_trials.keep(kept_trials.key_of(file.sha256, file.path, file.size), name=file.name, tuned=TUNED)
    # A copy: what is installed here shares its inode, and so its time, with the model of all tests.
    shutil.copy(file.path, tmp_path / "copy")
    (tmp_path / "copy").replace(file.path)
    tune("--show", name)
    assert "Kept for smollm2-135m: 1 thread" in capsys.readouterr().out
    tune("--undo", name)
    assert "The tuning of smollm2-135m is forgotten" in capsys.readouterr().out
    assert spec_of("smollm2-135m").tuning == Tuning()


def test_a_model_in_parts_whose_time_has_changed_is_the_one_that_was_tuned(
    home: Path, tmp_path: Path, capsys: Said
) -> None:
    tiny = write_model(tmp_path / "tiny.gguf", speaks=LETTERS).read_bytes()
    folder = home / "models" / "o" / "r"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"m-0000{number}-of-00002.gguf").write_bytes(tiny)
    file = resolve("o/r")
    kept_trials.keep(kept_trials.key_of(file.sha256, file.path, file.size), name=file.name, tuned=TUNED)
    os.utime(folder / "m-00002-of-00002.gguf", (1, 1))
    tune("--undo", "o/r")
    assert "is forgotten" in capsys.readouterr().out
    # What was never verified was never tuned, though there is a file.
    (folder / "m-00002-of-00002.gguf.json").unlink()
    tune("--show", "o/r")
    assert "Nothing is kept for o/r" in capsys.readouterr().out


def test_the_tuning_of_a_model_that_is_gone_can_be_forgotten(
    home: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = resolve("smollm2-135m")
    kept_trials.keep(kept_trials.key_of(file.sha256, file.path, file.size), name=file.name, tuned=TUNED)
    file.path.unlink()
    own = write_model(tmp_path / "Own.gguf", speaks=LETTERS)
    kept_trials.keep(kept_trials.key_of(None, own, own.stat().st_size), name=str(own), tuned=TUNED)
    own.unlink()
    monkeypatch.chdir(tmp_path)
    for name, said in (("SmolLM2-135M", "smollm2-135m"), ("./Own.gguf", str(own))):
        tune("--show", name)
        assert f"Kept for {said}: 1 thread" in capsys.readouterr().out
        tune("--undo", name)
        assert f"The tuning of {said} is forgotten" in capsys.readouterr().out
        with pytest.raises(NoSuchModel):
            tune("--undo", name)
