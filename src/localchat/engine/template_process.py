"""The process in which a model's own chat template runs: nothing but Jinja, in a sandbox, within hard limits.

A template comes with the model, so it is foreign code. The sandbox keeps it from Python's internals, but it can still
burn processor and memory; here it can be killed without taking the engine along. One JSON object a line on stdin, one
on stdout: first `{"template", "bos_token", "eos_token"}`, then render requests (`{"variables", "began"}`: messages
among the former, and the time that the template shall take for now), each answered by `{"text"}`, `{"refused"}` (the
template's own objection) or `{"broken"}` (it cannot run).

Run as a script, it imports nothing of localchat: its start is on the way to a first answer.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT_BYTES = 256 << 20
_SHARED_BYTES = 32 << 20  # code of the interpreter and its libraries, which the kernel does not count as data

_LAST_RESORT_S = 8.0
"""After this long a request ends the process. Whoever asked gives up far earlier, unless it was killed itself."""

_OUTPUT_LIMIT_CHARACTERS = 32 << 20
_REASON_LIMIT_CHARACTERS = 500
_TOO_LARGE = "it needs more memory than a chat template may have"


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _tojson(value: object, indent: int | None = None, **_: object) -> str:
    # As transformers does it: no HTML escapes, non-ASCII kept.
    return json.dumps(value, ensure_ascii=False, indent=indent)


_began: float | None = None


def _strftime_now(form: str) -> str:
    now = datetime.now() if _began is None else datetime.fromtimestamp(_began)
    return now.strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.filters["from_json"] = json.loads
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["from_json"] = json.loads
    return environment


def _limit_itself() -> None:
    with suppress(AttributeError):  # Windows has no such signal
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        import resource
    except ImportError:  # Windows has no such limits; there the parent's time limit is the only one
        return
    data = MEMORY_LIMIT_BYTES - _SHARED_BYTES
    for kind, limit in ((resource.RLIMIT_DATA, data), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a stricter limit may be set already
            resource.setrlimit(kind, (limit, limit))


def _alarm(seconds: float) -> None:
    with suppress(AttributeError):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer(render: Any, request: dict[str, Any]) -> dict[str, str]:
    global _began
    _began = request["began"]
    try:
        text = render(**request["variables"])
    except TemplateError as error:
        return {"refused": str(error)[:_REASON_LIMIT_CHARACTERS]}
    except MemoryError:
        return {"broken": _TOO_LARGE}
    except RecursionError:
        return {"broken": "it calls itself without end"}
    except Exception as error:  # a template can raise anything that Python can
        return {"broken": f"{type(error).__name__}: {error}"[:_REASON_LIMIT_CHARACTERS]}
    if len(text) > _OUTPUT_LIMIT_CHARACTERS:
        return {"broken": "its output has no end"}
    return {"text": text}


def _compile(request: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    variables = {"bos_token": request["bos_token"], "eos_token": request["eos_token"]}
    try:
        return _environment().from_string(request["template"], globals=variables).render, {"text": ""}
    except TemplateSyntaxError as error:
        reason = f"line {error.lineno}: {error.message}"
    except Exception as error:  # the compiler behind Jinja has limits of its own: nesting, recursion, memory
        reason = f"{type(error).__name__}: {error}"
    return None, {"broken": reason[:_REASON_LIMIT_CHARACTERS]}


def main() -> None:
    """Serve render requests until stdin ends."""
    _limit_itself()
    print(json.dumps({"ready": True}), flush=True)
    render: Any = None
    for line in sys.stdin:
        _alarm(_LAST_RESORT_S)
        try:
            request = json.loads(line)
            if "template" in request:
                render, answer = _compile(request)
            else:
                answer = _answer(render, request) if render else {"broken": "it does not compile"}
            reply = json.dumps(answer)
        except MemoryError:
            reply = json.dumps({"broken": _TOO_LARGE})
        print(reply, flush=True)
        _alarm(0)


if __name__ == "__main__":
    main()
