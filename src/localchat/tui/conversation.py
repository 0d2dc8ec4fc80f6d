"""What stands on the page: the messages of a path as items, and where the model's sight begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from localchat.chats.records import Attachment, Node
from localchat.chats.reply import Reply
from localchat.chats.requests import visible
from localchat.chats.tree import Tree

FORGOTTEN = "the model no longer sees what is above"
SUMMARISED = "for the model, this summary stands for what is above"


@dataclass(slots=True)
class Prompt:
    """A message of the person, as it is shown."""

    text: str
    attachments: list[Attachment] = field(default_factory=list)


@dataclass(slots=True)
class Item:
    """One message on the page: `node` is its number in the tree (None until it is kept), and it is the `place`th of
    `places` siblings.
    """

    node: int | None
    content: Prompt | Reply
    place: int = 1
    places: int = 1


def items(tree: Tree, replies: Mapping[int, Reply]) -> list[Item]:
    """The path from root to tip; `replies` are answers that are known better than they are kept, by their number."""
    return [item_of(tree, node, replies) for node in tree.path()]


def item_of(tree: Tree, node: Node, replies: Mapping[int, Reply]) -> Item:
    """One message as it stands on the page."""
    siblings = tree.siblings(node.id)
    content: Prompt | Reply
    if node.message.role == "assistant":
        content = replies.get(node.id) or Reply.of(node)
    else:
        content = Prompt(node.message.text(), list(node.attachments))
    return Item(node.id, content, siblings.index(node.id) + 1, len(siblings))


def first_seen(tree: Tree, replies: Mapping[int, Reply]) -> tuple[int | None, str]:
    """The first message of the path that the model saw when it last answered, and why none before it.

    After the first line of why stands the summary that it sees instead.

    None where it saw all.
    """
    path = tree.path()
    if not path:
        return None, ""
    answered = next((node for node in reversed(path) if node.message.role == "assistant"), path[-1])
    question = path[: path.index(answered)] or path
    seen, summary = visible(question)
    reply = replies.get(answered.id) or Reply.of(answered)
    dropped = min(reply.dropped_messages, len(seen) - 1)
    if dropped > 0:
        return seen[dropped].id, FORGOTTEN
    if summary is not None:
        return seen[0].id, f"{SUMMARISED}\n{summary}"
    return None, ""
