"""The process in which a PDF is read: pypdf, and nothing else, within hard limits of memory and processor time.

Run as a script with the open file as its standard input and the most characters that are wanted as its argument; it
imports nothing of localchat. One JSON object on stdout: `{"text"}`, or `{"problem"}` with one of "encrypted",
"scanned", "heavy", "broken".
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress

_MEMORY_LIMIT_BYTES = 768 << 20
_PROCESSOR_LIMIT_S = 30
_PROBLEMS = {
    "DependencyError": "encrypted",  # by a cipher that needs a library of its own
    "FileNotDecryptedError": "encrypted",
    "WrongPasswordError": "encrypted",
    "LimitReachedError": "heavy",
    "MemoryError": "heavy",
}
"""What pypdf's errors mean, by their names."""


def _limit_itself() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; there the parent's time limit is the only one
        return
    limits = (
        (resource.RLIMIT_DATA, _MEMORY_LIMIT_BYTES),
        (resource.RLIMIT_CPU, _PROCESSOR_LIMIT_S),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, limit in limits:
        with suppress(ValueError, OSError):  # a stricter limit may be set already
            resource.setrlimit(kind, (limit, limit))


def _read(most: int) -> dict[str, str]:
    from pypdf import PdfReader

    reader = PdfReader(sys.stdin.buffer)
    # Many files are encrypted with no password at all, only to forbid printing.
    if reader.is_encrypted and not reader.decrypt(""):
        return {"problem": "encrypted"}
    pages: list[str] = []
    length = 0
    for page in reader.pages:
        pages.append(_plain(page.extract_text()))
        length += len(pages[-1])
        if length > most:  # whoever asked refuses it; there is no need for the rest
            break
    text = "\n\n".join(page for page in pages if page)
    return {"text": text + "\n"} if text else {"problem": "scanned"}


def _plain(text: str) -> str:
    """Text that can be encoded, without the control characters that fonts with odd encodings leave in it."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text).strip()


def main() -> None:
    """Read the PDF on standard input."""
    _limit_itself()
    try:
        answer = _read(int(sys.argv[1]))
    except Exception as error:  # a damaged file can raise anything that the parser does not foresee
        answer = {"problem": _PROBLEMS.get(type(error).__name__, "broken")}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
