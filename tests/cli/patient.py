"""`localchat ask` where the disk has a minute in place of two seconds, so that a machine that stands still for a while
costs no answer its place among what is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = "from localchat.cli import keeping; keeping._PATIENCE_S = 60; from localchat.cli.main import main; main()"


def run_patiently(*arguments: str, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """As `run_cli` runs a command."""
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    environment = {**os.environ, "LOCALCHAT_HOME": str(home), **options.pop("env", {})}  # type: ignore[dict-item]
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def start_patiently(*arguments: str, home: Path) -> subprocess.Popen[bytes]:
    """As `start_cli` starts a command."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env={**os.environ, "LOCALCHAT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
