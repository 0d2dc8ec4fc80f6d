"""How long `localchat models` takes with 40 installed models: the first time, when every header is read, and then.

`python benchmarks/models.py [ROUNDS]`. The models are hard links of the starter under forty names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import environment, home_with_starter, interleaved, localchat, report

INSTALLED = 40


def main(rounds: int) -> None:
    _, starter = home_with_starter()
    with tempfile.TemporaryDirectory(dir=starter.parents[4]) as name:
        home = Path(name)
        for number in range(INSTALLED):
            folder = home / "models" / "bench" / f"Model-{number}-GGUF"
            folder.mkdir(parents=True)
            os.link(starter, folder / starter.name)
            shutil.copy2(f"{starter}.json", folder)
        env = environment(home)

        def first() -> float:
            (home / "headers.json").unlink(missing_ok=True)
            return listing()

        def listing() -> float:
            began = time.perf_counter()
            done = subprocess.run(localchat("models"), env=env, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            assert done.stdout.count("bench/Model-") == INSTALLED
            return seconds

        results = interleaved({"models, headers unread": first, "models": listing}, rounds)
        report(f"`localchat models` with {INSTALLED} installed models", "s", results, [])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
