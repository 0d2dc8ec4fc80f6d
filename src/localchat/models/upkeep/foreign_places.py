"""Where other programs keep their models, on each system. Facts only, as their own documents and sources state them.

hub cache: huggingface_hub's `constants.py`; ollama: its FAQ, and the packages of distributions; LM Studio: its
documents and `lms` (which finds a moved home by a pointer file); llama.cpp: `fs_get_cache_directory`; Jan:
`default_data_folder_path`; GPT4All: Qt's local data folder of its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

Layout = Literal["hub", "ollama", "tree", "folder"]
"""How a program lays its files out below its folder."""

_LARGEST = 1 << 16


def known(
    environment: Mapping[str, str] | None = None, home: Path | None = None, root: Path = Path("/")
) -> list[tuple[str, Layout, Path]]:
    """Program, layout and folder of each place that exists; each folder once."""
    places = _Places(os.environ if environment is None else environment, home or Path.home(), root)
    found: list[tuple[str, Layout, Path]] = []
    seen: set[str] = set()
    for program, layout, folder in places.all():
        with suppress(OSError, ValueError):
            real = os.path.realpath(folder)
            if real not in seen and folder.is_dir():
                seen.add(real)
                found.append((program, layout, folder))
    return found


class _Places:
    def __init__(self, environment: Mapping[str, str], home: Path, root: Path) -> None:
        self._environment = environment
        self._home = home
        self._root = root

    def all(self) -> Iterator[tuple[str, Layout, Path]]:
        """Every place where a known program may keep models."""
        for folder in self._hub():
            yield "hub cache", "hub", folder
        for folder in self._ollama():
            yield "ollama", "ollama", folder
        for folder in self._lm_studio():
            yield "LM Studio", "tree", folder
        yield "llama.cpp", "folder", self._variable("LLAMA_CACHE") or self._cache() / "llama.cpp"
        for folder in self._jan():
            yield "Jan", "tree", folder
        yield "GPT4All", "folder", self._local_data() / "nomic.ai" / "GPT4All"
        yield "GPT4All", "folder", self._home / ".cache" / "gpt4all"  # its Python package

    def _variable(self, name: str) -> Path | None:
        value = self._environment.get(name, "").strip()
        if not value:
            return None
        with suppress(RuntimeError):  # ~ of a user that does not exist
            path = Path(os.path.expandvars(value)).expanduser()
            return path if path.is_absolute() else None
        return None

    def _hub(self) -> Iterator[Path]:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            if folder := self._variable(name):
                yield folder
        if folder := self._variable("HF_HOME"):
            yield folder / "hub"
        yield (self._variable("XDG_CACHE_HOME") or self._home / ".cache") / "huggingface" / "hub"
        yield self._home / ".cache" / "huggingface" / "hub"

    def _ollama(self) -> Iterator[Path]:
        if folder := self._variable("OLLAMA_MODELS"):
            yield folder
        yield self._home / ".ollama" / "models"
        # Where it is a service, it has a home of its own: the installer's, and those of distributions and of snap.
        for place in (
            "usr/share/ollama/.ollama/models",
            "var/lib/ollama/.ollama/models",
            "var/lib/ollama/models",
            "var/lib/ollama",
            "var/snap/ollama/common/models",
        ):
            yield self._root / place

    def _lm_studio(self) -> Iterator[Path]:
        homes = [self._home / ".lmstudio", self._home / ".cache" / "lm-studio"]
        pointer = _read(self._home / ".lmstudio-home-pointer").decode(errors="replace").strip()
        if pointer and "\0" not in pointer and Path(pointer).is_absolute():
            homes.insert(0, Path(pointer))
        for home in homes:
            moved = _setting(home / "settings.json", "downloadsFolder")
            if moved:
                yield moved
            yield home / "models"

    def _jan(self) -> Iterator[Path]:
        if sys.platform == "win32":
            bases = [self._roaming()]
        elif sys.platform == "darwin":
            bases = [self._home / "Library" / "Application Support"]
        else:
            bases = [self._local_data(), self._home / ".config"]
        data = [base / "Jan" / "data" for base in bases]
        data += [moved for base in bases if (moved := _setting(base / "Jan" / "settings.json", "data_folder"))]
        for folder in [*data, self._home / "jan"]:
            yield folder / "llamacpp" / "models"
            yield folder / "models"

    def _cache(self) -> Path:
        if sys.platform == "win32":
            return self._variable("LOCALAPPDATA") or self._home / "AppData" / "Local"
        if sys.platform == "darwin":
            return self._home / "Library" / "Caches"
        return self._variable("XDG_CACHE_HOME") or self._home / ".cache"

    def _local_data(self) -> Path:
        if sys.platform == "win32":
            return self._variable("LOCALAPPDATA") or self._home / "AppData" / "Local"
        if sys.platform == "darwin":
            return self._home / "Library" / "Application Support"
        return self._variable("XDG_DATA_HOME") or self._home / ".local" / "share"

    def _roaming(self) -> Path:
        return self._variable("APPDATA") or self._home / "AppData" / "Roaming"


def _setting(file: Path, key: str) -> Path | None:
    """A folder that a program's JSON settings name."""
    try:
        settings = msgspec.json.decode(_read(file), type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    value = settings.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    return Path(value) if Path(value).is_absolute() else None


def _read(file: Path) -> bytes:
    """A small plain file; nothing where it is none."""
    try:
        if not file.is_file():
            return b""
        with file.open("rb") as opened:
            return opened.read(_LARGEST)
    except OSError:
        return b""
