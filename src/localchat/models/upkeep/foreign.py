"""Finds the GGUF files that other programs on this machine already hold; reads, and never changes, what is theirs.

Everything found there is data: digests, repo names and links are checked before they become a path, folders that
cannot be read are skipped with a word, and no tree is walked without an end.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from localchat.errors import LocalchatError
from localchat.models import gguf
from localchat.models.names import RefusedName, check_repo, is_projector, split_siblings
from localchat.models.upkeep import foreign_places, projectors

_MOST_ENTRIES = 50_000
"""Folder entries that are looked at for one program; more are no model cache, or one made to keep us busy."""
_MOST_FILES = 1_000
_DEEPEST = 8
_LARGEST_MANIFEST = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MODEL_LAYER = "application/vnd.ollama.image.model"
_PROJECTOR_LAYER = "application/vnd.ollama.image.projector"


@dataclass(frozen=True)
class Foreign:
    """A model that another program holds. `name` is what that program calls it, `size` its bytes, all parts together.

    `repo` (owner/repo) is where it came from, where that can be told; `file` its file name, `revision` the hub's
    commit. `sha256` is what the program says of the first part: a claim, to be checked against the bytes.
    """

    program: str
    name: str
    path: Path
    file: str
    size: int
    quantization: str = ""
    repo: str = ""
    revision: str = ""
    sha256: str = ""
    projector: Path | None = None
    identity: tuple[int, int] = (0, 0)
    """Device and inode of the first part: the same for all links to it."""


@dataclass
class Findings:
    """What a scan found, what is to be said about what it did not look at, and files that are no whole model."""

    models: list[Foreign] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)


def find(environment: Mapping[str, str] | None = None, home: Path | None = None, root: Path = Path("/")) -> Findings:
    """Every model of the programs that are known, each file once.

    `environment`, `home` and `root` (of the file system) are this machine's, unless given.
    """
    findings = Findings()
    seen: set[tuple[int, int]] = set()
    for program, layout, folder in foreign_places.known(environment, home, root):
        budget = _Budget(folder, findings)
        for candidate in _LAYOUTS[layout](folder, budget):
            identity = _identity(candidate.path)
            if not identity or identity in seen:
                continue
            seen.add(identity)
            if model := _checked(replace(candidate, program=program), findings):
                findings.models.append(model)
    return findings


def holding(file: Path) -> Foreign | None:
    """What the program that holds `file` knows of it; None where no known program does."""
    try:
        real, status = file.resolve(), file.stat()
    except OSError:
        return None
    for program, layout, folder in foreign_places.known():
        if not real.is_relative_to(folder.resolve()):
            continue
        for candidate in _LAYOUTS[layout](folder, _Budget(folder, Findings())):
            # Reading the headers of all others would take seconds.
            if _identity(candidate.path) == (status.st_dev, status.st_ino):
                return _checked(replace(candidate, program=program), Findings())
    return None


class _Budget:
    """Counts what is looked at below one folder, and says so once when it is too much."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self._folder = folder
        self._findings = findings
        self._entries = 0

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in a folder, by name; nothing where it cannot be read or the count is used up."""
        entries: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as listing:
                for entry in listing:
                    self._entries += 1
                    if self._entries > _MOST_ENTRIES:
                        break
                    entries.append(entry)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._findings.notices.append(f"skipped {folder} ({error.strerror})")
            return []
        if self._entries > _MOST_ENTRIES:
            if self._entries < 2 * _MOST_ENTRIES:
                self._findings.notices.append(f"stopped looking in {self._folder} after {_MOST_ENTRIES:,} entries")
                self._entries = 2 * _MOST_ENTRIES
            return []
        return sorted(entries, key=lambda entry: entry.name)

    def say(self, notice: str) -> None:
        """Pass a notice on."""
        self._findings.notices.append(notice)

    def files(self, folder: Path, depth: int = _DEEPEST) -> Iterator[Path]:
        """Every file below a folder; links to folders are not followed, so that no loop is walked."""
        for entry in self.entries(folder):
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
            except OSError:
                continue
            if not is_folder:
                yield folder / entry.name
            elif depth > 1:
                yield from self.files(folder / entry.name, depth - 1)


def _models(folder: Path, budget: _Budget, depth: int = _DEEPEST) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """First parts of GGUF models below a folder, with the names of the folders between."""
    count = 0
    for path in budget.files(folder, depth):
        name = path.name
        if name.lower().endswith(".gguf") and not is_projector(name) and split_siblings(name)[0] == name:
            count += 1
            if count > _MOST_FILES:
                budget.say(f"looked at {_MOST_FILES:,} models in {folder} and at no more")
                return
            yield path, path.relative_to(folder).parts[:-1]


def _of_hub(folder: Path, budget: _Budget) -> Iterator[Foreign]:
    """A hub cache: `models--owner--repo/snapshots/COMMIT/file`, a link to `blobs/SHA256`."""
    for entry in budget.entries(folder):
        if not entry.name.startswith("models--"):
            continue
        repo = _plain_repo(entry.name.removeprefix("models--").replace("--", "/"))
        for snapshot in budget.entries(folder / entry.name / "snapshots"):
            for path, _ in _models(folder / entry.name / "snapshots" / snapshot.name, budget):
                blob = os.path.basename(os.path.realpath(path))  # noqa: PTH119  (a loop of links must not raise)
                yield Foreign(
                    program="",
                    name=repo or path.stem,
                    path=path,
                    file=path.name,
                    size=0,
                    repo=repo,
                    revision=snapshot.name if _COMMIT.fullmatch(snapshot.name) else "",
                    sha256=blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "",
                )


class _Layer(msgspec.Struct):
    mediaType: str = ""
    digest: str = ""


class _Manifest(msgspec.Struct):
    layers: list[_Layer] = []


def _of_ollama(folder: Path, budget: _Budget) -> Iterator[Foreign]:
    """Ollama: `manifests/REGISTRY/OWNER/MODEL/TAG` (JSON) names `blobs/sha256-HEX` by digest."""
    for path in budget.files(folder / "manifests", 4):
        parts = path.relative_to(folder / "manifests").parts
        if len(parts) != 4:
            continue
        registry, owner, model, tag = parts
        digests = _digests(path)
        digest = digests.get(_MODEL_LAYER)
        if not digest:
            continue
        hub = registry in ("hf.co", "huggingface.co")
        projector = digests.get(_PROJECTOR_LAYER)
        name = f"{model}:{tag}" if owner == "library" else f"{owner}/{model}:{tag}"
        yield Foreign(
            program="",
            name=f"{registry}/{name}" if hub else name,
            path=folder / "blobs" / f"sha256-{digest}",
            file=f"{model.removesuffix('-GGUF')}-{tag}.gguf",
            size=0,
            repo=_plain_repo(f"{'ollama' if owner == 'library' else owner}/{model}"),
            sha256=digest,
            projector=folder / "blobs" / f"sha256-{projector}" if projector else None,
        )


def _digests(manifest: Path) -> dict[str, str]:
    """The sha256 of each kind of layer; a digest of any other form is left out, as it is to become a path."""
    try:
        if not manifest.is_file():  # a pipe would be waited for
            return {}
        with manifest.open("rb") as file:
            content = file.read(_LARGEST_MANIFEST + 1)
        if len(content) > _LARGEST_MANIFEST:
            return {}
        layers = msgspec.json.decode(content, type=_Manifest).layers
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    found: dict[str, str] = {}
    for layer in layers:
        match = _DIGEST.fullmatch(layer.digest)
        if match:
            found.setdefault(layer.mediaType, match[1])
    return found


def _of_tree(folder: Path, budget: _Budget) -> Iterator[Foreign]:
    """LM Studio and Jan: `owner/repo/file.gguf`; Jan calls every file `model.gguf` and its folder by its name."""
    for path, between in _models(folder, budget):
        repo = _plain_repo("/".join(between[:2])) if len(between) >= 2 else ""
        stem = between[-1] if between and path.name.lower() == "model.gguf" else path.stem
        yield Foreign(
            program="",
            name=repo or stem,
            path=path,
            file=f"{stem}.gguf",
            size=0,
            repo=repo,
        )


def _of_folder(folder: Path, budget: _Budget) -> Iterator[Foreign]:
    """GPT4All, and llama.cpp's own cache: all files in one folder, in llama.cpp's as `owner_repo_file.gguf`."""
    manifests = [entry.name for entry in budget.entries(folder) if entry.name.startswith("manifest=")]
    repos = {f"{parts[1]}_{parts[2]}_": "/".join(parts[1:3]) for one in manifests if len(parts := one.split("=")) >= 4}
    for path, _ in _models(folder, budget, 1):
        prefix = next((prefix for prefix in repos if path.name.startswith(prefix)), "")
        yield Foreign(
            program="",
            name=path.stem,
            path=path,
            file=path.name.removeprefix(prefix),
            size=0,
            repo=_plain_repo(repos[prefix]) if prefix else "",
        )
    # Newer ones keep a hub cache in the same place.
    yield from _of_hub(folder, budget)


_LAYOUTS: dict[foreign_places.Layout, Callable[[Path, _Budget], Iterator[Foreign]]] = {
    "hub": _of_hub,
    "ollama": _of_ollama,
    "tree": _of_tree,
    "folder": _of_folder,
}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _plain_repo(repo: str) -> str:
    """`repo`, if it is a plain owner/repo; else nothing."""
    try:
        return check_repo(repo)
    except RefusedName:
        return ""


def _checked(candidate: Foreign, findings: Findings) -> Foreign | None:
    """The candidate with its size and quantization, if it is a whole and sound model."""
    try:
        first = candidate.path.stat()
        paths = [candidate.path.with_name(name) for name in split_siblings(candidate.path.name)]
        statuses = [path.stat() for path in paths]
    except OSError:
        return None
    if not all(stat.S_ISREG(status.st_mode) for status in statuses):
        return None
    try:
        header = gguf.read_header(candidate.path)
    except LocalchatError as error:
        findings.unsound.append(f"{candidate.program}: {error.message.rpartition(':')[0]}")
        return None
    if header.architecture == "clip":
        return None
    projector = candidate.projector or projectors.beside(candidate.path)
    if projector and not projector.is_file():
        projector = None
    return replace(
        candidate,
        size=sum(status.st_size for status in statuses),
        quantization=header.quantization,
        projector=projector,
        identity=(first.st_dev, first.st_ino),
    )
