"""The header of a GGUF file that is still at the hub, read by ranges: some hundred kilobytes instead of gigabytes.

What decides about memory and speed stands at the beginning of a file, before the vocabulary; no more is asked for.
"""

from __future__ import annotations

import contextlib

from localchat.errors import DamagedFile, Interrupted
from localchat.models import gguf, hub
from localchat.models.about import About
from localchat.models.catalogue import Hub
from localchat.models.repos import RemoteFile, Repo
from localchat.models.transfer.download import SourceFailed, retrying
from localchat.models.transfer.progress import Meter
from localchat.models.transfer.transport import Cancelled, Reply, TransportError, request

_WINDOW = 128 << 10
_MOST_READ = 8 << 20
"""Bytes after which a file that still has not said what it is is given up."""


class RangeSource:
    """A file far away as a source of bytes (`gguf.Source`). Raises `SourceFailed` and `Interrupted`."""

    window = _WINDOW

    def __init__(self, url: str, headers: dict[str, str], size: int, cancelled: Cancelled | None = None) -> None:
        self._url = url
        self._headers = headers
        self._cancelled = cancelled
        self.size = size
        self.fetched = 0

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`; fewer than `length` only at the end of the file."""
        end = min(offset + length, self.size)
        if self.fetched + (end - offset) > _MOST_READ:
            raise SourceFailed("has a header that is far larger than a model's")
        headers = {**self._headers, "range": f"bytes={offset}-{end - 1}"}

        def ask() -> Reply:
            return request("GET", self._url, headers, cancelled=self._cancelled)

        reply = retrying(ask, Meter("", 0, None), self._cancelled, hub.explain)
        pieces = bytearray()
        try:
            if reply.status == 206:
                expected = f"bytes {offset}-{end - 1}/{self.size}"
                if reply.headers.get("content-range", "").strip() != expected:
                    raise SourceFailed("sent another part of the file than was asked for")
            elif offset:
                raise SourceFailed("sends no parts of a file")
            with contextlib.closing(reply.chunks()) as chunks:
                for chunk in chunks:
                    pieces += chunk
                    if len(pieces) >= end - offset:
                        break
        except TransportError as error:
            raise SourceFailed(error.reason) from error
        finally:
            reply.close()
        self.fetched += len(pieces)
        return bytes(pieces[: end - offset])


def about(repo: Repo, file: RemoteFile, cancelled: Cancelled | None = None) -> About | None:
    """What a repo's file says of its model, as far as its beginning tells; None where it cannot be read.

    Not to know it costs the figures for memory and speed, not the fetch. Raises `Interrupted`.
    """
    if file.size is None:
        return None
    url = hub.address(Hub(repo.name, repo.commit or "main", file.path))
    try:
        source = RangeSource(url, dict(hub.identity()), file.size, cancelled)
        return About.of(gguf.beginning(source, file.path))
    except Interrupted:
        raise
    except (SourceFailed, DamagedFile, TransportError):
        return None
