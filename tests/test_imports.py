"""What a command imports: the way to a warm answer is short, and stays so. And every module has a place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import run_cli, stop_host
from tests.fake_engine import FakeEngine, say
from tests.tiny_models import LETTERS, write_model

_SCRIPT = """
import atexit, sys
atexit.register(lambda: print("\\n".join(["MODULES", *sys.modules]), file=sys.stderr))
from localchat.cli.main import main
main()
"""

HEAVY = {
    "asyncio",
    "huggingface_hub",
    "jinja2",
    "llama_cpp",
    "multiprocessing",
    "numpy",
    "platformdirs",
    "psutil",
    "requests",
    "rich",
    "sqlite3",
    "starlette",
    "textual",
    "uvicorn",
    "localchat.chats.store",
    "localchat.engine",
    "localchat.host",
    "localchat.models",
    "localchat.tui",
}


KEEPING = {"sqlite3", "localchat.chats.store"}
"""What a question needs that is kept."""


def imported(*arguments: str, home: Path) -> set[str]:
    """The modules that a command has imported by the time it ends."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.partition("MODULES\n")[2].split())


def test_a_warm_question_imports_nothing_heavy(tmp_path: Path) -> None:

    home = tmp_path / "home"
    model = write_model(tmp_path / "tiny.gguf", speaks=LETTERS)
    arguments = ("ask", "-m", str(model), "--max-tokens", "2", "hi")
    assert run_cli(*arguments, home=home).returncode == 0
    modules = imported(*arguments, home=home)
    unkept = imported(*arguments, "-n", home=home)
    stop_host(home)
    assert {"localchat.cli.ask", "localchat.client.local"} <= unkept
    assert unkept & (HEAVY | {"subprocess", "localchat.client.remote", "tomllib"}) == set()
    assert modules & (HEAVY | {"subprocess", "localchat.client.remote", "tomllib"}) == KEEPING


def test_a_question_to_a_server_imports_nothing_heavy(tmp_path: Path) -> None:
    with FakeEngine() as engine:
        engine.script(say("ok"))
        modules = imported("ask", "--engine", engine.url, "hi", home=tmp_path)
    assert modules & (HEAVY | {"subprocess", "localchat.client.local"}) == KEEPING


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_imports_almost_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    modules = imported(*arguments, home=tmp_path)
    assert modules & (HEAVY | {"click", "msgspec", "http.client", "socket", "json"}) == set()


@pytest.mark.parametrize("command", ["ask", "status", "stop"])
def test_the_help_of_a_command_imports_nothing_heavy(tmp_path: Path, command: str) -> None:
    assert imported(command, "--help", home=tmp_path) & HEAVY == set()


def test_the_list_of_chats_imports_nothing_heavy_but_the_database(tmp_path: Path) -> None:
    assert imported("chats", "list", home=tmp_path) & HEAVY == KEEPING


def test_status_and_stop_import_nothing_heavy(tmp_path: Path) -> None:
    for command in ("status", "stop"):
        assert imported(command, home=tmp_path) & HEAVY == set()


def test_every_module_has_its_place_in_the_architecture() -> None:
    root = Path(__file__).parents[1]
    named = set(re.findall(r"\w+", (root / "ARCHITECTURE.md").read_text()))
    modules = [file.relative_to(root / "src" / "localchat") for file in (root / "src" / "localchat").rglob("*.py")]
    assert len(modules) > 200
    assert [str(module) for module in modules if module.stem != "__init__" and module.stem not in named] == []
