"""Whether a chat template is one that many eyes have seen, by its hash.

A template decides what a model reads around a person's words, and a poisoned one can put words into a conversation
where nobody sees them. Templates that are known are listed as hashes; of any other, a person should read the text.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def known_as(template: str) -> str:
    """The name under which llama.cpp's source has this template; nothing where it has none like it."""
    return _table().get(fingerprint(template), "")


def fingerprint(template: str) -> str:
    """The sha256 of a template; blanks at the ends of lines and empty lines around it say nothing and do not count."""
    lines = template.replace("\r\n", "\n").strip().split("\n")
    normal = "\n".join(line.rstrip() for line in lines)
    return hashlib.sha256(normal.encode(errors="surrogatepass")).hexdigest()


@cache
def _table() -> dict[str, str]:
    text = Path(__file__).with_name("known_templates.txt").read_text()
    rows = (line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return dict(rows)
