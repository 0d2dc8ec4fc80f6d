"""`localchat bench`: what it prints and keeps, what goes by it afterwards, and everything that can be in its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import click
import msgspec
import pytest

from localchat import trials as kept_trials
from localchat.cli import bars
from localchat.cli.bench import command
from localchat.client import trials
from localchat.client.local import LocalEngine
from localchat.errors import DoesNotFit, EngineFailed, Interrupted
from localchat.locks import FileLock
from localchat.models import overview, plan
from localchat.models.assess import Circumstances
from localchat.paths import paths, private_folder
from localchat.trials import Order, Speeds
from tests.cli.trial_processes import BENCH, faster, measured_machine, prints
from tests.conftest import is_alive, run_cli, start_cli, status_of, wait_for
from tests.tiny_models import LETTERS, write_model


def bench(*arguments: str) -> None:
    """Run the command in this process."""
    command.main(list(arguments), prog_name="localchat bench", standalone_mode=False)


def test_a_real_model_is_measured_and_kept(home: Path, tmp_path: Path) -> None:
    measured_machine(threads=1)
    model = write_model(tmp_path / "tiny.gguf", speaks=LETTERS, context=1024)
    # An engine that a question left behind gives its memory back first.
    assert run_cli("ask", "-n", "-m", str(model), "--max-tokens", "2", "hi", home=home).returncode == 0
    done = run_cli("bench", "--quick", "--json", str(model), home=home)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bench"]["threads"] and said["speeds"]["decode"] > 0 and said["moved_bytes_per_second"] > 0
    assert said["bandwidth_share"] == pytest.approx(said["moved_bytes_per_second"] / said["bandwidth"])
    status = status_of(home)
    assert status and "model" not in status
    kept = kept_trials.of_model(kept_trials.key_of("", model, model.stat().st_size))
    assert kept and kept.bench and kept.bench.predicted
    assert not list((home / "cache").glob("tmp*"))


def test_the_report_is_a_table_with_bars(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_machine()
    monkeypatch.setattr(bars, "has_unicode", lambda: True)
    prints(monkeypatch, {"share": 0.5, "doing": "2 threads"}, {"notice": "a remark"}, {"bench": BENCH})
    bench("smollm2-135m")
    out, err = capsys.readouterr()
    assert "smollm2-135m (Q4_1, 98.4 MB)" in out and "medians of 3 rounds" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["2", "*", "150", "70.0", "█" * 24] in lines
    assert ["4,096", "tokens", "60.0", "10.0", "███▍"] in lines
    assert ["16", "answers", "150", "9.4", "█" * 24] in lines
    assert "680 times as fast" in out and "170 times as fast" in out
    assert [one for one in lines if one[:2] == ["Q4_1", "*"] and one[4:6] == ["150", "70.0"]]
    assert [one for one in lines if one[:1] == ["Q8_0"]]
    assert "GB/s of weights and cache" in out and "\x1b" not in out
    assert "a remark" in err and "too low" not in out


def test_bars_are_plain_where_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "has_unicode", lambda: False)
    assert bars.bar(1.0, 2.0, 10) == "#####" and bars.bar(0.001, 2.0, 10) == "#" and bars.bar(None, 1.0) == ""
    monkeypatch.setattr(bars, "has_unicode", lambda: True)
    assert bars.bar(1.0, 2.0, 9) == "████▌" and bars.bar(0.001, 2.0, 10) == "▏"


def test_a_terminal_without_unicode_gets_letters(home: Path) -> None:
    measured_machine()
    code = "from localchat.cli import bars; print(bars.bar(1, 2), bars.has_unicode())"
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}):
        done = subprocess.run(
            [os.sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert done.stdout.split() == ["############", "False"]


def test_estimates_go_by_what_was_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_machine()
    now = Circumstances.now()
    before = next(row for row in overview.rows(now) if row.name == "smollm2-135m")
    assert not before.measured
    prints(monkeypatch, {"bench": BENCH})
    bench("smollm2-135m")
    after = next(row for row in overview.rows(now) if row.name == "smollm2-135m")
    assert after.measured and (after.tokens_per_second, after.prefill_tokens_per_second) == (70.0, 150.0)
    other = next(row for row in overview.rows(now) if row.name == "smollm2-360m")
    assert not other.measured


def test_other_quantizations_of_a_model_are_corrected_by_it(home: Path) -> None:
    measured_machine()
    now = Circumstances.now()
    entry, quantization = plan.catalogue().find("smollm2-360m:q8_0") or (None, None)
    assert entry and quantization
    before = plan.assess_entry(entry, quantization, now).speed
    was = faster(BENCH.speeds, 1.25)
    kept_trials.keep(
        "another file of it", name="", entry=entry.name, bench=msgspec.structs.replace(BENCH, predicted=was)
    )
    after = plan.assess_entry(entry, quantization, now)
    assert before.decode and not after.measured
    assert after.speed.decode == pytest.approx(before.decode * 0.8)


def test_figures_of_a_busy_machine_are_shown_and_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_machine()
    prints(monkeypatch, {"bench": msgspec.structs.replace(BENCH, others=0.4)})
    bench("smollm2-135m")
    assert "Other programs had 40% of the processor meanwhile, so these figures are too low" in capsys.readouterr().out
    row = next(row for row in overview.rows(Circumstances.now()) if row.name == "smollm2-135m")
    assert not row.measured


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({"error": "no memory: close other programs", "code": "does_not_fit"}, DoesNotFit),
        ({"share": 0.1, "doing": "x"}, EngineFailed),
    ],
)
def test_what_ends_the_trial_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, line: dict[str, object], kind: type[Exception]
) -> None:
    measured_machine()
    prints(monkeypatch, line, then="sys.stderr.write('GGML_ASSERT(x) failed\\n'); sys.stderr.flush(); os.abort()")
    with pytest.raises(kind) as error:
        bench("smollm2-135m")
    if kind is EngineFailed:
        assert "SIGABRT" in str(error.value) and "GGML_ASSERT(x) failed" in str(error.value)
    assert not paths().tunings.exists()


def test_a_trial_that_hangs_is_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_machine()
    monkeypatch.setattr(trials, "_TIMEOUT_S", 0.3)
    prints(monkeypatch, {"share": 0.1, "doing": "x"}, then="time.sleep(600)")
    with pytest.raises(EngineFailed, match="not done after"):
        bench("smollm2-135m")


def test_interrupting_ends_the_process_and_keeps_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_machine()
    pids: list[int] = []

    def interrupt(_share: float, doing: str) -> None:
        pids.append(int(doing))
        raise KeyboardInterrupt

    prints(
        monkeypatch, then="print(json.dumps({'share': 0.5, 'doing': str(os.getpid())}), flush=True)\ntime.sleep(600)"
    )
    run = trials.bench
    monkeypatch.setattr(trials, "bench", lambda order, _progress, notice: run(order, interrupt, notice))
    with pytest.raises(Interrupted, match="nothing was kept"):
        bench("smollm2-135m")
    assert pids and not is_alive(pids[0])
    assert not paths().tunings.exists()


def test_ctrl_c_is_the_documented_exit(home: Path, tmp_path: Path) -> None:
    measured_machine()
    model = write_model(tmp_path / "tiny.gguf", layers=8, width=512)
    process = start_cli("bench", str(model), home=home)
    assert process.stderr
    wait_for(lambda: b"loading" in process.stderr.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert b"nothing was kept" in process.stderr.read()
    assert not (home / "tunings.json").exists()


def test_two_do_not_measure_each_other(home: Path) -> None:
    measured_machine()
    private_folder(paths().runtime)
    with FileLock(paths().trial_lock), pytest.raises(EngineFailed, match="another `localchat bench`"):
        bench("smollm2-135m")


def test_an_engine_that_answers_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_machine()
    busy = msgspec.convert(
        {"version": "0", "pid": 1, "started": 0.0, "idle_s": 0.0, "active": 1}, trials.protocol.Status
    )
    answers = iter([busy, busy, None])
    monkeypatch.setattr(LocalEngine, "status", lambda _self: next(answers))
    monkeypatch.setattr(trials, "_LOOK_EVERY_S", 0.01)
    prints(monkeypatch, {"bench": BENCH})
    with trials.alone(lambda text: print(text)):
        pass
    assert capsys.readouterr().out.count("the engine is answering: waiting") == 1
    assert next(answers, "all were asked") == "all were asked"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no-such-model"], 3, "there is no model"),
        (["./nothing.gguf"], 3, "there is no file"),
        (["a", "b"], 2, "unexpected extra argument"),
        (["--rounds", "0"], 2, "No such option"),
    ],
    ids=["unknown", "no file", "two models", "option"],
)
def test_bad_input_is_a_sentence(empty_home: Path, arguments: list[str], code: int, said: str) -> None:
    done = run_cli("bench", *arguments, home=empty_home)
    assert done.returncode == code and done.stdout == ""
    assert said in done.stderr and "Traceback" not in done.stderr


def test_offline_nothing_is_fetched(empty_home: Path) -> None:
    done = run_cli("--offline", "bench", "qwen3-4b", home=empty_home)
    assert done.returncode == 4 and "offline" in done.stderr


def test_a_damaged_model_is_refused(home: Path, tmp_path: Path, starter: Path) -> None:
    measured_machine()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(starter.read_bytes()[: 5 << 20])
    done = run_cli("bench", str(damaged), home=home)
    assert done.returncode == 8 and "damaged.gguf" in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_costs_no_report(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_machine()
    prints(monkeypatch, {"bench": BENCH})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_trials, "write_private", full)
    bench("smollm2-135m")
    out, err = capsys.readouterr()
    assert "THREADS" in out and "cannot be kept (No space left on device)" in err


def test_the_order_is_what_the_engine_would_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_machine()
    orders: list[Order] = []

    def take(order: Order, *_: object) -> object:
        orders.append(order)
        return BENCH

    monkeypatch.setattr(trials, "bench", take)
    bench("--quick")
    assert orders[0].path.endswith("SmolLM2-135M-Instruct.Q4_1.gguf") and orders[0].quick
    assert orders[0].gpu_layers == 0 and orders[0].cache == str(paths().cache)


def test_speeds_are_positive() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"prefill": 0.0, "decode": 1.0}, Speeds)
    assert isinstance(command, click.Command)


@pytest.mark.parametrize("command", ["bench", "tune"])
def test_a_cache_folder_that_is_no_utf_8_text_is_a_sentence(tmp_path: Path, command: str) -> None:
    model = write_model(tmp_path / "tiny.gguf", speaks=LETTERS)
    places = {f"XDG_{name}_HOME": str(tmp_path / name) for name in ("CONFIG", "DATA", "STATE")}
    done = run_cli(
        *(command, "--quick", str(model)),
        home=Path(),
        env={"LOCALCHAT_HOME": "", **places, "XDG_CACHE_HOME": os.fsdecode(bytes(tmp_path) + b"/caf\xe9")},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("/localchat has a name that is no UTF-8 text: rename it")
