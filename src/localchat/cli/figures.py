"""What the cache saved and what drafts were worth, in words: alike in `ask`, in the plain chat and wherever else."""

from __future__ import annotations

from localchat.chats.reply import Reply
from localchat.cli.progress import seconds


def from_cache(reply: Reply, cached: int | None = None) -> str:
    """How much of a prompt was not read again ("1,497 from the disk cache, saved 31 s")."""
    place = "the disk cache" if reply.restored_from == "disk" else "cache"
    saved = reply.saved_ms / 1000
    # Nobody has waited less for what would have taken a moment.
    said = f", saved {seconds(saved) if saved >= 10 else f'{saved:.1f} s'}" if saved >= 0.05 else ""
    return f"{reply.cached_tokens or cached or 0:,} from {place}{said}"


def drafts(reply: Reply) -> str:
    """How many drafted tokens were what the model would have said."""
    return f"{reply.accepted_tokens:,} of {reply.drafted_tokens:,} drafted tokens accepted"


def saved(reply: Reply) -> str:
    """What a person should hear without asking; "" where that is nothing."""
    worth = reply.saved_seconds
    return "" if worth is None else f"read {reply.cached_tokens:,} tokens from cache, saved {seconds(worth)}"
