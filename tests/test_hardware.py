"""What the machine offers, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from localchat import hardware


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        ("anon 5\n", 1000),
        ("anon 5\nactive_file 2000\ninactive_file 1000\n", 4000),
        ("active_file 90000\n", 10_000),
        ("active_file\n", 1000),
        (None, 1000),
    ],
)
def test_files_that_a_cgroup_keeps_in_memory_count_as_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stat: str | None, expected: int
) -> None:
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("10000\n")
    (tmp_path / "memory.current").write_text("9000\n")
    if stat is not None:
        (tmp_path / "memory.stat").write_text(stat)
    assert hardware.available_memory() == expected


def test_without_a_limit_the_system_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "_system_memory", lambda: 7)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("9000\n")
    assert hardware.available_memory() == 7
