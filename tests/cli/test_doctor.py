"""`localchat doctor`: what it finds on this machine, and on machines that have this or that wrong with them."""

from __future__ import annotations

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from localchat import machine
from localchat.cli.doctor import engine, files, network, report
from localchat.cli.doctor.report import Finding, examined
from localchat.client import measured
from localchat.errors import EngineFailed
from localchat.hardware import Device, EngineBuild
from localchat.models import records, store
from tests.terminal import Terminal

CARD = Device("CUDA0", "A card", "gpu", 6_000_000_000, 8_000_000_000, False)


Done = subprocess.CompletedProcess[str]


class Page(msgspec.Struct):
    ok: bool
    findings: list[Finding]


@pytest.fixture
def measured_home(home: Path) -> Path:
    """A home with the starter, where the speed need not be measured."""
    machine.save(machine.guess())
    return home


PATIENT = "from localchat.cli.doctor import network; network._LIMIT_S = 60; from localchat.cli.main import main; main()"
"""The command, where sources on a busy machine have a minute to answer."""


def doctor(*options: str, program: tuple[str, ...] = ("-m", "localchat"), **environment: str) -> Done:
    return subprocess.run(
        [sys.executable, *program, "doctor", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def read(done: subprocess.CompletedProcess[str]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    page = msgspec.json.decode(done.stdout, type=Page)
    for finding in page.findings:
        found.setdefault(finding.what, []).append(finding)
    assert done.returncode == (0 if page.ok else 1), done.stderr
    assert page.ok == all(finding.state != "problem" for finding in page.findings)
    return found


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


# The page


def test_the_page_names_everything_and_asks_no_network_offline(measured_home: Path) -> None:
    found = read(doctor("--json", "--offline"))
    assert list(found) == [
        *("load", "processor", "engine", "gpu", "cores", "memory", "speed", "software", "database", "terminal"),
        *("folder", "disk", "settings", "catalogue", "models", "process", "sources"),
    ]
    assert found["sources"] == [Finding("ok", "sources", "not asked: localchat is offline")]
    assert "llama-cpp-python" in found["engine"][0].found
    assert "1 installed, 98.4 MB, all verified" in found["models"][0].found
    assert "no engine is running" in found["process"][0].found
    assert found["speed"][0].state == "warning"  # a guess
    assert len(found["folder"]) == 6


def test_it_is_plain_when_piped_and_fits_a_terminal(measured_home: Path) -> None:
    piped = doctor("--offline")
    assert piped.returncode == 0
    assert "\x1b" not in piped.stdout
    *lines, empty, last = piped.stdout.splitlines()
    assert not empty
    assert re.fullmatch(r"no problems, \d warnings?\.", last)
    assert all(re.match(r"(ok|warning) ", line) for line in lines)
    terminal = Terminal("doctor", "--offline", home=measured_home, columns=80)
    assert terminal.end() == 0
    shown = terminal.output.decode()
    assert "\x1b[32mok" in shown
    assert "\x1b[33mwarning" in shown
    assert max(map(len, terminal.screen().splitlines())) <= 80


def test_settings_that_are_wrong_are_a_problem_and_hide_nothing_else(measured_home: Path) -> None:
    (measured_home / "settings.toml").write_text("threads = 2\nidle = 'long'\n")
    done = doctor("--json")
    found = read(done)
    assert done.returncode == 1
    settings = only(found["settings"])
    assert settings.state == "problem"
    assert "settings.toml, line 2, key idle" in settings.found
    assert "sources" in found  # what they say of the network is not known, so it is not asked
    assert len(found) > 12


def test_an_own_catalogue_that_is_wrong_is_a_problem(measured_home: Path) -> None:
    (measured_home / "models.toml").write_text("[[model]]\nnam = 'x'\n")
    found = read(doctor("--json", "--offline"))
    assert "models.toml, line 2" in only(found["catalogue"]).found
    assert only(found["catalogue"]).state == "problem"


def test_a_check_that_fails_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def strange() -> Iterator[Finding]:
        yield Finding("ok", "a", "b")
        raise ValueError("no such register")

    (finding,) = examined("cpu", strange)
    assert (finding.state, finding.what) == ("warning", "cpu")
    assert "no such register" in finding.found


def test_nothing_found_can_drive_the_terminal() -> None:
    page = report.page([Finding("ok", "gpu", "a\x1b]0;title\x07\ncard", "b\x1b[2J")])
    assert "\x1b" not in page
    assert len(page.splitlines()) == 1


# The engine and its processor

KNOWN = {"SSE3", "SSSE3", "AVX", "AVX2", "F16C", "FMA", "BMI2"}


def build(
    *cpu: str, devices: tuple[Device, ...] = (), offload: bool = False, **backends: dict[str, str]
) -> EngineBuild:
    return EngineBuild("libllama.so", {"CPU": dict.fromkeys(cpu, "1"), **backends}, offload, list(devices))


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize(
    ("built", "has", "state", "said"),
    [
        (KNOWN, KNOWN, "ok", "AVX2"),
        (KNOWN, KNOWN | {"AVX512", "AVX512_VNNI"}, "warning", "leaves AVX512, AVX512_VNNI unused"),
        ({"SSE3", "SSSE3"}, KNOWN, "warning", "leaves AVX, AVX2, F16C, FMA, BMI2 unused"),
        (KNOWN | {"AVX512"}, KNOWN, "problem", "this processor has no AVX512"),
        (KNOWN, KNOWN | {"AMX_INT8"}, "ok", "AMX is declined on purpose"),
        (KNOWN | {"AMX_INT8"}, KNOWN, "ok", "AVX2"),
        (KNOWN, KNOWN | {"AVX_VNNI"}, "ok", "AVX2"),
        (KNOWN, set(), "ok", "is not known"),
        (set(), {"SSE3"}, "warning", "any processor"),
    ],
)
def test_instructions_of_the_build_and_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, built: set[str], has: set[str], state: str, said: str
) -> None:
    monkeypatch.setattr(engine, "_instructions", lambda family: has)
    _, finding = engine.processor(build(*built, "OPENMP", "REPACK"))
    assert (finding.state, finding.what) == (state, "engine")
    assert said in finding.found
    assert ("--no-binary llama-cpp-python" in finding.next) == (state != "ok")


def test_the_kernels_names_are_understood() -> None:
    family = "arm" if engine.platform.machine() in ("arm64", "aarch64") else "x86"
    found = engine._instructions(family)
    assert {"NEON"} <= found or {"SSE3", "SSSE3"} <= found


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -ILL $$", "built for another processor than this one"),
        ("kill -ABRT $$", "died as it was loaded (SIGABRT)"),
        ("echo 'the engine library cannot be loaded' >&2; exit 7", "the engine library cannot be loaded"),
        ("exit 0", "does not load"),
    ],
)
def test_an_engine_that_dies_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EngineFailed, match=re.escape(said)):
        measured.ask_build()


# GPUs


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose kernel tells of no GPU."""
    for name, place in (("_DRM", "drm"), ("_NVIDIA", "nvidia"), ("_AMD", "kfd")):
        monkeypatch.setattr(engine, name, tmp_path / place)
    monkeypatch.setattr(engine.sys, "platform", "linux")
    return tmp_path


def graphics(kernel: Path, vendor: str) -> None:
    device = kernel / "drm" / "card0" / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")


def test_devices_of_the_engine_are_listed_with_their_memory(kernel: Path) -> None:
    shared = Device("Vulkan0", "inside", "integrated", 4_000_000_000, 16_000_000_000, True)
    first, second = engine.gpus(build(devices=(CARD, shared), offload=True))
    assert first == Finding("ok", "gpu", "CUDA0 (A card): 6.0 GB free of 8.0 GB")
    assert second.found.endswith("4.0 GB free of 16.0 GB, shared with the processor")


@pytest.mark.parametrize(
    ("vendor", "state", "following"),
    [
        ("0x10de", "warning", "CMAKE_ARGS=-DGGML_CUDA=ON (or -DGGML_VULKAN=ON)"),
        ("0x1002", "warning", "CMAKE_ARGS=-DGGML_HIP=ON (or -DGGML_VULKAN=ON)"),
        ("0x8086", "ok", "CMAKE_ARGS=-DGGML_VULKAN=ON "),
        ("0x1234", "ok", ""),
    ],
)
def test_a_gpu_that_the_build_cannot_use(kernel: Path, vendor: str, state: str, following: str) -> None:
    graphics(kernel, vendor)
    finding = only(list(engine.gpus(build())))
    assert finding.state == state
    assert finding.next.startswith(following)
    assert bool(finding.next) == bool(following)


def test_nvidias_driver_tells_of_its_cards_and_amds_of_its_own(kernel: Path) -> None:
    assert engine._present() == set()
    (kernel / "nvidia" / "0000:01:00.0").mkdir(parents=True)
    assert engine._present() == {"NVIDIA"}
    (kernel / "kfd").touch()
    assert engine._present() == {"AMD", "NVIDIA"}


def test_a_build_for_gpus_that_sees_none_points_to_the_driver(kernel: Path) -> None:
    graphics(kernel, "0x10de")
    finding = only(list(engine.gpus(build(offload=True, CUDA={"ARCHS": "890"}))))
    assert finding.state == "warning"
    assert "built for CUDA and sees none of NVIDIA" in finding.found
    assert "driver" in finding.next


# Files


def test_folders_open_to_others_are_a_warning_except_the_models(home: Path) -> None:
    home.chmod(0o755)
    (home / "models").chmod(0o755)
    found = [finding for finding in files.places() if finding.what == "folder"]
    states = {finding.found.split(":")[0]: finding.state for finding in found}
    of_home = {"settings": "warning", "state": "warning"}
    assert states == {"models": "ok", "chats": "ok", "cache": "ok", "runtime": "ok", **of_home}
    assert any(finding.next == f"chmod 700 {home}" for finding in found)
    home.chmod(0o700)
    assert {finding.state for finding in files.places() if finding.what == "folder"} == {"ok"}


def test_places_that_are_not_there_yet_are_no_fault(empty_home: Path) -> None:
    found = list(files.places())
    assert {finding.state for finding in found} <= {"ok", "warning"}
    assert sum("not there yet" in finding.found for finding in found) >= 3
    assert not empty_home.exists()


def test_models_to_verify_and_leftovers_are_named(home: Path) -> None:
    (model,) = store.installed()
    assert only(list(files.models())).state == "ok"
    records.record_file(model.path).unlink()
    (model.path.parent / "other.gguf.partial").write_bytes(bytes(5_000_000))
    unverified, left = files.models()
    assert unverified.state == left.state == "warning"
    assert f"not verified: {model.name}" in unverified.found
    assert unverified.next == "localchat verify"
    assert "unfinished download" in left.found
    assert "localchat prune" in left.next


# The network


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(503 if "broken" in self.path else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_sources_that_answer_and_the_token_that_is_never_shown(measured_home: Path, server: str) -> None:
    done = doctor(
        "--json",
        program=("-c", PATIENT),
        HF_ENDPOINT=f"http://{server}",
        HF_TOKEN="hf_secret",
        PIP_INDEX_URL=f"http://person:password@{server}/simple",
        PIP_CONFIG_FILE=os.devnull,
    )
    found = read(done)
    assert [finding.state for what in ("hub", "token", "index") for finding in found[what]] == ["ok", "ok", "ok"]
    assert "there is one" in only(found["token"]).found
    assert "127.0.0.1" in only(found["hub"]).found
    for secret in ("hf_secret", "password", "person"):
        assert secret not in done.stdout + done.stderr


def test_sources_that_do_not_answer_are_a_warning_with_the_reason(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address, limit_s, said in (
            (f"http://127.0.0.1:{port}", 0.5, "does not answer within"),
            ("http://127.0.0.1:1", 60.0, "127.0.0.1"),
            (f"http://{server}/broken", 60.0, "answers 503"),
            ("http://example.invalid", 60.0, "https"),
        ):
            monkeypatch.setattr(network, "_LIMIT_S", limit_s)
            finding = network._answers("hub", address)
            assert finding.state == "warning", address
            assert said in finding.found
            assert finding.next


def test_an_index_that_is_a_folder_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///srv/wheels/simple")
    assert only(list(network.index_answers())) == Finding("ok", "index", "pip asks a folder of this machine")
