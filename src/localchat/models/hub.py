"""A hub as a source of files: what it promises about a file, where its bytes are, and what its refusals mean.

huggingface_hub knows the hub's address, the person's token and the error codes; the bytes are moved by `download`,
because the library neither resumes across runs nor checks a hash. `HF_ENDPOINT` and `HF_HUB_OFFLINE` are respected.
`repos` asks which files there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from localchat import __version__
from localchat.errors import UsageError
from localchat.models.catalogue import Hub
from localchat.models.transfer.download import SourceFailed, retrying
from localchat.models.transfer.partial import Pin
from localchat.models.transfer.progress import Meter
from localchat.models.transfer.transport import Cancelled, Reply, host_of, request
from localchat.safe_text import safe_line

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BY_CODE = {
    "GatedRepo": "wants its licence accepted first: do that on the model's page, then set HF_TOKEN",
    "RepoNotFound": "has no such repo, or only for those it knows (set HF_TOKEN)",
    "RevisionNotFound": "no longer has this revision",
    "EntryNotFound": "no longer has this file",
}
_BY_STATUS = {
    401: "refused the token in HF_TOKEN or of a saved login",
    403: "does not allow it",
    404: "has no such file",
    429: "is asked too often",
}


@dataclass(frozen=True)
class HubFile:
    """A file of a hub, pinned: ask for it at `url` with `headers` (they may hold the person's token)."""

    url: str
    headers: Mapping[str, str]
    pin: Pin


def locate(source: Hub, size: int | None, sha256: str | None, meter: Meter, cancelled: Cancelled | None) -> HubFile:
    """Pin a file of a hub: its commit, size and sha256, which must agree with `size` and `sha256` where given.

    Raises `SourceFailed` with what the hub's refusal means, and `Interrupted`.
    """
    url = address(source)
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise SourceFailed("is switched off by HF_HUB_OFFLINE")
    headers = identity()

    def head() -> Reply:
        # The promise is in the hub's own answer, not in that of the storage it redirects to.
        return request("HEAD", url, headers, cancelled=cancelled, follow=False)

    reply = retrying(head, meter, cancelled, explain)
    reply.close()
    pin = _promise(reply.headers, reply.status, source.revision, constants, size, sha256)
    if pin.revision:
        url = address(Hub(source.repo, pin.revision, source.file))
    return HubFile(url, headers, pin)


def endpoint() -> str:
    """The hub's address, without a slash at its end: HF_ENDPOINT, else the library's own. Raises `UsageError`."""
    wanted = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    try:
        urlsplit(wanted)
    except ValueError:
        raise UsageError("HF_ENDPOINT holds no address: set it to an https:// address, or unset it") from None
    # The library reads its environment when it is imported, and reports what uses it unless told not to.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import constants

    return wanted or str(constants.ENDPOINT)


def address(source: Hub) -> str:
    """Where the hub has a file."""
    where = endpoint()
    from huggingface_hub import hf_hub_url

    return str(hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=where))


def identity() -> Mapping[str, str]:
    """The headers that tell the hub who asks: localchat, and the person's token where there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: Mapping[str, str] = build_hf_headers(library_name="localchat", library_version=__version__)
    return headers


def is_sha256(text: object) -> bool:
    """Whether this is a sha256 as it is written here: 64 hex digits, lower case."""
    return isinstance(text, str) and bool(_SHA256.fullmatch(text))


def hash_in(headers: Mapping[str, str]) -> str | None:
    """The sha256 that a hub, or its storage, gives as a file's entity tag; None where the tag is something else."""
    etag = (headers.get("x-linked-etag") or headers.get("etag", "")).removeprefix("W/").strip('"')
    return etag if _SHA256.fullmatch(etag) else None


def explain(reply: Reply) -> str:
    """What a hub's refusal means, in a few words with the next step where there is one."""
    code = reply.headers.get("x-error-code", "")
    meaning = _BY_CODE.get(code) or _BY_STATUS.get(reply.status) or f"answered {reply.status}"
    if code == "GatedRepo":
        repo = "/".join(urlsplit(reply.url).path.strip("/").split("/")[:2])
        meaning = meaning.replace("the model's page", safe_line(f"{endpoint()}/{repo}"))
    return f"{host_of(reply.url)} {meaning}"


def _promise(
    headers: Mapping[str, str], status: int, revision: str, names: object, size: int | None, sha256: str | None
) -> Pin:
    """What the hub says the file is, held against what is already known of it."""

    def header(constant: str) -> str:
        return headers.get(str(getattr(names, constant)).lower(), "")

    commit = header("HUGGINGFACE_HEADER_X_REPO_COMMIT")
    commit = commit if _COMMIT.fullmatch(commit) else ""
    if _COMMIT.fullmatch(revision):
        if commit and commit != revision:
            raise SourceFailed("answered with another revision than it was asked for")
        commit = revision
    theirs = hash_in(headers)
    if theirs and sha256 and theirs != sha256:
        raise SourceFailed(f"has another file under this name (sha256 {theirs[:12]}…)")
    length = header("HUGGINGFACE_HEADER_X_LINKED_SIZE") or (headers.get("content-length", "") if status == 200 else "")
    their_size = int(length) if length.isdecimal() and len(length) < 16 else None
    if their_size is not None and size is not None and their_size != size:
        raise SourceFailed(f"has a file of {their_size:,} bytes where {size:,} were expected")
    sha256, size = sha256 or theirs, size if size is not None else their_size
    if sha256 is None or size is None:
        raise SourceFailed("does not say which sha256 and size the file has, so it could not be verified")
    return Pin(sha256, size, commit)
