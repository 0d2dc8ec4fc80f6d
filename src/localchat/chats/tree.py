"""A conversation as a tree in memory: editing and asking again make siblings, and a path leads from root to tip."""

from __future__ import annotations

from collections.abc import Iterable

from localchat.chats.records import Node


class Tree:
    """The messages of one chat. `tip` is the last message of the path that is shown; None while there is none."""

    def __init__(self, nodes: Iterable[Node] = (), tip: int | None = None) -> None:
        self.nodes: dict[int, Node] = {}
        self._children: dict[int | None, list[int]] = {}
        self._chosen: dict[int | None, int] = {}
        for node in nodes:
            self._hang(node)
        self.tip: int | None = None
        if self.nodes:
            self.go_to(tip if tip in self.nodes else next(reversed(self.nodes)))

    def add(self, node: Node) -> None:
        """Take in a new message, and make it the tip."""
        self._hang(node)
        self.go_to(node.id)

    def remove(self, node: int) -> None:
        """Take out a message that has no answer, and go back to its parent."""
        assert not self._children.get(node)
        parent = self.nodes.pop(node).parent
        self._children[parent].remove(node)
        if self._chosen.get(parent) == node:
            del self._chosen[parent]
        if self.tip == node:
            self.tip = parent

    def go_to(self, node: int | None) -> None:
        """Make `node` the tip, and remember the way there as the one to come back to."""
        self.tip = node
        while node is not None:
            parent = self.nodes[node].parent
            self._chosen[parent] = node
            node = parent

    def path(self, to: int | None = None) -> list[Node]:
        """The messages from the root to `to` (the tip, where none is named)."""
        found: list[Node] = []
        at = self.tip if to is None else to
        while at is not None:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return found[::-1]

    def siblings(self, node: int) -> list[int]:
        """The alternatives to a message, itself among them, the oldest first."""
        return self._children[self.nodes[node].parent]

    def tip_under(self, node: int) -> int:
        """The end of the path through `node`: the way last taken, else the newest."""
        while children := self._children.get(node):
            node = self._chosen.get(node, children[-1])
        return node

    def _hang(self, node: Node) -> None:
        self.nodes[node.id] = node
        self._children.setdefault(node.parent, []).append(node.id)
