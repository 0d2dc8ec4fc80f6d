"""How the faces reach an engine: this machine's own host (found or started), or any OpenAI-compatible server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localchat.client.local import LocalEngine
    from localchat.client.remote import RemoteEngine


def engine_at(url: str | None) -> LocalEngine | RemoteEngine:
    """The engine to ask: the server at `url`, or this machine's own where there is none.

    Both have `chat(request) -> ChatStream`, `is_local`, and `goes_on`: whether they can continue an answer. Nothing is
    started or connected yet.
    """
    if url:
        from localchat.client.remote import RemoteEngine

        return RemoteEngine(url)
    from localchat.client.local import LocalEngine

    return LocalEngine()
