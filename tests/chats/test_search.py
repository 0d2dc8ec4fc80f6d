"""Search: what a person types is found, whatever it is, in whatever language."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localchat.chats.records import Attachment, ChatSettings, Hit, Outcome
from localchat.chats.store import Chats
from localchat.protocol import Message
from localchat.safe_text import safe_line

DAY = 86400.0


def put(chats: Chats, *texts: str, title: str = "", kind: str = "chat", age_days: float = 0) -> int:
    created = time.time() - age_days * DAY
    chat = chats.create(ChatSettings(), kind, title, created=created)  # type: ignore[arg-type]
    parent = None
    for number, text in enumerate(texts):
        parent = chats.append(chat, parent, Message("assistant" if number % 2 else "user", text), created=created)
    return chat


def marked(hit: Hit) -> list[str]:
    return [hit.excerpt[start:end] for start, end in hit.marks]


def found(chats: Chats, words: str) -> list[list[str]]:
    return [marked(hit) for hit in chats.search(words)]


@pytest.mark.parametrize(
    ("typed", "text", "marks"),
    [
        ("bread", "How to bake Bread.", ["Bread"]),
        ("bre", "How to bake bread, breadth", ["bread", "breadth"]),
        ("bake bread", "Bread that I bake", ["Bread", "bake"]),
        ("bake cake", "Bread that I bake", None),
        ("bak bread", "Bread that I bake", None),
        ('"bake bread"', "bake, bread; bread and bake", ["bake, bread"]),
        ('"bread bake"', "bake bread", None),
        ('"bake br', "to bake bread", ["bake bread"]),
        ('"bake br"', "to bake bread", None),
        ("cafe", "Das Café ist zu", ["Café"]),
        ("CAFÉ", "das cafe ist zu", ["cafe"]),
        ("cafe\u0301", "das café", ["café"]),
        ("café", "das cafe\u0301 ist", ["cafe\u0301"]),
        ("übergrö", "Die Übergröße", ["Übergröße"]),
        ("привет", "ПРИВЕТ мир", ["ПРИВЕТ"]),
        ("日本", "私は日本語を話す", ["日本"]),
        ("本日", "私は日本語を話す", None),
        ("日本 話す", "私は日本語を話す", ["日本", "話す"]),
        ("カタ", "半角カタカナ", ["カタ"]),
        ("한국", "저는 한국어를 합니다", ["한국"]),
        ("人工智能", "什么是人工智能？", ["人工智能"]),
        ("python日本", "Python 日本", ["Python 日本"]),
        ("สวัส", "สวัสดีครับ", ["สวัส"]),
        ("हिन्दी", "मैं हिन्दी बोलता हूँ", ["हिन्दी"]),
        ("foo_bar", "call foo_bar(x)", ["foo_bar"]),
        ("c++", "write it in C++ please", ["C"]),
        ("don't", "I don't know", ["don't"]),
        ("a.b-c", "see a.b-c here", ["a.b-c"]),
        ("AND OR NOT", "and or not", ["and", "or", "not"]),
        ("content:bread", "content: bread", ["content: bread"]),
        ("bread*", "breadth", ["breadth"]),
        ("bread)", "(bread", ["bread"]),
        ("NEAR(bread)", "near bread", ["near bread"]),
        ("42", "the answer is 42.", ["42"]),
        ("x" * 5000, "y", None),
        ("bread \0", "bread", ["bread"]),
    ],
)
def test_what_is_typed_is_found(chats: Chats, typed: str, text: str, marks: list[str] | None) -> None:
    put(chats, text)
    assert found(chats, typed) == ([] if marks is None else [marks])


@pytest.mark.parametrize("typed", ["", " ", '"', '""', "***", "()", "\0", "🙂", "\u0301", '" "', "^", "-", "¨"])
def test_what_holds_no_word_finds_nothing(chats: Chats, typed: str) -> None:
    put(chats, 'some 🙂 words - * " ( )')
    assert chats.search(typed) == []


@given(st.text(max_size=60) | st.text(st.sampled_from("ab日\"*()^:-+{}\\' \0\ud800é\u0301"), max_size=30))
@example('a"b')
@example('"" a ""')
@example("İ ı ß ﬀ Ǆ")
def test_nothing_that_is_typed_raises_and_marks_fit(typed: str) -> None:
    chats = _SHARED[0]
    for hit in chats.search(typed):
        assert "\n" not in hit.excerpt
        assert all(0 <= start < end <= len(hit.excerpt) for start, end in hit.marks)
        assert hit.marks == sorted(hit.marks)


@given(st.text(max_size=400), st.data())
def test_each_word_of_a_text_finds_it(text: str, data: st.DataObject) -> None:
    chats = _SHARED[0]
    chat = put(chats, text)
    try:
        words = [word for word in text.split() if any(c.isascii() and c.isalnum() for c in word)]
        if words:
            word = data.draw(st.sampled_from(words)).replace('"', " ")
            assert chat in {hit.chat for hit in chats.search(word, limit=10_000)}
    finally:
        chats.delete(chat)


_SHARED: list[Chats] = []


@pytest.fixture(autouse=True, scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> object:
    store = Chats(tmp_path_factory.mktemp("search") / "chats.db")
    put(store, "a b ab aa bb 日 日本 a日b é e\u0301 İstanbul straße", "aé" * 200 + "\x1b[31m\u202e red\r\n" * 50)
    _SHARED.append(store)
    yield
    _SHARED.pop().close()


def test_what_counts_is_typed_and_answered(chats: Chats) -> None:
    chat = chats.create(ChatSettings(system="zebra"))
    question, answer = chats.ask(chat, None, Message("user", "horse"), [Attachment("cow.txt", "donkey")])
    chats.save(answer, Message("assistant", "hen", "goose"), "unfinished", Outcome(error="owl"))
    assert [len(chats.search(word)) for word in ("zebra", "cow", "donkey", "hen", "goose", "owl")] == [0] * 6
    assert [hit.node for hit in chats.search("horse")] == [question]
    chats.save(answer, Message("assistant", "hen duck", "goose"), "stopped", Outcome())
    assert [hit.node for hit in chats.search("hen")] == [answer]
    chats.resume(answer)
    assert chats.search("hen") == []
    chats.save(answer, Message("assistant", "duck"), "done", Outcome())
    assert (chats.search("hen"), [hit.role for hit in chats.search("duck")]) == ([], ["assistant"])
    chats.append(chat, answer, Message("system", "rabbit"))
    assert chats.search("rabbit") == []


def test_titles_are_found_first_and_once(chats: Chats) -> None:
    bread = put(chats, "how long in the oven?", title="Sourdough bread")
    other = put(chats, "bread costs more")
    untitled = chats.create(ChatSettings())
    chats.ask(untitled, None, Message("user", "bread again"))
    hits = chats.search("bread")
    assert [(hit.chat, hit.role) for hit in hits] == [(bread, "title"), (untitled, "user"), (other, "user")]
    assert (hits[0].node, hits[0].excerpt, marked(hits[0])) == (chats.info(bread).tip, "Sourdough bread", ["bread"])
    chats.rename(bread, "Rye")
    assert [hit.chat for hit in chats.search("rye")] == [bread]
    assert [hit.chat for hit in chats.search("sourdough")] == []


def test_kinds_and_limits(chats: Chats) -> None:
    for number in range(5):
        put(chats, f"apple {number}", kind="ask" if number < 2 else "chat")
    assert [len(chats.search("apple", kind=kind)) for kind in ("ask", "chat", None)] == [2, 3, 5]
    assert [len(chats.search("apple", limit=limit)) for limit in (0, -1, 1, 4)] == [0, 0, 1, 4]


def test_the_best_and_the_newest_come_first(chats: Chats) -> None:
    long_ago = put(chats, "apples and pears and a great many other things in a long list", age_days=900)
    new = put(chats, "apples and pears and a great many other things in a long list")
    best = put(chats, "apples, apples, apples!", age_days=900)
    put(chats, *(f"filler {number}" for number in range(50)))
    assert [hit.chat for hit in chats.search("apples")] == [best, new, long_ago]


def test_what_is_found_very_often_comes_newest_first(chats: Chats) -> None:
    with chats.together():
        chat = put(chats, *(f"apple {number}" for number in range(1200)))
    hits = chats.search("apple", limit=3)
    assert [hit.excerpt for hit in hits] == ["apple 1199", "apple 1198", "apple 1197"]
    chats.delete(chat)
    old = put(chats, "one apple")
    assert [hit.chat for hit in chats.search("apple")] == [old]


def test_an_excerpt_is_one_line_around_the_first_match(chats: Chats) -> None:
    put(chats, "Filler words before.\n\n" * 40 + "here is\n\n\tthe *needle* of\x1b]0;x\x07 it" + " after that" * 40)
    (hit,) = chats.search("needle")
    assert marked(hit) == ["needle"]
    assert hit.excerpt.startswith("…") and hit.excerpt.endswith("…")
    assert 100 < len(hit.excerpt) <= 122
    assert "here is the *needle* of␛]0;x␇ it" in hit.excerpt
    assert safe_line(hit.excerpt) == hit.excerpt


def test_excerpts_of_short_and_late_matches(chats: Chats) -> None:
    put(chats, "needle")
    assert [hit.excerpt for hit in chats.search("needle")] == ["needle"]
    put(chats, "x " * 5000 + "sharp")
    (hit,) = chats.search("sharp")
    assert hit.excerpt.endswith("x sharp") and marked(hit) == ["sharp"]
