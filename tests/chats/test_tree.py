"""The tree in memory against the plainest model of one: a dictionary of parents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localchat.chats.records import Node
from localchat.chats.tree import Tree
from localchat.protocol import Message


def node(number: int, parent: int | None) -> Node:
    return Node(number, parent, Message("user", str(number)))


def path_in(parents: dict[int, int | None], at: int | None) -> list[int]:
    found: list[int] = []
    while at is not None:
        found.insert(0, at)
        at = parents[at]
    return found


parents_of_trees = st.lists(st.integers(0, 20), max_size=25).map(
    lambda draws: {number: (None if not draw % number else draw % number) for number, draw in enumerate(draws, 1)}
)


@given(parents_of_trees, st.data())
def test_paths_siblings_and_tips(parents: dict[int, int | None], data: st.DataObject) -> None:
    tip = data.draw(st.none() | st.integers(1, 30))
    tree = Tree((node(number, parent) for number, parent in parents.items()), tip)
    assert tree.tip == (tip if tip in parents else max(parents, default=None))
    assert [one.id for one in tree.path()] == path_in(parents, tree.tip)
    for number, parent in parents.items():
        assert [one.id for one in tree.path(number)] == path_in(parents, number)
        assert tree.siblings(number) == [one for one, other in parents.items() if other == parent]
        under = tree.tip_under(number)
        assert number in path_in(parents, under)
        assert under not in parents.values()


@given(parents_of_trees.filter(bool), st.data())
def test_walking_comes_back_to_where_one_was(parents: dict[int, int | None], data: st.DataObject) -> None:
    tree = Tree(node(number, parent) for number, parent in parents.items())
    leaves = [number for number in parents if number not in parents.values()]
    for _ in range(5):
        leaf = data.draw(st.sampled_from(leaves))
        tree.go_to(leaf)
        for number in path_in(parents, leaf):
            assert tree.tip_under(number) == leaf


@given(parents_of_trees, st.data())
def test_taking_out_what_was_added_changes_nothing(parents: dict[int, int | None], data: st.DataObject) -> None:
    tree = Tree(node(number, parent) for number, parent in parents.items())
    parent = data.draw(st.sampled_from([None, *parents]))
    if parent is not None:
        tree.go_to(parent)
    tree.add(node(99, parent))
    assert (tree.tip, tree.path()[-1].id) == (99, 99)
    tree.remove(99)
    assert tree.tip == parent
    assert [one.id for one in tree.path()] == path_in(parents, parent)
    assert 99 not in tree.nodes
    for number in parents:
        assert 99 not in tree.siblings(number)
        assert tree.tip_under(number) in parents
