"""What there is to know of one model: from its file, its record, and the catalogue, each as far as it is at hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from localchat.errors import LocalchatError, NoSuchModel
from localchat.models import gguf, records, store
from localchat.models.catalogue import Entry, Quantization, catalogue
from localchat.models.gguf import Header
from localchat.models.store import ModelFile
from localchat.models.upkeep import known_templates, projectors
from localchat.paths import paths
from localchat.protocol import Sampling


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """A model as `localchat show` tells of it. Sizes are bytes, `context` tokens; None and "" mean that nobody says.

    `template_known` is the name of the chat template among those that are known, "catalogue" where the catalogue
    vouches for the whole file; `problem` says why its file could not be read.
    """

    name: str
    installed: bool
    path: str = ""
    parts: int = 1
    size: int | None = None
    quantization: str = ""
    quantizations: list[str] = []
    title: str = ""
    architecture: str = ""
    parameters: int | None = None
    context: int | None = None
    layers: int | None = None
    license: str = ""
    license_from: str = ""
    languages: list[str] = []
    abilities: list[str] = []
    sampling: Sampling = Sampling()
    sampling_from: str = ""
    sha256: str = ""
    verified: datetime | None = None
    source: str = ""
    revision: str = ""
    projector: str = ""
    template: str | None = None
    template_known: str = ""
    problem: str = ""


def details(name: str) -> Details:
    """What is known of the model that `name` means: one that is here, a file by its path, or one of the catalogue.

    Nothing is hashed. Raises `NoSuchModel`.
    """
    try:
        return _of_file(store.find(name), is_installed=True)
    except NoSuchModel:
        outside = store.path_of(name)
        if outside:
            return _of_file(_unverified(outside), is_installed=False)
        hit = catalogue().find(name)
        if not hit:
            raise
    entry, quantization = hit
    return _of_catalogue(entry, quantization)


def _unverified(path: Path) -> ModelFile:
    parts = gguf.shards(path)
    return ModelFile(str(path), parts[0], sum(part.stat().st_size for part in parts), source="your own file")


def _of_file(model: ModelFile, *, is_installed: bool) -> Details:
    path = model.path
    record = records.read(path) if is_installed else None
    is_current = is_installed and all(map(records.is_current, store.parts(path)))
    known = store.known_as(model)
    entry = known[0] if known else None
    problem, header = "", None
    try:
        header = gguf.read_header(path)
    except LocalchatError as error:
        problem = error.message
    projector = projectors.beside(path)
    sha256 = record.sha256 if record and is_current else ""
    template = header.chat_template if header else None
    return Details(
        name=model.name,
        installed=is_installed,
        path=str(path),
        parts=len(store.parts(path)),
        size=model.size,
        quantization=header.quantization if header else model.quantization,
        title=header.name if header else "",
        architecture=header.architecture if header else "",
        parameters=(header.parameters if header else None) or (entry.parameters if entry else None),
        context=(header.context if header else None) or (entry.context if entry else None),
        layers=(header.n_layer if header else None) or None,
        license=entry.license if entry else _text(header, "general.license"),
        license_from="catalogue" if entry else "the file",
        languages=entry.languages if entry else [],
        abilities=list(entry.abilities) if entry else [],
        sampling=entry.sampling if entry else Sampling(),
        sampling_from="the catalogue, as the model's makers recommend" if entry else "",
        sha256=sha256,
        verified=record.verified if record and is_current else None,
        source=record.source if record else model.source,
        revision=record.revision if record else "",
        projector=projector.name if projector else "",
        template=template,
        template_known=_known(template, sha256),
        problem=problem,
    )


def _of_catalogue(entry: Entry, quantization: Quantization | None) -> Details:
    chosen = quantization or entry.quantization[0]
    return Details(
        name=entry.short_name(chosen),
        installed=False,
        path=str(paths().models / entry.place(chosen)),
        size=chosen.size,
        quantization=chosen.label,
        quantizations=[one.label for one in entry.quantization],
        title=entry.family,
        parameters=entry.parameters,
        context=entry.context,
        layers=entry.shape.layers if entry.shape else None,
        license=entry.license,
        license_from="catalogue",
        languages=entry.languages,
        abilities=list(entry.abilities),
        sampling=entry.sampling,
        sampling_from="the catalogue, as the model's makers recommend",
        sha256=chosen.sha256 or "",
        projector=entry.projector.file if entry.projector else "",
    )


def _known(template: str | None, sha256: str) -> str:
    """By what a template is known, if it is."""
    if template is None:
        return ""
    return known_templates.known_as(template) or ("catalogue" if sha256 in catalogue().by_sha256 else "")


def _text(header: Header | None, key: str) -> str:
    value = header.metadata.get(key) if header else None
    return value if isinstance(value, str) else ""
