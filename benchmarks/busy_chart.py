"""Draws docs/threads.svg from docs/threads.json, which `python benchmarks/busy.py chart` records."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import Any

from common import ROOT

DATA, SVG = ROOT / "docs" / "threads.json", ROOT / "docs" / "threads.svg"

_WIDTH, _HEIGHT = 860, 430
_LEFT, _RIGHT = 56, 846
_SPEED_TOP, _SPEED_BOTTOM = 44, 290
_COUNT_TOP, _COUNT_BOTTOM = 330, 380
# Each of these has enough contrast on white and on a dark page; nothing is painted behind.
_TEXT, _OURS, _FIXED, _GREY = "#7d7d7d", "#2f81f7", "#e0702b", "#808080"
_BIN_S = 0.25


def draw() -> None:
    """Write the picture."""
    data = json.loads(DATA.read_text())
    ours, fixed = (data["runs"][name] for name in ("localchat", "fixed"))
    length, most = float(data["length"]), int(data["most"])
    rates = {name: _rates(run["times"], length) for name, run in (("ours", ours), ("fixed", fixed))}
    top = _round_up(max(max(values) for values in rates.values()))

    def x(at: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * at / length

    def speed_y(value: float) -> float:
        return _SPEED_BOTTOM - (_SPEED_BOTTOM - _SPEED_TOP) * value / top

    def count_y(value: float) -> float:
        return _COUNT_BOTTOM - (_COUNT_BOTTOM - _COUNT_TOP) * value / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Tokens a second and threads over time, while another program takes a core" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_TEXT}">'
    ]
    for begin, end in data["taken"]:
        parts.append(
            f'<rect x="{x(begin):.1f}" y="{_SPEED_TOP}" width="{x(end) - x(begin):.1f}" '
            f'height="{_COUNT_BOTTOM - _SPEED_TOP}" fill="{_GREY}" fill-opacity="0.2"/>'
        )
    for value in range(0, int(top) + 1, int(top) // 4):
        parts += _line(speed_y(value), str(value))
    for value in sorted({1, most}):
        parts += _line(count_y(value), str(value))
    for second in range(0, int(length) + 1, 5):
        parts.append(f'<text x="{x(second):.1f}" y="{_COUNT_BOTTOM + 18}" text-anchor="middle">{second} s</text>')
    for name, colour in (("fixed", _FIXED), ("ours", _OURS)):
        points = " ".join(
            f"{x((index + 0.5) * _BIN_S):.1f},{speed_y(value):.1f}" for index, value in enumerate(rates[name])
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append(
        f'<polyline points="{_steps(ours, length, x, count_y)}" fill="none" stroke="{_OURS}" stroke-width="2"/>'
    )
    parts += [
        f'<text x="{_LEFT}" y="20">tokens a second</text>',
        f'<text x="{_LEFT + 150}" y="20" fill="{_OURS}">━ localchat</text>',
        f'<text x="{_LEFT + 260}" y="20" fill="{_FIXED}">━ always {most} threads</text>',
        f'<text x="{_LEFT + 420}" y="20">▒ another program has a core</text>',
        f'<text x="{_LEFT}" y="{_COUNT_TOP - 10}">threads that localchat decodes with</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}" font-size="11">{data["model"]}, {data["machine"]}, {data["date"]}</text>',
        "</svg>",
    ]
    SVG.write_text("\n".join(parts) + "\n")


def _line(y: float, label: str) -> list[str]:
    return [
        f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="{_GREY}" stroke-opacity="0.35"/>',
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>',
    ]


def _rates(times: list[float], length: float) -> list[float]:
    """Tokens a second in each quarter of a second; a token that took longer counts in parts."""

    def done(at: float) -> float:
        index = bisect_right(times, at)
        if index == 0 or index == len(times):
            return float(index)
        return index + (at - times[index - 1]) / (times[index] - times[index - 1])

    bins = int(length / _BIN_S)
    return [(done((number + 1) * _BIN_S) - done(number * _BIN_S)) / _BIN_S for number in range(bins)]


def _steps(run: dict[str, Any], length: float, x: Any, y: Any) -> str:
    """The number of threads as a line with corners."""
    points, before = [], None
    for at, count in zip(run["times"], run["threads"], strict=True):
        if 0 <= at <= length and count != before:
            if before is not None:
                points.append(f"{x(at):.1f},{y(before):.1f}")
            points.append(f"{x(at if before is not None else 0):.1f},{y(count):.1f}")
            before = count
    return " ".join([*points, f"{x(length):.1f},{y(before or 1):.1f}"])


def _round_up(value: float) -> int:
    return int(-(-value // 20) * 20)
