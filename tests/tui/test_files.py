"""Finding files by a part of their name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from localchat.tui.files import Files, best, listed, pasted_files

_NAMES = [
    "README.md",
    "src/app.py",
    "src/widgets/composer.py",
    "docs/composer.md",
    "tests/test_composer.py",
    "a/b/c.py",
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("composer", ["docs/composer.md", "src/widgets/composer.py", "tests/test_composer.py"]),
        ("COMP", ["docs/composer.md", "src/widgets/composer.py", "tests/test_composer.py"]),
        ("composer.py", ["src/widgets/composer.py", "tests/test_composer.py"]),
        ("cmpr", ["docs/composer.md", "src/widgets/composer.py", "tests/test_composer.py"]),
        ("wcomp", ["src/widgets/composer.py"]),
        ("src/a", ["src/app.py"]),
        ("rdm", ["README.md"]),
        ("abc", ["a/b/c.py"]),
        ("zzz", []),
    ],
)
def test_the_likeliest_file_comes_first(typed: str, first: list[str]) -> None:
    assert best(typed, _NAMES, 3)[: len(first)] == first
    assert first or best(typed, _NAMES, 3) == []


def test_without_a_letter_the_nearest_files_come_first() -> None:
    assert best("", _NAMES, 2) == ["README.md", "src/app.py"]


def test_what_git_ignores_is_left_out(place: Path) -> None:
    _fill(place, ".gitignore", "kept.py", "new.py", "build/out.py", "sub/kept.py", ".hidden")
    (place / ".gitignore").write_text("build/\n")
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    subprocess.run(["git", "add", "kept.py"], cwd=place, check=True)
    assert sorted(listed(place)) == [".gitignore", ".hidden", "kept.py", "new.py", "sub/kept.py"]
    assert listed(place / "sub") == ["kept.py"]


def test_a_repository_cannot_have_a_program_run(place: Path) -> None:
    _fill(place, "a.py")
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    hook = place / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {place}/ran\n")
    hook.chmod(0o700)
    subprocess.run(["git", "config", "core.fsmonitor", str(hook)], cwd=place, check=True)
    assert "a.py" in listed(place)
    assert not (place / "ran").exists()


def test_elsewhere_hidden_and_huge_folders_are_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(place.parent))
    _fill(place, "deep/er/z.md", "a.md", ".hidden/b.md", ".c", "node_modules/d.js", "deep/e.md")
    (place / "loop").symlink_to(place)
    (place / "locked").mkdir(mode=0)
    assert listed(place) == ["a.md", "deep/e.md", "deep/er/z.md"]


def test_a_path_is_completed_folder_by_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(place, "home/notes/a.md", "home/.secret", "work/src/x.py", "work/y.py")
    monkeypatch.setenv("HOME", str(place / "home"))
    files = Files(place / "work")
    assert [one.shown for one in files.find("~")] == ["~/notes/"]
    assert [one.shown for one in files.find("~/.")] == ["~/.secret"]
    assert [one.path for one in files.find("~/notes/a")] == [place / "home/notes/a.md"]
    assert [one.shown for one in files.find("../")] == ["../home/", "../work/"]
    assert [one.shown for one in files.find("./s")] == ["./src/"]
    assert [one.shown for one in files.find(f"{place}/work/y")] == [f"{place}/work/y.py"]
    assert files.find("/no/such/folder/") == []
    assert files.find("~nobody-of-that-name/") == []


def test_going_back_finds_again_what_more_letters_left_out(place: Path) -> None:
    _fill(place, "main.py", "maple.py", "other.py")
    files = Files(place)
    for typed, count in [("", 3), ("ma", 2), ("mai", 1), ("ma", 2), ("o", 1), ("", 3)]:
        assert len(files.find(typed)) == count, typed


def test_two_hundred_thousand_files() -> None:
    names = [f"package{n % 97}/module{n % 1009}/file_{n}.py" for n in range(200_000)]
    assert best("p3m7file_7", names, 5)
    assert best("file_199999", names, 5) == [names[199_999]]


@pytest.mark.parametrize("spelt", ["{}", "'{}'", '"{}"', "file://{}", "{} "])
def test_a_pasted_file(place: Path, spelt: str) -> None:
    _fill(place, "a file.md")
    assert pasted_files(spelt.format(place / "a file.md")) == [place / "a file.md"]


def test_several_pasted_files(place: Path) -> None:
    _fill(place, "a.md", "b c.md")
    escaped = f"{place}/a.md {place}/b\\ c.md"
    assert pasted_files(escaped) == [place / "a.md", place / "b c.md"]
    quoted = f"file://{place}/b%20c.md"
    assert pasted_files(quoted) == [place / "b c.md"]


def test_what_is_no_pasted_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(place, "a.md")
    monkeypatch.chdir(place)
    file = f"{place}/a.md"
    for text in ("a.md", "", " ", f"{place}", f"see {file}", f"{file}\n{file}", f"{file} x", "file://elsewhere/a", "'"):
        assert pasted_files(text) == [], text
    assert pasted_files("/" + "x" * 300) == []
    assert pasted_files("/a\0b") == []
    assert pasted_files("~nobody-of-that-name/x") == []
