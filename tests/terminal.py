"""A command in a real pseudo-terminal: what it writes, what a person would see, and keys to press."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`localchat ARGUMENTS` (or another `command`) in a terminal of its own, `columns` wide."""

    def __init__(
        self,
        *arguments: str,
        home: Path,
        env: dict[str, str] | None = None,
        columns: int = 100,
        command: list[str] | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "LOCALCHAT_HOME": str(home), **(env or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "localchat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.output = b""

    def settings(self) -> list[object]:
        """The terminal's modes, as `stty -g` has them."""
        return termios.tcgetattr(self._master)

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read_until(self, text: str, seconds: float = 60.0) -> None:
        """Read until `text` was written."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.output:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.output!r}"
            assert self._read(0.1), f"it ended without {text!r}: {self.output!r}"

    def end(self, seconds: float = 60.0, *, pressing: bytes = b"") -> int:
        """Read to the end; return the exit code. `pressing` is pressed each second, as an impatient person would.

        Some sandboxes lose a Ctrl+C that comes right after the prompt, whatever program runs.
        """
        deadline, due = time.monotonic() + seconds, time.monotonic()
        while self._read(0.1):
            now = time.monotonic()
            assert now < deadline, f"it never ended: {self.output!r}"
            if pressing and now >= due and self.process.poll() is None:
                due = now + 1.0
                self.press(pressing)
        code = self.process.wait(timeout=60)
        os.close(self._master)
        return code

    def screen(self) -> str:
        """The lines that a person sees, trailing blanks left out."""
        return screen(self.output.decode())

    def _read(self, seconds: float) -> bool:
        """Take what was written within `seconds`; False once the other end has closed."""
        if not select.select([self._master], [], [], seconds)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux says EIO where all other ends are closed
            return False
        self.output += data
        return bool(data)


def screen(output: str) -> str:
    """What stands on a wide terminal after `output`: returns, line ends and erasing are obeyed, colours not."""
    lines: list[str] = [""]
    column = 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", output):
        if part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
            column = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif not _CONTROL.fullmatch(part):
            lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + len(part) :]
            column += len(part)
    return "\n".join(line.rstrip() for line in lines).strip("\n")
