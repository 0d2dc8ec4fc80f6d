"""Presets: system prompt and sampling values under a name. A few are built in; the others are the person's own.

Those in `settings.toml` are written by hand. What is saved from the chat goes into `presets.json` beside it, a file
that only this module writes: nobody's formatting and comments are rewritten. Knows nothing of Textual.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from localchat.errors import LocalchatError, UsageError
from localchat.paths import paths, write_private
from localchat.safe_text import safe_line
from localchat.settings import Preset, settings

MODELS_OWN = "model's own"

BUILT_IN: dict[str, Preset] = {
    MODELS_OWN: Preset(),
    "precise": Preset(temperature=0.2, top_p=0.9),
    "balanced": Preset(temperature=0.7, top_p=0.95),
    "creative": Preset(temperature=1.1, min_p=0.05),
}
_LONGEST_NAME = 40


def presets() -> dict[str, Preset]:
    """All presets by name: those built in, those saved from the chat, those of the settings. Raises `UsageError`."""
    return {**BUILT_IN, **_kept(), **settings().presets}


def keep(name: str, preset: Preset) -> None:
    """Save a preset, in the place of one that was saved under that name before. Raises `UsageError`."""
    name = safe_line(name)
    if not name or len(name) > _LONGEST_NAME:
        raise UsageError(f"a preset's name has 1 to {_LONGEST_NAME} characters: type one")
    if name in BUILT_IN:
        raise UsageError(f"{name} is built in: take another name")
    if name in settings().presets:
        raise UsageError(f"{name} is in {paths().settings}: change it there, or take another name")
    content = msgspec.json.format(msgspec.json.encode({**_kept(), name: preset}), indent=2)
    try:
        write_private(_file(), content + b"\n")
    except (OSError, LocalchatError) as error:
        raise UsageError(f"cannot write {_file()} ({error}): make it writable, and save again") from error


def _kept() -> dict[str, Preset]:
    try:
        return msgspec.json.decode(_file().read_bytes(), type=dict[str, Preset])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{_file()} cannot be read ({safe_line(str(error))}): correct it, or remove it") from error


def _file() -> Path:
    return paths().config / "presets.json"
