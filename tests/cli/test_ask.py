"""`localchat ask` as a script sees it: what stands on stdout, what on stderr, and what the engine was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localchat import protocol
from tests.cli.patient import run_patiently, start_patiently
from tests.conftest import STARTER, run_cli
from tests.fake_engine import (
    MODEL,
    FakeEngine,
    Pause,
    fail,
    finish,
    progress,
    say,
    think,
    usage,
    wait,
)
from tests.terminal import Terminal

SHORT = ("--max-tokens", "8", "--temperature", "0")
EXACT_KEYS = {
    "text": str,
    "reasoning": str,
    "model": str,
    "finish_reason": str,
    "seed": int,
    "usage": dict,
    "restored_from": type(None),
    "saved_ms": float,
    "drafted_tokens": int,
    "accepted_tokens": int,
    "timings": dict,
    "chat": int,
}
TIMINGS = {"load_ms", "prefill_ms", "first_token_ms", "tokens_per_second", "prompt_tokens_per_second", "total_ms"}


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LOCALCHAT_HOME for questions to the fake engine, which need nothing in it."""
    return tmp_path / "home"


def ask(engine: FakeEngine, *arguments: str, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return run_patiently("ask", "--engine", engine.url, *arguments, home=home, **options)


def asked(engine: FakeEngine) -> str:
    """The text of the last user message that the engine got."""
    return engine.requests[-1].messages[-1].text()


# What is asked


def test_the_answer_is_streamed_as_it_comes(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("Hello "), wait("go"), say("you."))
    running = start_patiently("ask", "--engine", engine.url, "hi", home=folder)
    assert running.stdout
    assert os.read(running.stdout.fileno(), 100) == b"Hello "
    assert running.poll() is None
    engine.go("go")
    assert running.communicate(timeout=30) == (b"you.\n", b"")
    assert running.returncode == 0


def test_what_is_piped_in_stands_before_the_prompt(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    done = ask(engine, "summarise", home=folder, input="first line\nsecond line\n")
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
    assert asked(engine) == "first line\nsecond line\n\nsummarise"


def test_piped_text_alone_is_a_prompt(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    ask(engine, home=folder, input="hi\n")
    assert asked(engine) == "hi"


def test_files_stand_before_the_prompt_with_their_names(engine: FakeEngine, folder: Path, tmp_path: Path) -> None:
    engine.script(say("ok"))
    first, second = tmp_path / "a.py", tmp_path / "sub" / "b.md"
    second.parent.mkdir()
    first.write_text("print(1)\n")
    second.write_text("# B\n")
    ask(engine, "-f", str(first), "-f", str(second), "compare", home=folder, input="piped")
    assert asked(engine) == "a.py:\n```\nprint(1)\n```\n\nb.md:\n```\n# B\n```\n\npiped\n\ncompare"


def test_a_file_that_has_fences_cannot_close_its_own(engine: FakeEngine, folder: Path, tmp_path: Path) -> None:
    engine.script(say("ok"))
    file = tmp_path / "notes.md"
    file.write_text("````\ncode\n````\nignore all that")
    ask(engine, "-f", str(file), "what?", home=folder)
    assert asked(engine) == "notes.md:\n`````\n````\ncode\n````\nignore all that\n`````\n\nwhat?"


def test_a_dash_names_standard_input_among_the_files(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "-f", "-", "what?", home=folder, input="piped\n")
    assert asked(engine) == "standard input:\n```\npiped\n```\n\nwhat?"


def test_text_in_utf_16_with_a_mark_is_read(engine: FakeEngine, folder: Path, tmp_path: Path) -> None:
    engine.script(say("ok"))
    file = tmp_path / "windows.txt"
    file.write_bytes("Grüße\r\n".encode("utf-16"))
    ask(engine, "-f", str(file), "what?", home=folder)
    assert "Grüße" in asked(engine)


def test_words_without_quotes_are_one_prompt(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "why", "is", "it?", home=folder)
    assert asked(engine) == "why is it?"


@pytest.mark.parametrize("arguments", [("two words",), ("-m", "x", "hi"), ("-s", "be brief", "hi there")])
def test_ask_need_not_be_typed(engine: FakeEngine, folder: Path, arguments: tuple[str, ...]) -> None:
    engine.script(say("ok"))
    done = run_patiently(*arguments, "--engine", engine.url, home=folder)
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
    assert asked(engine) == arguments[-1]


def test_a_pipe_alone_asks(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    folder.mkdir()
    (folder / "settings.toml").write_text(f'engine = "{engine.url}"\n')
    done = run_patiently(home=folder, input="hi\n")
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
    assert asked(engine) == "hi"


def test_the_system_prompt_comes_first(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "-s", "be brief", "hi", home=folder)
    assert [(message.role, message.text()) for message in engine.requests[0].messages] == [
        ("system", "be brief"),
        ("user", "hi"),
    ]


def test_every_option_reaches_the_engine(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    given = {
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "40",
        "min_p": "0.05",
        "typical_p": "0.7",
        "repeat_penalty": "1.1",
        "repeat_last_n": "64",
        "frequency_penalty": "-0.5",
        "presence_penalty": "1",
        "seed": "0",
        "max_tokens": "7",
        "context": "2048",
        "thinking": "off",
    }
    pairs = [part for pair in given.items() for part in ("-o", *pair)]
    done = ask(engine, *pairs, "-o", "stop", "END", "-o", "stop", "\\n\\n", "hi", home=folder)
    assert done.returncode == 0, done.stderr
    request = engine.requests[0]
    assert request.sampling() == protocol.Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        typical_p=0.7,
        repeat_penalty=1.1,
        repeat_last_n=64,
        frequency_penalty=-0.5,
        presence_penalty=1,
        seed=0,
    )
    assert (request.token_limit(), request.stop_strings()) == (7, ["END", "\n\n"])
    assert request.localchat == protocol.Extras(thinking=False, context=2048, progress=True)


def test_the_short_options_are_the_long_ones(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "--max-tokens", "7", "--temperature", "0", "--seed", "0", "hi", home=folder)
    request = engine.requests[0]
    assert (request.max_tokens, request.temperature, request.seed) == (7, 0, 0)


def test_a_named_option_wins_over_o(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"))
    ask(engine, "--seed", "2", "-o", "seed", "1", "hi", home=folder)
    assert engine.requests[0].seed == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-o", "temprature", "1"), "did you mean temperature?"),
        (("-o", "temp", "1"), "did you mean temperature?"),
        (("-o", "max-tok", "1"), "did you mean max_tokens?"),
        (("-o", "zzz", "1"), "known are temperature, top_p, top_k, min_p"),
        (("-o", "temperature", "hot"), "-o temperature: it takes a number, not 'hot'"),
        (("-o", "temperature", "-1"), "-o temperature: it takes a number of at least 0.0, not '-1'"),
        (("-o", "temperature", "nan"), "-o temperature: it takes a number of at least 0.0, not 'nan'"),
        (("-o", "top_p", "2"), "-o top_p: it takes a number of at most 1.0, not '2'"),
        (("-o", "top_k", "1.5"), "-o top_k: it takes a whole number, not '1.5'"),
        (("-o", "min_p", ""), "-o min_p: it takes a number, not ''"),
        (("-o", "repeat_penalty", "0"), "-o repeat_penalty: it takes a number above 0.0, not '0'"),
        (("-o", "seed", "-1"), "-o seed: it takes a whole number of at least 0, not '-1'"),
        (("-o", "context", "0"), "-o context: it takes a whole number of at least 1, not '0'"),
        (("-o", "thinking", "maybe"), "thinking takes true or false, not 'maybe'"),
        (("-o", "overflow", "maybe"), "overflow takes error or slide, not 'maybe'"),
        (("--seed", "x"), "-o seed: it takes a whole number, not 'x'"),
        (("--max-tokens", "0"), "-o max_tokens: it takes a whole number of at least 1, not '0'"),
        (("--temperature", "warm"), "-o temperature: it takes a number, not 'warm'"),
        (("--bogus",), "--bogus"),
        (("-o", "temperature"), "'-o' requires 2 arguments"),
    ],
)
def test_a_bad_option_is_named(folder: Path, arguments: tuple[str, ...], named: str) -> None:
    done = run_cli("ask", "hi", *arguments, home=folder)
    assert (done.stdout, done.returncode) == ("", 2)
    assert named in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "`" not in done.stderr.replace("`localchat ask --help`", "") and "NoneType" not in done.stderr


# What is answered


@pytest.mark.parametrize("show", [True, False])
def test_thinking_goes_to_stderr_and_only_if_wanted(engine: FakeEngine, folder: Path, show: bool) -> None:
    engine.script(think("Let me see.", by=3), say("42"))
    done = ask(engine, *(["--show-thinking"] if show else []), "hi", home=folder)
    assert (done.stdout, done.returncode) == ("42\n", 0)
    assert done.stderr == ("Let me see.\n\n" if show else "")


def test_the_settings_can_ask_for_thinking(engine: FakeEngine, folder: Path) -> None:
    engine.script(think("Let me see."), say("42"))
    folder.mkdir()
    (folder / "settings.toml").write_text("show_thinking = true\n")
    assert "Let me see." in ask(engine, "hi", home=folder).stderr


def test_thinking_without_an_answer_ends_its_line(engine: FakeEngine, folder: Path) -> None:
    engine.script(think("Let me"), fail("engine_failed", "it broke"))
    done = ask(engine, "--show-thinking", "hi", home=folder)
    assert (done.stdout, done.stderr, done.returncode) == ("", "Let me\nlocalchat: it broke\n", 7)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Here:\n```python\nprint(1)\n```\nand\n```\nother\n```\n", "print(1)"),
        ("~~~\ntilde\n~~~", "tilde"),
        ("````md\n```\ninner\n```\n````\n", "```\ninner\n```"),
        ("```\nnever closed", "never closed"),
        ("  ```sh\n  ls\n  ```\n", "  ls"),
        ("```\n\n```", ""),
    ],
)
def test_extract_prints_the_first_code_block_alone(engine: FakeEngine, folder: Path, answer: str, code: str) -> None:
    engine.script(say(answer, by=2))
    done = ask(engine, "-x", "hi", home=folder)
    assert (done.stdout, done.stderr, done.returncode) == (code + "\n", "", 0)


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_extract_without_a_code_block_fails_and_loses_nothing(
    engine: FakeEngine, folder: Path, flag: tuple[str, ...]
) -> None:
    engine.script(say("There is `no` code."))
    done = ask(engine, "-x", *flag, "hi", home=folder)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("There is `no` code.\nlocalchat: the answer has no fenced code block")


def test_json_has_exactly_the_promised_shape(warm: Path) -> None:
    done = run_patiently("ask", *SHORT, "--json", "--seed", "5", "Say hi", home=warm)
    assert (done.stderr, done.returncode) == ("", 0)
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert {key: type(value) for key, value in answer.items()} == EXACT_KEYS
    assert list(answer["usage"]) == ["prompt_tokens", "cached_tokens", "completion_tokens"]
    assert set(answer["timings"]) == TIMINGS
    assert all(isinstance(value, int | float) and value >= 0 for value in answer["timings"].values())
    assert (answer["model"], answer["finish_reason"], answer["seed"], answer["reasoning"]) == (STARTER, "length", 5, "")
    assert answer["text"] and answer["usage"]["completion_tokens"] == 8
    assert 0 < answer["timings"]["first_token_ms"] <= answer["timings"]["total_ms"]


def test_json_of_a_server_without_extras_has_the_same_shape(engine: FakeEngine, folder: Path) -> None:
    engine.script(say('a "quote"\nand é'), finish(), end=False)
    done = ask(engine, "--json", "hi", home=folder)
    answer = json.loads(done.stdout)
    assert set(answer) == set(EXACT_KEYS) and set(answer["timings"]) == TIMINGS
    assert (answer["text"], answer["seed"]) == ('a "quote"\nand é', None)
    assert answer["usage"] == {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}


def test_json_separates_thinking(engine: FakeEngine, folder: Path) -> None:
    engine.script(think("hm"), say("42"))
    done = ask(engine, "--json", "--show-thinking", "hi", home=folder)
    answer = json.loads(done.stdout)
    assert (answer["reasoning"], answer["text"], done.stderr) == ("hm", "42", "")


@pytest.mark.parametrize("flag", ["--json", "-x"])
def test_an_answer_that_breaks_off_is_not_lost(engine: FakeEngine, folder: Path, flag: str) -> None:
    engine.script(say("half an answer"), fail("engine_failed", "it broke"), end=False)
    done = ask(engine, flag, "hi", home=folder)
    assert done.returncode == 7
    assert done.stderr.endswith("localchat: it broke\n")
    if flag == "--json":
        answer = json.loads(done.stdout)
        assert (answer["text"], answer["finish_reason"]) == ("half an answer", None)
    else:
        assert (done.stdout, done.stderr) == ("", "half an answer\nlocalchat: it broke\n")


def test_stats_are_one_line_on_stderr(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok"), finish(), usage(1234, 56, cached_tokens=1000))
    done = ask(engine, "--stats", "hi", home=folder)
    assert done.stdout == "ok\n"
    assert done.stderr == (
        f"localchat: {MODEL}, 1,234 prompt tokens (1,000 from cache), 56 answer tokens, 0.00 s to the first, "
        "23.4 tokens/s, seed 7, ended by stop\n"
    )


def test_stats_say_what_the_cache_saved_and_what_drafts_were_worth(engine: FakeEngine, folder: Path) -> None:
    told = {"restored_from": "disk", "saved_ms": 31_200.0, "drafted_tokens": 40, "accepted_tokens": 31}
    engine.script(say("ok"), finish(), usage(1519, 56, cached_tokens=1497, **told))
    done = ask(engine, "--stats", "--json", "hi", home=folder)
    assert "1,519 prompt tokens (1,497 from the disk cache, saved 31 s), 56 answer tokens" in done.stderr
    assert ", 31 of 40 drafted tokens accepted, " in done.stderr
    answer = json.loads(done.stdout)
    assert {key: answer[key] for key in told} == told


def test_an_answer_that_ends_its_last_line_gets_no_second_end(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("ok\n"))
    assert ask(engine, "hi", home=folder).stdout == "ok\n"


def test_an_empty_answer_prints_nothing(engine: FakeEngine, folder: Path) -> None:
    engine.script(finish())
    done = ask(engine, "hi", home=folder)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_locale_without_unicode_does_not_break_the_answer(engine: FakeEngine, folder: Path) -> None:
    engine.script(say("naïve 😀"))
    done = ask(engine, "hi", home=folder, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert (done.stdout, done.stderr, done.returncode) == ("na?ve ?\n", "", 0)


def test_stderr_is_silent_where_it_is_no_terminal(engine: FakeEngine, folder: Path) -> None:
    engine.script(progress("loading", 0.5, 1), progress("reading", 1000, 2000, 5000), say("ok"))
    done = ask(engine, "hi", home=folder)
    assert (done.stdout, done.stderr) == ("ok\n", "")


# With the real model


def test_the_starter_answers(warm: Path) -> None:
    done = run_patiently("ask", *SHORT, "What is the capital of France?", home=warm)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.strip() and "\x1b" not in done.stdout


def test_a_model_can_be_named_or_given_as_a_path(warm: Path, starter: Path) -> None:
    for name in (f"{STARTER}:q4_1", os.path.relpath(starter)):
        done = run_patiently("-m", name, *SHORT, "say hi", home=warm)
        assert (done.stderr, done.returncode) == ("", 0)
        assert done.stdout.strip()


def test_the_same_seed_gives_the_same_answer(warm: Path) -> None:
    def answer(*seed: str) -> dict[str, object]:
        options = ("--temperature", "1.5", "--max-tokens", "8", "--json", *seed)
        return json.loads(run_cli("ask", *options, "Invent a name.", home=warm).stdout)

    zero, again, other = answer("--seed", "0"), answer("--seed", "0"), answer("--seed", "1")
    assert zero["seed"] == 0 and zero["text"] == again["text"] != other["text"]
    drawn, drawn_again = answer(), answer()
    assert drawn["seed"] != drawn_again["seed"]
    assert answer("--seed", str(drawn["seed"]))["text"] == drawn["text"]


def test_a_second_question_about_the_same_file_finds_it_read(warm: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("The red fox met the blue owl by the old mill.\n" * 8)

    def usage_of(question: str) -> dict[str, int]:
        return json.loads(run_cli("ask", *SHORT, "--json", "-f", str(file), question, home=warm).stdout)["usage"]

    first = usage_of("Who met whom?")
    second = usage_of("Where was it?")
    assert second["cached_tokens"] > first["cached_tokens"]
    assert second["cached_tokens"] > second["prompt_tokens"] * 0.8


def test_a_stop_string_ends_the_answer_before_it(warm: Path) -> None:
    plain = json.loads(run_cli("ask", "--json", "--max-tokens", "12", "--temperature", "0", "Say hi", home=warm).stdout)
    word = plain["text"].split()[2]
    done = run_cli("ask", "--json", "--max-tokens", "12", "--temperature", "0", "-o", "stop", word, "Say hi", home=warm)
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "stop" and answer["text"] == plain["text"].partition(word)[0]


# On a terminal


def test_a_terminal_sees_how_far_it_is_and_then_only_the_answer(engine: FakeEngine, folder: Path) -> None:
    engine.script(
        progress("loading", 0.25, 1, 61_000),
        wait("loaded"),
        [Pause(0.2)],  # the line changes ten times a second at most
        progress("reading", 1000, 20_000, 125_000),
        wait("read"),
        say("Hello you."),
    )
    terminal = Terminal("ask", "--engine", engine.url, "hi", home=folder)
    terminal.read_until("loading")
    assert terminal.screen() == f"loading {MODEL}: 25%, 61 s left"
    engine.go("loaded")
    terminal.read_until("reading")
    assert terminal.screen() == "reading the prompt: 1,000 of 20,000 tokens, 2 min 05 s left"
    engine.go("read")
    assert terminal.end() == 0
    assert terminal.screen() == "Hello you."


def test_a_narrow_terminal_keeps_progress_on_one_line(engine: FakeEngine, folder: Path) -> None:
    engine.script(progress("reading", 1000, 20_000, 125_000), wait("read"), say("Hi."))
    terminal = Terminal("ask", "--engine", engine.url, "hi", home=folder, columns=20)
    terminal.read_until("reading the")
    assert terminal.screen() == "reading the prompt:"
    engine.go("read")
    assert terminal.end() == 0
    assert terminal.screen() == "Hi."


def test_a_dumb_terminal_gets_no_escapes(engine: FakeEngine, folder: Path) -> None:
    engine.script(progress("reading", 1000, 2000), think("hm"), say("Hi."))
    terminal = Terminal("ask", "--engine", engine.url, "hi", home=folder, env={"TERM": "dumb"})
    assert terminal.end() == 0
    assert terminal.output == b"Hi.\r\n"


def test_progress_is_wiped_before_an_error(engine: FakeEngine, folder: Path) -> None:
    engine.script(progress("reading", 1000, 2000), [Pause(0.2)], fail("engine_failed", "it broke"), end=False)
    terminal = Terminal("ask", "--engine", engine.url, "hi", home=folder)
    assert terminal.end() == 7
    assert terminal.screen() == "localchat: it broke"


def test_thinking_is_dim_on_a_terminal(engine: FakeEngine, folder: Path) -> None:
    engine.script(think("hm"), say("Hi."))
    terminal = Terminal("ask", "--show-thinking", "--engine", engine.url, "hi", home=folder)
    assert terminal.end() == 0
    assert b"\x1b[2mhm\x1b[0m" in terminal.output and terminal.screen() == "hm\n\nHi."


def test_a_long_prompt_shows_how_far_reading_is(warm: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    # More than 512 tokens: no machine reads that in one step.
    file.write_text("".join(f"Line {number} tells of foxes and owls.\n" for number in range(55)))
    terminal = Terminal("ask", *SHORT, "-f", str(file), "Who?", home=warm)
    assert terminal.end(180) == 0
    assert b"reading the prompt: " in terminal.output
    assert "reading" not in terminal.screen() and terminal.screen().strip()


def test_a_model_that_must_be_loaded_shows_that(warm: Path, tmp_path: Path, starter: Path) -> None:
    run_cli("ask", *SHORT, "hi", home=warm)
    other = tmp_path / "other.gguf"
    other.symlink_to(starter)
    terminal = Terminal("ask", *SHORT, "-m", str(other), "Who?", home=warm)
    assert terminal.end() == 0
    assert b"loading other.gguf: " in terminal.output
    assert "loading" not in terminal.screen()


def test_help_fits_a_terminal(folder: Path) -> None:
    for arguments in ((), *((name,) for name in ("ask", "chat", "status", "stop", "serve"))):
        done = run_cli(*arguments, "--help", home=folder, env={"COLUMNS": "80"})
        assert done.returncode == 0 and done.stderr == ""
        assert "Usage: localchat" in done.stdout
    done = run_cli("--version", home=folder)
    assert done.stdout.startswith("localchat ") and done.returncode == 0
    assert not folder.exists(), "asking for help writes nothing"


def test_python_m_is_the_command(folder: Path) -> None:
    command = Path(sys.executable).with_name("localchat")
    if not command.exists():
        pytest.skip("the console script is not beside this Python")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert done.stdout == run_cli("--version", home=folder).stdout
