"""The person's own settings: `settings.toml` in the config folder, read once, named by file, line and key when wrong."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from localchat.errors import UsageError
from localchat.paths import paths
from localchat.protocol import Sampling

T = TypeVar("T")
Positive = Annotated[int, msgspec.Meta(gt=0)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person can set once instead of typing it each time; an option on the command line wins."""

    model: str | None = None
    """The model used where none is named: a catalogue name, an installed name, or a path to a GGUF file."""

    system: str | None = None
    """The system prompt used where none is given."""

    engine: str | None = None
    """The base URL of an OpenAI-compatible server to use instead of this machine's own engine."""

    offline: bool = False
    """Open no network connection, whatever is asked (as `LOCALCHAT_OFFLINE=1`)."""

    idle: Positive = 300
    """Seconds without a question after which the engine process leaves memory."""

    threads: Positive | None = None
    """CPU threads that the engine uses; unset, one for each physical core."""

    context: Positive | None = None
    """The context window, in tokens; unset, it grows with the conversation as far as model and memory allow."""

    show_thinking: bool = False
    """Show what a model thinks before it answers (`ask` writes it to stderr)."""

    options: Sampling = Sampling()
    """Sampling defaults: temperature, top_p, top_k, min_p, repeat_penalty, seed and the like."""


@cache
def settings() -> Settings:
    """The settings of this process; without a file, the defaults. Raises `UsageError` naming file, line and key."""
    return load(paths().settings)


def is_offline() -> bool:
    """Whether the person forbade every network connection."""
    return os.environ.get("LOCALCHAT_OFFLINE", "") not in ("", "0") or settings().offline


def load(file: Path) -> Settings:
    """Read one settings file. Raises `UsageError` with file, line and key where it is wrong."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}; make it readable or remove it") from error
    return decode_toml(file, raw, Settings)


def decode_toml(file: Path, raw: bytes, kind: type[T]) -> T:
    """Validate TOML text as `kind`. Raises `UsageError` naming file, line and key."""
    import tomllib

    try:
        text = raw.decode()
        return msgspec.convert(tomllib.loads(text), kind)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `")
        unknown = re.search(r"unknown field `(.+?)`", problem)
        keys = re.findall(r"[\w-]+", where.removeprefix("$").rstrip("`"))
        if unknown:
            keys.append(unknown[1])
            problem = "there is no such key"
        raise UsageError(f"{file}, line {_line_of(text, keys)}, key {'.'.join(keys)}: {problem}") from error


def _line_of(text: str, keys: list[str]) -> int:
    """The 1-based line on which the last of nested `keys` is set; the first line where it cannot be found."""
    lines = text.splitlines()
    start = 0
    for table in keys[:-1]:
        start = next((n for n, line in enumerate(lines) if n >= start and re.search(rf"\b{re.escape(table)}\b", line)), start)
    if keys:
        pattern = re.compile(rf"(^|[\s{{,.\"'\[]){re.escape(keys[-1])}[\"']?\s*(=|\])")
        for number in range(start, len(lines)):
            if pattern.search(lines[number]):
                return number + 1
    return start + 1
