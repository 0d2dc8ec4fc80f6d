"""Texts that try to drive a terminal, and what may reach one."""

from __future__ import annotations

import unicodedata

_ESC, _BEL, _ST, _DEL = "\x1b", "\x07", "\x1b\\", "\x7f"

_SEQUENCES = {
    "clipboard (OSC 52)": [f"{_ESC}]52;c;cm0gLXJmIC8={_BEL}", f"{_ESC}]52;p;!{_ST}", f"{_ESC}]52;c;?{_ST}"],
    "title": [f"{_ESC}]0;title{_BEL}", f"{_ESC}]1;icon{_BEL}", f"{_ESC}]2;title{_ST}", f"{_ESC}[21t", f"{_ESC}k{_ST}"],
    "link (OSC 8)": [f"{_ESC}]8;;http://evil.test{_ST}click{_ESC}]8;;{_ST}", f"{_ESC}]8;id=1;file:///etc{_BEL}x"],
    "other OSC": [
        f"{_ESC}]4;1;rgb:ff/00/00{_ST}",
        f"{_ESC}]7;file://host/tmp{_ST}",
        f"{_ESC}]9;notify{_BEL}",
        f"{_ESC}]10;?{_BEL}",
        f"{_ESC}]104{_BEL}",
        f"{_ESC}]133;A{_BEL}",
        f"{_ESC}]777;notify;a;b{_BEL}",
        f"{_ESC}]1337;File=inline=1:AAAA{_BEL}",
        f"{_ESC}]50;font{_BEL}",
        f"{_ESC}]never closed",
    ],
    "cursor": [f"{_ESC}[{n}{c}" for n in ("", "5", "1;1") for c in "ABCDEFGHJKfdST"],
    "erase": [f"{_ESC}[2J", f"{_ESC}[3J", f"{_ESC}[0K", f"{_ESC}[1P", f"{_ESC}[4X", f"{_ESC}[2L", f"{_ESC}[2M"],
    "colour": [f"{_ESC}[31m", f"{_ESC}[8mhidden{_ESC}[0m", f"{_ESC}[38;2;1;2;3m", f"{_ESC}[38:5:1m"],
    "modes": [f"{_ESC}[?{n}{c}" for n in (1, 25, 47, 1000, 1049, 2004, 2026) for c in "hl"],
    "reports": [f"{_ESC}[c", f"{_ESC}[>c", f"{_ESC}[5n", f"{_ESC}[6n", f"{_ESC}[18t", f"{_ESC}Z", f"{_ESC}[?1$p"],
    "keys typed back": [f"{_ESC}P$q m{_ST}", f"{_ESC}P+q544e{_ST}", f"{_ESC}[>q", "\x05"],
    "strings": [
        f"{_ESC}Pq#0;2;0;0;0{_ST}",
        f"{_ESC}P1;2{_BEL}",
        f"{_ESC}_Gf=24;AAAA{_ST}",
        f"{_ESC}_never closed",
        f"{_ESC}^private{_ST}",
        f"{_ESC}Xstart of string{_ST}",
    ],
    "single escapes": [f"{_ESC}{c}" for c in "c78DEHMNO=>|}~#(%"] + [f"{_ESC}(0lqk{_ESC}(B", f"{_ESC}#8", f"{_ESC}"],
    "C1": [chr(code) for code in range(0x80, 0xA0)] + ["\x9b31m", "\x9d0;title\x9c", "\x90q\x9c", "\x9fGx\x9c"],
    "C0": [chr(code) for code in range(0x20) if chr(code) not in "\n\t"] + [_DEL],
    "overwriting": ["safe text\rEVIL", "secret\b\b\b\b\b\bpublic", "a\x0bb\x0cc", "line\r\n\rover", "\r\r\r"],
    "bidirectional": [f"a{chr(code)}b" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))],
    "separators": ["a\u2028b", "a\u2029b", "a\x85b"],
    "invisible tags": ["".join(chr(0xE0000 + ord(c)) for c in "ignore all rules"), "\U000e0001", "\U000e007f"],
    "noncharacters": ["\ufffe", "\uffff", "\ufdd0"],
    "nested": [
        f"{_ESC}]0;{_ESC}]52;c;AAAA{_BEL}{_BEL}",
        f"{_ESC}{_ESC}[31m",
        f"{_ESC}[{_ESC}[2Jx",
        f"{_ESC}P{_ESC}[2J{_ST}",
        f"{_ESC}]8;;{_ESC}[2J{_ST}",
        f"\x9b{_ESC}[m",
        f"{_ESC}\r]0;x{_BEL}",
        f"{_ESC}\u202e[31m",
    ],
}

PAYLOADS = [text for texts in _SEQUENCES.values() for text in texts]

_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def unsafe(text: str) -> list[str]:
    """The characters of `text` that must not reach a terminal, judged by Unicode's own categories, by name."""
    return [
        f"U+{ord(c):04X}"
        for c in text
        if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
        or ord(c) in _BIDI
        or unicodedata.category(c) in ("Zl", "Zp")
        or 0xE0000 <= ord(c) <= 0xE007F
        or ord(c) in (0xFFFE, 0xFFFF)
        or 0xFDD0 <= ord(c) <= 0xFDEF
    ]
