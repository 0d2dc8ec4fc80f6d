"""Which projector belongs to which model, where several of both lie in one folder: their names decide."""

from __future__ import annotations

import os
import re
from pathlib import Path

from localchat.models.names import is_projector
from localchat.models.store import label_in


def in_folder(folder: Path) -> list[Path]:
    """All projectors in a folder, by name."""
    try:
        return sorted(one for one in folder.glob("*.gguf") if is_projector(one.name) and one.is_file())
    except OSError:
        return []


def beside(path: Path) -> Path | None:
    """The projector that belongs to the model at `path`: named after it, or beside it where it is the only model."""
    try:
        names = sorted(entry.name for entry in os.scandir(path.parent) if entry.name.lower().endswith(".gguf"))
    except OSError:
        return None
    bases = {base_of(name).lower() for name in names if not is_projector(name)}
    there = [name for name in names if is_projector(name)]
    named = [name for name in there if base_of(path.name).lower() in name.lower()]
    if not named and len(bases) == 1:
        named = there
    # 16 bits are what its makers tested.
    named.sort(key=lambda name: (label_in(name) != "F16", name))
    return path.with_name(named[0]) if named else None


def base_of(name: str) -> str:
    """What the names of all files of a model begin with, in whatever quantization and however many parts."""
    name = re.sub(r"-\d{5}-of-\d{5}(?=\.gguf)", "", name, flags=re.IGNORECASE)
    start = name.upper().rfind(label_in(name)) if label_in(name) else name.lower().rfind(".gguf")
    return name[:start].rstrip("-._")
