"""Messages as plain text with labels, for terminals of every kind and for screen readers: no colours, no cursor."""

from __future__ import annotations

from collections.abc import Iterator

from localchat.chats.exporting import ending, speaker, thinking_label
from localchat.chats.records import Attachment, Node
from localchat.chats.tree import Tree
from localchat.safe_text import safe_line, safe_text


def page(tree: Tree) -> Iterator[str]:
    """The path from root to tip, a paragraph a message; safe to print."""
    for node in tree.path():
        yield message(node, versions(tree, node))


def message(node: Node, more: str = "") -> str:
    """One message with its label; `more` goes into the label."""
    lines = [f"{speaker(node)}{f' ({more})' if more else ''}:"]
    lines += [f"[{attached(one)}]" for one in node.attachments]
    if thought := node.message.reasoning_content:
        lines += [f"{thinking_label(node)}:", safe_text(thought.strip()), "Answer:"]
    if text := node.message.text().strip("\n"):
        lines.append(safe_text(text))
    if said := ending(node):
        lines.append(f"[{said}]")
    return "\n".join(lines)


def versions(tree: Tree, node: Node) -> str:
    """Which of its siblings a message is; "" for an only one."""
    siblings = tree.siblings(node.id)
    return f"version {siblings.index(node.id) + 1} of {len(siblings)}" if len(siblings) > 1 else ""


def attached(one: Attachment) -> str:
    """An attachment by its name and size."""
    lines = one.text.count("\n") + (not one.text.endswith("\n"))
    size = "1 line" if lines == 1 else f"{lines:,} lines"
    return f"attached: {safe_line(one.name) or 'text'}, {size}"
