"""Import of ChatGPT's and DeepSeek's exports: branches, thinking, times, and what cannot be taken."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from localchat.chats.exporting import WholeChat
from localchat.chats.importing import parse, take_in
from localchat.chats.store import Chats
from localchat.errors import ChatsError, UsageError
from localchat.protocol import Message

Json = dict[str, Any]
T0 = 1_700_000_000.0


def gpt(role: str, *parts: object, at: float = 0.0, kind: str = "text", **more: Any) -> Json:
    """A message as ChatGPT exports it; `recipient`, `metadata`, `weight`, `status` as they are, the rest is content."""
    known = {name: more.pop(name) for name in ("recipient", "metadata", "weight", "status") if name in more}
    content = {"content_type": kind, **({"parts": list(parts)} if parts else {}), **more}
    return {
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": T0 + at if at else None,
        "content": content,
        "status": "finished_successfully",
        "weight": 1.0,
        "recipient": "all",
        "metadata": {},
        **known,
    }


def mapping(*nodes: tuple[str, str | None, Json | None]) -> Json:
    """Nodes of (key, parent, message)."""
    return {
        key: {"id": key, "parent": parent, "message": message, "children": [k for k, p, _ in nodes if p == key]}
        for key, parent, message in nodes
    }


def conversation(*nodes: tuple[str, str | None, Json | None], tip: str | None = None, **more: Any) -> Json:
    about = {"title": "Talk", "create_time": T0, "update_time": T0 + 99, "conversation_id": "c", "current_node": tip}
    return {**about, "mapping": mapping(*nodes), **more}


def read(tmp_path: Path, document: Any) -> Any:
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(document))
    return parse(file)


def lines(chat: WholeChat) -> list[tuple[int, int | None, str, str]]:
    return [(node.id, node.parent, node.message.role, node.message.text()) for node in chat.messages]


def test_chatgpt_branches_are_kept_and_its_current_one_is_the_tip(tmp_path: Path) -> None:
    root = ("root", None, None)
    hidden = ("sys", "root", gpt("system", "", metadata={"is_visually_hidden_from_conversation": True}))
    document = [
        conversation(
            root,
            hidden,
            ("q", "sys", gpt("user", "first", at=1)),
            ("a1", "q", gpt("assistant", "one", at=2, metadata={"model_slug": "gpt-4o"})),
            ("a2", "q", gpt("assistant", "two", at=3, metadata={"model_slug": "o3"})),
            ("q2", "a1", gpt("user", "second", at=4)),
            ("q2b", "a1", gpt("user", "second, edited", at=5)),
            ("a3", "q2b", gpt("assistant", "three", at=6)),
            tip="a2",
        )
    ]
    parsed = read(tmp_path, document)
    [chat] = parsed.chats
    assert (parsed.source, chat.title, chat.created, dict(parsed.left_out)) == ("ChatGPT", "Talk", T0, {})
    assert lines(chat) == [
        (0, None, "user", "first"),
        (1, 0, "assistant", "one"),
        (2, 1, "user", "second"),
        (3, 1, "user", "second, edited"),
        (4, 3, "assistant", "three"),
        (5, 0, "assistant", "two"),
    ]
    assert chat.tip == 5
    assert [node.created - T0 for node in chat.messages] == [1, 2, 4, 5, 6, 3]
    assert [node.outcome.model for node in chat.messages] == ["", "gpt-4o", "", "", "", "o3"]


def test_the_parts_of_one_chatgpt_answer_become_one(tmp_path: Path) -> None:
    thought = [{"summary": "Weighing", "content": "body"}, {"summary": "Done", "content": ""}]
    document = conversation(
        ("q", None, gpt("user", "how?", at=1)),
        ("t", "q", gpt("assistant", kind="thoughts", thoughts=thought, at=2)),
        ("pre", "t", gpt("assistant", "Let me look.", at=3)),
        ("call", "pre", gpt("assistant", kind="code", text="print(1)", language="python", recipient="python", at=4)),
        ("out", "call", gpt("tool", kind="execution_output", text="1", at=5)),
        (
            "recap",
            "out",
            gpt("assistant", kind="reasoning_recap", content="Thought for 8s", metadata={"finished_duration_sec": 8}),
        ),
        (
            "end",
            "recap",
            gpt("assistant", "It is \ue200cite\ue202turn0search1\ue201so.", at=6, metadata={"model_slug": "gpt-5"}),
        ),
        tip="end",
    )
    parsed = read(tmp_path, {"conversations": [document]})
    [chat] = parsed.chats
    assert lines(chat)[1:] == [(1, 0, "assistant", "Let me look.\n\nIt is so.")]
    answer = chat.messages[1]
    assert answer.message.reasoning_content == "Weighing\n\nbody\n\nDone"
    assert (answer.outcome.model, answer.outcome.thinking_ms, answer.created) == ("gpt-5", 8000, T0 + 2)
    assert chat.tip == 1
    assert dict(parsed.left_out) == {"calls and results of tools": 2}


def test_two_ends_of_one_beginning_are_two_answers(tmp_path: Path) -> None:
    document = conversation(
        ("q", None, gpt("user", "q")),
        ("start", "q", gpt("assistant", "Start.")),
        ("x", "start", gpt("assistant", "X")),
        ("y", "start", gpt("assistant", "Y")),
        ("more", "y", gpt("user", "more")),
    )
    [chat] = read(tmp_path, [document]).chats
    assert lines(chat)[1:] == [
        (1, 0, "assistant", "Start.\n\nX"),
        (2, 0, "assistant", "Start.\n\nY"),
        (3, 2, "user", "more"),
    ]


def test_what_cannot_be_taken_is_counted_and_the_words_beside_it_are_not_lost(tmp_path: Path) -> None:
    image = {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1"}
    spoken = {"content_type": "audio_transcription", "text": "spoken"}
    sound = {"content_type": "audio_asset_pointer", "asset_pointer": "a"}
    files = [{"name": "a.pdf", "mime_type": "application/pdf"}, {"name": "b.png", "mime_type": "image/png"}]
    document = conversation(
        ("s", None, gpt("system", "Be kind.")),
        ("q", "s", gpt("user", image, "What is it?", kind="multimodal_text", metadata={"attachments": files})),
        ("a", "q", gpt("assistant", "A cat.", image, kind="multimodal_text")),
        ("d", "a", gpt("tool", image, kind="multimodal_text")),
        ("v", "d", gpt("user", spoken, sound, kind="multimodal_text")),
        ("h", "v", gpt("user", "profile", metadata={"is_visually_hidden_from_conversation": True})),
        ("c", "h", gpt("assistant", kind="code", text="x = 1", language="python", status="in_progress")),
    )
    parsed = read(tmp_path, [document, {"id": 7}])
    [chat] = parsed.chats
    assert chat.settings.system == "Be kind." and chat.settings.model == ""
    assert [text for _, _, _, text in lines(chat)] == ["What is it?", "A cat.", "spoken", "```python\nx = 1\n```"]
    assert chat.messages[-1].state == "stopped"
    assert dict(parsed.left_out) == {
        "entries that are no conversation": 1,
        "images": 3,
        "attached files": 1,
        "calls and results of tools": 1,
        "recordings": 1,
        "hidden messages": 1,
    }


def deepseek(**message: Any) -> Json:
    return {"files": [], "model": "deepseek-reasoner", "inserted_at": "2025-03-01T10:00:00.500000+08:00", **message}


def test_deepseek_with_fragments(tmp_path: Path) -> None:
    fragments = [
        {"type": "THINK", "content": "Hm."},
        {"type": "SEARCH", "results": []},
        {"type": "RESPONSE", "content": "Yes."},
    ]
    document = [
        {
            "id": "x",
            "title": "Frage",
            "inserted_at": "2025-03-01T10:00:00+08:00",
            "updated_at": "2025-03-01T10:01:00+08:00",
            "mapping": mapping(
                ("root", None, None),
                (
                    "1",
                    "root",
                    deepseek(fragments=[{"type": "REQUEST", "content": "Is it?"}], files=[{"file_name": "a"}]),
                ),
                ("2", "1", deepseek(fragments=fragments)),
                ("3", "1", deepseek(fragments=[{"type": "RESPONSE", "content": "No."}])),
            ),
        }
    ]
    parsed = read(tmp_path, document)
    [chat] = parsed.chats
    assert (parsed.source, chat.title, chat.created) == ("DeepSeek", "Frage", 1740794400.0)
    assert lines(chat) == [(0, None, "user", "Is it?"), (1, 0, "assistant", "Yes."), (2, 0, "assistant", "No.")]
    assert chat.messages[1].message.reasoning_content == "Hm."
    assert (chat.messages[1].outcome.model, chat.messages[0].created) == ("deepseek-reasoner", 1740794400.5)
    assert dict(parsed.left_out) == {"attached files": 1, "searches and other tools": 1}


def test_deepseek_without_fragments_takes_turns(tmp_path: Path) -> None:
    document = [
        {
            "title": None,
            "inserted_at": "odd",
            "mapping": mapping(
                ("root", None, None),
                ("1", "root", deepseek(content="q", reasoning_content=None)),
                ("2", "1", deepseek(content="a", reasoning_content="r")),
                ("3", "2", deepseek(content="q2")),
                ("4", "3", deepseek(content="a2")),
            ),
        }
    ]
    [chat] = read(tmp_path, document).chats
    assert [role for _, _, role, _ in lines(chat)] == ["user", "assistant", "user", "assistant"]
    assert chat.messages[1].message.reasoning_content == "r" and chat.created == 1740794400.5


def zipped(**files: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_json", ".json").replace("_html", ".html"), content)
    return raw.getvalue()


def test_a_zip_is_looked_into(tmp_path: Path) -> None:
    one = json.dumps([conversation(("q", None, gpt("user", "one")))]).encode()
    two = json.dumps([conversation(("q", None, gpt("user", "two")))]).encode()
    file = tmp_path / "export.zip"
    file.write_bytes(zipped(a__conversations_json=one, user_json=b"{}", chat_html=b"<p>"))
    assert [lines(chat)[0][3] for chat in parse(file).chats] == ["one"]
    file.write_bytes(zipped(**{"conversations-000_json": one, "conversations-001_json": two}))
    assert [lines(chat)[0][3] for chat in parse(file).chats] == ["one", "two"]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "is not JSON, or cut short"),
        (b'[{"title": "x", "mapping": {', "is not JSON, or cut short (line 1, column"),
        (b"\x89PNG\r\n\xff", "is not JSON (byte 0 is not UTF-8)"),
        (b"hello", "is not JSON"),
        (b"[" * 200_000, "is no export of chats"),
        (b"[]", "is no export of chats"),
        (b'{"a": 1}', "is no export of chats"),
        (b'[{"chat_messages": []}]', "is no export of chats"),
        (b"7", "is no export of chats"),
        (b'[{"mapping": {}}]', "there is no chat in"),
        (b'[{"mapping": {"a": {"message": {"odd": 1}}}}]', "there is no chat in"),
        (zipped(user_json=b"{}", chat_html=b"x")[:-30], "is not a whole .zip file"),
        (zipped(a_json=b"{}", b_json=b"{}"), "holds no conversations.json"),
        (zipped(conversations_json=b"[1"), "is not JSON, or cut short"),
    ],
    # A .zip holds the time: with its bytes for a name, a test would be called otherwise in each process.
    ids=lambda value: value if isinstance(value, str) else "raw",
)
def test_what_is_no_export_is_one_sentence(tmp_path: Path, raw: bytes, complaint: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(raw)
    with pytest.raises(UsageError) as refusal:
        parse(file)
    assert complaint in refusal.value.message and "\n" not in refusal.value.message


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localchat.chats.importing.SIZE_LIMIT_BYTES", 1 << 20)
    file = tmp_path / "bomb.zip"
    file.write_bytes(zipped(conversations_json=b" " * (2 << 20)))
    assert file.stat().st_size < 10_000
    with pytest.raises(UsageError, match="is larger than 1 MiB, unpacked"):
        parse(file)


def test_odd_values_and_loops_do_no_harm(tmp_path: Path) -> None:
    nodes = mapping(("q", None, gpt("user", "q")), ("a", "q", gpt("assistant", "a")))
    nodes["a"]["children"] = ["q", "a", 7, None]
    nodes["x"] = {"parent": "y", "children": ["y"], "message": gpt("user", "never reached")}
    nodes["y"] = {"parent": "x", "children": ["x"], "message": None}
    nodes["z"] = "text"
    document = conversation(title=7, create_time="soon", current_node=["a"])
    document["mapping"] = nodes
    [chat] = read(tmp_path, [document]).chats
    assert [text for _, _, _, text in lines(chat)] == ["q", "a"] and chat.tip == 1
    assert (chat.title, chat.created) == ("", 0.0)


def test_random_junk_in_an_export_raises_nothing_unforeseen(tmp_path: Path, dice: random.Random) -> None:
    values: list[Any] = [None, 7, -1.5, 1e300, "x", "\ud800", [], {}, ["a", {}], {"content_type": 3}, True]

    def shaken(value: Any) -> Any:
        if dice.random() < 0.04:
            return dice.choice(values)
        if isinstance(value, dict):
            return {key: shaken(one) for key, one in value.items() if dice.random() > 0.02}
        return [shaken(one) for one in value] if isinstance(value, list) else value

    base = conversation(
        ("s", None, gpt("system", "sys")),
        ("q", "s", gpt("user", {"content_type": "image_asset_pointer"}, "q", kind="multimodal_text", at=1)),
        ("t", "q", gpt("assistant", kind="thoughts", thoughts=[{"summary": "s", "content": "c"}])),
        ("a", "t", gpt("assistant", "a", at=2, metadata={"model_slug": "m", "content_references": [{"alt": "x"}]})),
        ("b", "q", gpt("assistant", "b", at=3)),
        tip="a",
    )
    with_dates = {**base, "inserted_at": "2025-03-01T10:00:00+08:00"}
    taken = 0
    chats = Chats(tmp_path / "chats.db")
    for _ in range(300):
        try:
            parsed = read(tmp_path, shaken([base, with_dates] if dice.random() < 0.5 else [base]))
        except UsageError:
            continue
        take_in(chats, parsed)
        taken += len(parsed.chats)
    chats.close()
    assert taken > 50


def test_the_same_file_twice_doubles_nothing_and_a_longer_one_adds_what_is_new(tmp_path: Path, chats: Chats) -> None:
    short = [("q", None, gpt("user", "q", at=1)), ("a", "q", gpt("assistant", "a", at=2))]
    longer = [*short, ("q2", "a", gpt("user", "q2", at=3)), ("b", "q", gpt("assistant", "b", at=4))]
    first = take_in(chats, read(tmp_path, [conversation(*short)]))
    again = take_in(chats, read(tmp_path, [conversation(*short)]))
    grown = take_in(chats, read(tmp_path, [conversation(*longer, tip="q2")]))
    assert [(one.new, one.grown, one.known, one.messages) for one in (first, again, grown)] == [
        (1, 0, 0, 2),
        (0, 0, 1, 0),
        (0, 1, 0, 2),
    ]
    [info] = chats.chats()
    tree = chats.tree(info.id)
    assert [node.message.text() for node in tree.path()] == ["q", "a", "q2"]
    assert info.titled_by == "model" and info.updated == T0 + 4


def test_what_was_said_here_since_stays(tmp_path: Path, chats: Chats) -> None:
    document = [conversation(("q", None, gpt("user", "q", at=1)), ("a", "q", gpt("assistant", "a", at=2)))]
    take_in(chats, read(tmp_path, document))
    [info] = chats.chats()
    chats.ask(info.id, info.tip, Message("user", "mine"))
    chats.rename(info.id, "My title")
    assert take_in(chats, read(tmp_path, document)).known == 1
    assert len(chats.tree(info.id).nodes) == 4 and chats.info(info.id).title == "My title"


def test_nothing_is_half_imported(tmp_path: Path, chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    document = [conversation(("q", None, gpt("user", str(n))), create_time=T0 + n) for n in range(5)]
    parsed, append, calls = read(tmp_path, document), chats.append, []

    def failing(*arguments: Any, **more: Any) -> int:
        calls.append(1)
        if len(calls) == 4:
            raise ChatsError("the disk is full: make room")
        return append(*arguments, **more)

    monkeypatch.setattr(chats, "append", failing)
    with pytest.raises(ChatsError):
        take_in(chats, parsed)
    assert chats.chats(None) == []
