"""Figures in words, and words in the room there is: what several widgets say alike. Knows nothing of Textual."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def brief(seconds: float) -> str:
    """The same, with a tenth where that matters."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def tokens(count: int) -> str:
    """A number of tokens in words."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes in words, in decimal units as shops and downloads use them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def rate(tokens_per_second: float) -> str:
    """A speed of reading or answering in words."""
    digits = 1 if tokens_per_second < 10 else 0
    return f"{tokens_per_second:.{digits}f} tokens/s"


def bar(share: float, width: int) -> str:
    """A share from 0 to 1 as a bar of `width` cells: what has begun shows, and only what is whole is full."""
    share = min(1.0, max(0.0, share))
    full = max(int(share * width), int(share > 0))
    return "━" * full + "─" * (width - full)


def fitting(text: str, width: int) -> str:
    """`text` in `width` cells: what follows a comma gives way first."""
    parts = text.split(", ")
    while len(parts) > 1 and cell_len(", ".join(parts)) > width:
        parts.pop()
    return clipped(", ".join(parts) if cell_len(parts[0]) <= width else text, width)


def clipped(text: str, width: int) -> str:
    """`text` in `width` cells, its end cut off where it is longer."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def clipped_inside(text: str, width: int) -> str:
    """`text` in `width` cells, its middle left out where it is longer: what tells names apart is often at their end."""
    if cell_len(text) <= width:
        return text
    tail = max(0, (width - 1) // 2)
    end = text[-tail:] if tail else ""
    while cell_len(end) > tail:
        end = end[1:]
    return set_cell_size(text, max(0, width - 1 - cell_len(end))).rstrip() + "…" + end
