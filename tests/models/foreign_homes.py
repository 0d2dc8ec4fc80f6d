"""The folders of other programs, as they lay them out, with models that a test gives them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(path: Path, content: bytes) -> Path:
    """Write a file, its folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def hub_cache(hub: Path, repo: str, file: str, content: bytes, commit: str = COMMIT) -> Path:
    """A file in the hub's cache: a link in a snapshot to a blob. Returns the link."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    blob = put(folder / "blobs" / hashlib.sha256(content).hexdigest(), content)
    link = folder / "snapshots" / commit / file
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path("../" * (2 + file.count("/"))) / "blobs" / blob.name)
    return link


def ollama(
    models: Path,
    name: str,
    content: bytes,
    *,
    projector: bytes | None = None,
    digest: str = "",
    registry: str = "registry.ollama.ai",
) -> Path:
    """A model of ollama: a manifest that names blobs by digest. Returns the blob, if the digest makes it one."""
    owner, model, tag = name.split("/")
    layers = [
        ("application/vnd.ollama.image.license", b"do as you like"),
        ("application/vnd.ollama.image.model", content),
    ]
    if projector:
        layers.append(("application/vnd.ollama.image.projector", projector))
    blobs = [put(models / "blobs" / f"sha256-{hashlib.sha256(blob).hexdigest()}", blob) for _, blob in layers]
    entries = [
        {"mediaType": kind, "digest": blob.name.replace("-", ":", 1), "size": blob.stat().st_size}
        for (kind, _), blob in zip(layers, blobs, strict=True)
    ]
    if digest:
        entries[1]["digest"] = digest
    put(models / "manifests" / registry / owner / model / tag, json.dumps({"layers": entries}).encode())
    return blobs[1]
