"""Renders a model's own chat template in a process that can be killed (`template_process`)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from localchat.errors import LocalchatError
from localchat.hardware import resident_memory
from localchat.safe_text import safe_line

RENDER_LIMIT_S = 2.0
_START_LIMIT_S = 30.0
_SCRIPT = Path(__file__).with_name("template_process.py")
_ANSWER_LIMIT = 256 << 20
_FAILURES = (OSError, ValueError, EOFError)  # a pipe that closed (TimeoutError is an OSError), half an answer, its end


class TemplateBroken(LocalchatError):
    """The template cannot run: a syntax error, or no end in sight."""


class TemplateRefused(LocalchatError):
    """The template itself objects to these messages (by `raise_exception`)."""


class TemplateRenderer:
    """The renderer process; started at once, so that it is ready by the time a model is loaded."""

    def __init__(self) -> None:
        self._setup: dict[str, str] | None = None
        self._start()

    def _start(self) -> None:
        # Neither the current folder (-P) nor PYTHON* variables (-E) decide what is imported.
        self._process = subprocess.Popen(
            [sys.executable, "-E", "-P", str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._is_ready = self._is_set_up = False
        self._received = bytearray()

    @property
    def memory(self) -> int:
        """Bytes that the process has in memory."""
        return resident_memory(self._process.pid)

    def use(self, template: str, bos_token: str, eos_token: str) -> None:
        """Compile `template` for the renders that follow. Raises `TemplateBroken`."""
        self._setup = None
        setup = {"template": template, "bos_token": bos_token, "eos_token": eos_token}
        self._ask(setup)
        self._setup, self._is_set_up = setup, True

    def render(self, messages: list[dict[str, Any]], began: float | None = None, **variables: Any) -> str:
        """The text of a conversation that began at a time (seconds since 1970; None: now).

        Raises `TemplateRefused` or `TemplateBroken`.
        """
        return self._ask({"variables": {"messages": messages, **variables}, "began": began})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not yet written is of no use to anybody
                assert pipe
                pipe.close()

    def _ask(self, request: dict[str, Any]) -> str:
        try:
            answer = self._exchange(request)
        except _FAILURES:
            # A machine under load can make a good template late, or kill its process: it is asked once more.
            self._replace()
            try:
                answer = self._exchange(request)
            except _FAILURES as error:
                self._replace()
                late = isinstance(error, TimeoutError)
                raise TemplateBroken("it takes too long" if late else "it died of too much memory or text") from error
        if "refused" in answer:
            raise TemplateRefused(safe_line(answer["refused"]))
        if "broken" in answer:
            raise TemplateBroken(safe_line(answer["broken"]))
        return answer["text"]

    def _replace(self) -> None:
        """End the process and start another; where none can be started, the next request tries again."""
        self.close()
        with suppress(OSError):
            self._start()

    def _exchange(self, request: dict[str, Any]) -> dict[str, str]:
        """Send a request and wait for its answer; a new process is told the template first."""
        if not self._is_ready:
            self._receive(_START_LIMIT_S)
            self._is_ready = True
        if self._setup and not self._is_set_up:
            self._send(self._setup)
            self._receive(RENDER_LIMIT_S)
            self._is_set_up = True
        self._send(request)
        return self._receive(RENDER_LIMIT_S)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self, seconds: float) -> dict[str, str]:
        """One line of answer within `seconds`."""
        assert self._process.stdout
        deadline = time.monotonic() + seconds
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._received[-(1 << 16) :]:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            data = os.read(descriptor, 1 << 16)
            if not data or len(self._received) > _ANSWER_LIMIT:
                raise EOFError
            self._received += data
        line, self._received = bytes(self._received), bytearray()
        answer: dict[str, str] = json.loads(line)
        return answer
