"""What the machine offers, as the kernel tells it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from localchat import hardware


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: its cgroups' root, in which this process is (version 2)."""
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "_CGROUPS_OF_THIS_PROCESS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/\n")
    return tmp_path


def limit(folder: Path, most: int | str, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")


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
def test_files_that_a_cgroup_keeps_in_memory_count_as_available(cgroups: Path, stat: str | None, expected: int) -> None:
    limit(cgroups, 10000, 9000)
    if stat is not None:
        (cgroups / "memory.stat").write_text(stat)
    assert hardware.available_memory() == expected


def test_without_a_limit_the_system_decides(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_system_memory", lambda: 7)
    limit(cgroups, "max", 9000)
    assert hardware.available_memory() == 7


@pytest.mark.parametrize(
    ("own", "around", "expected"), [(5000, "max", 4000), ("max", 5000, 3000), (9000, 5000, 3000), ("max", "max", 7777)]
)
def test_the_strictest_of_nested_cgroups_counts(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch, own: int | str, around: int | str, expected: int
) -> None:
    monkeypatch.setattr(hardware, "_system_memory", lambda: 7777)
    (cgroups / "own").write_text("0::/a.slice/b.scope\n")
    limit(cgroups / "a.slice", around, 2000)
    limit(cgroups / "a.slice" / "b.scope", own, 1000)
    assert hardware.available_memory() == expected


def test_version_1_has_a_folder_for_each_controller(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cgroups / "own").write_text("9:name=systemd:/x\n4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/\n")
    inner = cgroups / "memory" / "a" / "b"
    inner.mkdir(parents=True)
    (cgroups / "cpu").mkdir()
    (inner / "memory.limit_in_bytes").write_text(f"{1 << 62}\n")  # what version 1 calls no limit
    (inner / "memory.usage_in_bytes").write_text("100\n")
    (inner.parent / "memory.limit_in_bytes").write_text("1000\n")
    (inner.parent / "memory.usage_in_bytes").write_text("700\n")
    (inner.parent / "memory.stat").write_text("active_file 1\ntotal_active_file 40\ntotal_inactive_file 2\n")
    assert hardware.available_memory() == 1000 - (700 - 42)
    assert hardware.cgroup_folders("memory") == [inner, inner.parent, cgroups / "memory"]
    # A container that sees its own cgroup as the root has none by the kernel's name.
    assert hardware.cgroup_folders("cpu") == [cgroups / "cpu"]


@pytest.mark.parametrize("own", ["", "nonsense\n", "0::/../../elsewhere\n", None])
def test_what_cannot_be_read_of_the_own_cgroup_is_its_root(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    (cgroups / "own").unlink() if own is None else (cgroups / "own").write_text(own)
    limit(cgroups, 500, 100)
    assert hardware.available_memory() == 400


@pytest.fixture
def processors(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, of two to a core, without a quota: the folder in which the kernel describes them."""
    folder = cgroups / "processors"
    for cpu in range(8):
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(hardware, "_CPUS", folder)
    monkeypatch.setattr(hardware, "_INTEL_FAST", cgroups / "cpu_core")
    monkeypatch.setattr(sys, "platform", "linux")
    may_use(monkeypatch, range(8))
    return folder


def may_use(monkeypatch: pytest.MonkeyPatch, cpus: Iterable[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cpus), raising=False)


@pytest.mark.parametrize(("cpus", "cores"), [(range(8), 4), ([0, 4], 1), ([0, 1, 2], 3), ([7], 1)])
def test_two_hardware_threads_of_a_core_count_once(
    processors: Path, monkeypatch: pytest.MonkeyPatch, cpus: Iterable[int], cores: int
) -> None:
    may_use(monkeypatch, cpus)
    assert hardware.usable_cores() == cores


def test_where_the_kernel_hides_cores_each_processor_is_one(processors: Path) -> None:
    shutil.rmtree(processors)
    assert hardware.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("110000 100000", 1), ("149999 100000", 1), ("150000 100000", 2), ("25000 50000", 1),
     ("350000 100000", 4), ("900000 100000", 4), ("1000 100000", 1), ("nonsense", 4), ("", 4), ("5 0", 4)],
)  # fmt: skip
def test_a_quota_is_rounded(processors: Path, cgroups: Path, quota: str, cores: int) -> None:
    (cgroups / "cpu.max").write_text(f"{quota}\n")
    assert hardware.usable_cores() == cores


@pytest.mark.parametrize(
    ("inner", "outer", "cores"), [("max", "200000", 2), ("100000", "300000", 1), ("300000", "200000", 2)]
)
def test_the_strictest_quota_of_nested_cgroups_counts(
    processors: Path, cgroups: Path, inner: str, outer: str, cores: int
) -> None:
    (cgroups / "own").write_text("0::/user.slice/app.scope\n")
    app = cgroups / "user.slice" / "app.scope"
    app.mkdir(parents=True)
    (app / "cpu.max").write_text(f"{inner} 100000\n")
    (app.parent / "cpu.max").write_text(f"{outer} 100000\n")
    assert hardware.usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("250000", 3), ("0", 4), ("60000", 1)])
def test_a_quota_of_version_1_counts(processors: Path, cgroups: Path, quota: str, cores: int) -> None:
    (cgroups / "own").write_text("3:cpuset:/\n1:cpu:/box\n0::/\n")
    box = cgroups / "cpu" / "box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (box / "cpu.cfs_period_us").write_text("100000\n")
    assert hardware.usable_cores() == cores


def test_of_intels_two_kinds_of_cores_only_the_fast_ones_count(
    processors: Path, cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cgroups / "cpu_core").write_text("0-1,4-5\n")
    assert hardware.usable_cores() == 2
    may_use(monkeypatch, [2, 3, 6])  # a container on slow ones alone
    assert hardware.usable_cores() == 2


@pytest.mark.parametrize("text", ["", "0-", "x\n", "-1\n"])
def test_a_list_of_processors_that_cannot_be_read_is_no_list(processors: Path, cgroups: Path, text: str) -> None:
    (cgroups / "cpu_core").write_text(text)
    assert hardware.usable_cores() == 4


def test_of_arms_clusters_the_little_one_does_not_count(processors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(8):
        (processors / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{cpu}\n")
        (processors / f"cpu{cpu}" / "cpu_capacity").write_text(f"{(250, 250, 250, 250, 870, 870, 870, 1024)[cpu]}\n")
    assert hardware.usable_cores() == 4
    may_use(monkeypatch, [0, 1])
    assert hardware.usable_cores() == 2
    may_use(monkeypatch, range(8))
    (processors / "cpu7" / "cpu_capacity").unlink()  # where not all are known, none is left out
    assert hardware.usable_cores() == 8


@pytest.mark.parametrize(
    ("told", "cores"), [({"hw.perflevel0.physicalcpu": 6}, 6), ({"hw.physicalcpu": 4}, 4), ({}, 8)]
)
def test_macos_tells_how_many_cores_are_fast(
    processors: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, int], cores: int
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "_sysctl", told.get)
    assert hardware.usable_cores() == cores
