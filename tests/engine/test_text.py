"""From bytes to text: the same pieces wherever the stream is cut, whole characters only, nothing of a stop string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localchat.engine.text import (
    THINKING_FAMILIES,
    AnswerText,
    Piece,
    StopStrings,
    ThinkingTags,
    held_back,
    thinking_family,
)

THINK = THINKING_FAMILIES[0]
HARMONY = THINKING_FAMILIES[1]
MANY = settings(max_examples=200, deadline=None, print_blob=True)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def run(
    parts: list[bytes], tags: ThinkingTags | None = None, inside: bool = False, stops: tuple[str, ...] = ()
) -> Piece:
    """All pieces of a stream, put together: none is ever taken back, so this is what a person reads."""
    text = AnswerText(tags, inside, list(stops))
    whole = Piece()
    for part in parts:
        piece = text.feed(part)
        whole.reasoning += piece.reasoning
        whole.content += piece.content
        if text.stopped:
            break
    rest = text.finish()
    return Piece(whole.reasoning + rest.reasoning, whole.content + rest.content)


def everywhere(data: bytes, **options: object) -> Piece:
    """The pieces of a stream, which must be the same whole, byte by byte, and cut in two at every place."""
    expected = run([data], **options)
    assert run([bytes([byte]) for byte in data], **options) == expected
    for cut in range(len(data) + 1):
        assert run([data[:cut], data[cut:]], **options) == expected, cut
    return expected


# Characters


@pytest.mark.parametrize("text", ["", "plain", "é", "€", "🙂", "a\u0301", "𝔘𝔫𝔦", "日本語", "\x00", "👩‍👩‍👧", "🇫🇷"])
def test_a_text_arrives_whole_wherever_it_is_cut(text: str) -> None:
    assert everywhere(text.encode()).content == text


@MANY
@given(st.text(), st.lists(st.integers(0, 1000), max_size=8))
def test_valid_text_never_shows_a_replacement_mark(text: str, cuts: list[int]) -> None:
    text = text.replace("\ufffd", "")
    stream = AnswerText()
    for part in chunks(text.encode(), cuts):
        assert "\ufffd" not in stream.feed(part).content
    assert run(chunks(text.encode(), cuts)).content == text


@MANY
@given(st.binary(max_size=40), st.lists(st.integers(0, 1000), max_size=8))
def test_any_bytes_give_the_same_text_wherever_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert run(chunks(data, cuts)) == run([data])


@pytest.mark.parametrize("character", ["é", "€", "🙂"])
def test_half_a_character_at_the_end_is_dropped(character: str) -> None:
    for kept in range(1, len(character.encode())):
        assert everywhere(b"so " + character.encode()[:kept]).content == "so "


@pytest.mark.parametrize(
    ("data", "expected"), [(b"a\xffb", "a\ufffdb"), (b"\xc3(", "\ufffd("), (b"\xed\xa0\x80!", "\ufffd\ufffd\ufffd!")]
)
def test_invalid_bytes_become_replacement_marks_once_they_cannot_become_a_character(data: bytes, expected: str) -> None:
    assert everywhere(data).content == expected


# Stop strings


def cut_by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first; of those that end together, the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def feed_all(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    stream = StopStrings(stops)
    seen = ""
    for part in parts:
        seen += stream.feed(part)
    return seen + stream.finish(), stream.hit


@MANY
@given(
    st.text("ab\n", max_size=14),
    st.lists(st.text("ab\n", max_size=4), max_size=4),
    st.lists(st.integers(0, 14), max_size=6),
)
def test_stop_strings_cut_where_the_definition_says_however_the_text_arrives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in pairwise(edges)]
    assert feed_all(stops, parts) == cut_by_definition(text, stops)


@MANY
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_that_could_still_be_cut_is_shown_and_nothing_else_is_held(text: str, stops: list[str]) -> None:
    stream = StopStrings(stops)
    seen = ""
    for end, character in enumerate(text, 1):
        seen += stream.feed(character)
        if stream.hit:
            break
        # The longest end of the text that is the beginning of a stop string is all that may be kept back.
        tails = [
            n for n in range(1, end + 1) for stop in stops if n < len(stop) and stop.startswith(text[end - n : end])
        ]
        assert seen == text[: end - max(tails, default=0)]


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("END",), "ENDless", ""),
        (("END",), "the END.", "the "),
        (("END",), "ENENEND", "ENEN"),
        (("aab",), "aaab", "a"),
        (("abcd", "bc"), "abcd", "a"),
        (("bc", "abc"), "xabc", "x"),
        (("", "x"), "a", "a"),
        (("🙂🙂",), "🙂a🙂🙂🙂", "🙂a"),
        (("\n\n",), "one\ntwo\n\nthree", "one\ntwo"),
        (("END",), "to the EN", "to the EN"),
    ],
)
def test_a_stop_string_ends_the_answer_before_it(stops: tuple[str, ...], text: str, expected: str) -> None:
    assert everywhere(text.encode(), stops=stops).content == expected


def test_a_stop_string_inside_the_thinking_does_not_end_the_answer() -> None:
    piece = everywhere(b"<think>a STOP b</think>one STOP two", tags=THINK, stops=("STOP",))
    assert piece == Piece("a STOP b", "one ")


def test_held_back_is_the_longest_tail_that_begins_a_mark() -> None:
    assert held_back("xx<thi", ("<think>", "</think>")) == 4
    assert held_back("aaa", ("aaaa",)) == 3
    assert held_back("abc", ("abc",)) == 0
    assert held_back("", ("a",)) == held_back("a", ()) == 0


# Thinking


@pytest.mark.parametrize("tags", THINKING_FAMILIES, ids=lambda tags: tags.open)
@pytest.mark.parametrize("before", ["", "\n"])
@pytest.mark.parametrize("layout", ["", "\n"])
def test_thinking_is_split_from_the_answer(tags: ThinkingTags, before: str, layout: str) -> None:
    stream = f"{before}{tags.open}{layout}first,\nthen{layout}{tags.close}{layout * 2}the answer\n".encode()
    assert everywhere(stream, tags=tags) == Piece("first,\nthen", "the answer\n")


@pytest.mark.parametrize("tags", THINKING_FAMILIES, ids=lambda tags: tags.open)
def test_thinking_that_the_prompt_opened_is_thinking_from_the_first_byte(tags: ThinkingTags) -> None:
    stream = f"\nfirst {tags.open} again{tags.close}\n\nanswer".encode()
    assert everywhere(stream, tags=tags, inside=True) == Piece(f"first {tags.open} again", "answer")


@pytest.mark.parametrize("tags", THINKING_FAMILIES, ids=lambda tags: tags.open)
def test_thinking_that_never_ends_is_all_thinking(tags: ThinkingTags) -> None:
    assert everywhere(f"{tags.open}on and on".encode(), tags=tags) == Piece("on and on", "")
    assert everywhere(b"on and on", tags=tags, inside=True) == Piece("on and on", "")
    half = tags.close[: len(tags.close) // 2]
    assert everywhere(f"{tags.open}on{half}".encode(), tags=tags) == Piece(f"on{half}", "")


@pytest.mark.parametrize("tags", THINKING_FAMILIES, ids=lambda tags: tags.open)
def test_marks_later_in_an_answer_are_text(tags: ThinkingTags) -> None:
    later = f"write {tags.open}x{tags.close} so"
    assert everywhere(later.encode(), tags=tags) == Piece("", later)
    assert everywhere(f"{tags.open}t{tags.close}{later}".encode(), tags=tags) == Piece("t", later)


@pytest.mark.parametrize("tags", [tags for tags in THINKING_FAMILIES if tags.answer], ids=lambda tags: tags.open)
def test_a_mark_that_opens_the_answer_itself_is_not_shown(tags: ThinkingTags) -> None:
    assert everywhere(f"{tags.answer[0]}hello".encode(), tags=tags) == Piece("", "hello")


@pytest.mark.parametrize("text", ["<", "<thi", "<thinking>", "  spaced", "< think>", "", " "])
def test_an_answer_that_only_begins_like_a_mark_is_kept_whole(text: str) -> None:
    assert everywhere(text.encode(), tags=THINK) == Piece("", text)


def test_empty_thinking_leaves_the_answer() -> None:
    assert everywhere(b"<think>\n\n</think>\n\nhello", tags=THINK) == Piece("", "hello")


def test_white_space_within_thinking_and_answer_is_kept() -> None:
    stream = b"<think>a\n\n  b</think>x \n\n  y "
    assert everywhere(stream, tags=THINK) == Piece("a\n\n  b", "x \n\n  y ")


def test_harmony_shows_no_channel_marks() -> None:
    stream = (
        b"<|channel|>analysis<|message|>We must say hello.<|end|><|start|>assistant<|channel|>final<|message|>Hello!"
    )
    assert everywhere(stream, tags=HARMONY) == Piece("We must say hello.", "Hello!")


def test_without_a_family_everything_is_answer() -> None:
    assert everywhere(b"<think>x</think>y") == Piece("", "<think>x</think>y")


@MANY
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "é", "<", "STOP", "ST", "</"]), max_size=10),
    st.lists(st.integers(0, 200), max_size=10),
    st.booleans(),
)
def test_the_whole_way_does_not_depend_on_where_the_stream_is_cut(
    words: list[str], cuts: list[int], inside: bool
) -> None:
    data = "".join(words).encode()
    options = {"tags": THINK, "inside": inside, "stops": ("STOP", "P a")}
    assert run(chunks(data, cuts), **options) == run([data], **options)


@MANY
@given(st.lists(st.sampled_from(["<think>", "</think>", "word", " ", "\n"]), max_size=10), st.booleans())
def test_splitting_loses_only_marks_and_layout(words: list[str], inside: bool) -> None:
    stream = "".join(words)
    piece = run([stream.encode()], tags=THINK, inside=inside)

    def bare(text: str) -> str:
        return "".join(text.replace("<think>", "").replace("</think>", "").split())

    assert bare(piece.reasoning) + bare(piece.content) == bare(stream)


# Families


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ '<think>\\n' }}", "<think>"),
        ("{{ content.split('</think>')[-1] }}", "<think>"),
        ("{{ '<|channel|>analysis' }}", "<|channel|>analysis<|message|>"),
        ("{{ '[THINK]' }}", "[THINK]"),
        ("{{ '<|START_THINKING|>' }}", "<|START_THINKING|>"),
        ("{{ '<seed:think>' }}", "<seed:think>"),
        ("{{ '<|im_start|>' }} nothing to think", None),
        ("", None),
    ],
)
def test_the_family_is_found_in_the_template(template: str, expected: str | None) -> None:
    family = thinking_family(template)
    assert (family.open if family else None) == expected
