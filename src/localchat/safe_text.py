"""The one gate between untrusted text and a terminal.

Models, files, hubs and metadata can all contain bytes that drive a terminal: move its cursor, set its title, write
its clipboard (OSC 52). `safe_text` maps text character by character and keeps no state, so a stream may be split
anywhere, inside an escape sequence too, and nothing gets through.
"""

from __future__ import annotations

_MARK = "\ufffd"
_TABLE: dict[int, str | None] = {}
# C0 controls become their visible pictures (U+2400 ff.), so that a listing that shows an escape still shows one.
_TABLE.update({code: chr(0x2400 + code) for code in range(0x20)})
_TABLE[0x7F] = "\u2421"
_TABLE[ord("\n")] = "\n"
_TABLE[ord("\t")] = "\t"
_TABLE[ord("\r")] = None  # half of a Windows line end; alone it would overwrite the line
# C1 controls are one-character escape sequences to some terminals.
_TABLE.update(dict.fromkeys(range(0x80, 0xA0), _MARK))
# Line and paragraph separators break lines where the terminal does not expect it.
_TABLE.update({0x2028: "\n", 0x2029: "\n"})
# Bidirectional overrides and isolates can show a text in another order than it has ("Trojan Source").
_TABLE.update(dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), None))
# Lone surrogates cannot be encoded, and noncharacters have no business outside a process.
_TABLE.update(dict.fromkeys((*range(0xD800, 0xE000), *range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF), _MARK))
# Invisible tag characters hide text from the reader (the flags of England, Scotland and Wales go with them).
_TABLE.update(dict.fromkeys(range(0xE0000, 0xE0080), None))


def safe_text(text: str) -> str:
    """`text` with every character that could drive a terminal replaced by a visible one, or dropped."""
    # Almost all text is printable throughout, and asking is ten times faster than translating.
    if text.isprintable():
        return text if text.isascii() else text.translate(_TABLE)
    return text.translate(_TABLE)


def json_text(value: object) -> str:
    """`value` as a JSON document that is safe to print. Bytes of file names that are no text become visible marks."""
    import msgspec

    try:
        document = msgspec.json.encode(value)
    except UnicodeEncodeError:
        document = msgspec.json.encode(_encodable(msgspec.to_builtins(value)))
    return safe_json(document)


def _encodable(value: object) -> object:
    """`value` with lone surrogates replaced: Python puts them where a file name is not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(one) for one in value]
    return value


def safe_json(document: bytes) -> str:
    """A JSON document with those characters escaped inside its strings: as safe to print, and no value is changed."""
    text = document.decode()
    return "".join(
        _escape(character) if ord(character) > 0x7E and ord(character) in _TABLE else character for character in text
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def safe_line(text: str) -> str:
    """`text` as one safe line: for names, titles and error messages."""
    return " ".join(safe_text(text).split())
