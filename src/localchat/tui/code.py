"""Sets a code listing: a quiet panel with its language on top, long lines folded, a few muted colours."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from pygments.lexer import Lexer  # type: ignore[import-untyped]
    from rich.console import Console
    from rich.style import Style

    from localchat.tui.typeset import Look

_TAB = 4
_HIGHLIGHT_CHARS = 1 << 17
"""A longer listing stays in one colour: lexers are slow, and some are very slow on garbage."""


def code_lines(
    info: str, code: str, width: int, console: Console, look: Look, *, continues: bool = False
) -> list[Text]:
    """The lines of a listing as a panel of `width` cells; `info` is what stood behind the fence.

    `continues`: the language was shown above already.
    """
    language = info.split()[0].strip("{}.") if info.split() else ""
    text = _highlighted(language, code, look)
    inner = max(1, width - 2)
    lines: list[Text] = []
    if language and not continues:
        lines.append(Text(language, look.panel + look.panel_label, end=""))
    if code or not continues:
        for line in text.split("\n", allow_blank=True):
            if len(line.plain) * 2 <= inner and "\t" not in line.plain:
                lines.append(line)
            else:
                lines += line.wrap(console, inner, overflow="fold", tab_size=_TAB)
    return [_in_panel(line, width, inner, look) for line in lines]


def _in_panel(line: Text, width: int, inner: int, look: Look) -> Text:
    line.end = ""
    line.rstrip_end(inner)
    filled = Text(" ", look.panel, end="")
    filled.append_text(line)
    filled.append(" " * max(0, width - filled.cell_len), look.panel)
    return filled


def _highlighted(language: str, code: str, look: Look) -> Text:
    lexer = _lexer(language.lower()) if language and len(code) <= _HIGHLIGHT_CHARS else None
    if lexer is None:
        return Text(code, look.panel, end="")
    text = Text(style=look.panel, end="")
    styles = _styles(look)
    for kind, piece in lexer.get_tokens(code):
        style = None
        while kind is not None and style is None:
            style, kind = styles.get(str(kind)), kind.parent
        text.append(piece, style)
    if text.plain == f"{code}\n":
        # The line end that the lexer wanted.
        text.right_crop(1)
    return text if text.plain == code else Text(code, look.panel, end="")


def _styles(look: Look) -> dict[str, Style]:
    return {
        "Token.Comment": look.comment,
        "Token.Keyword": look.keyword,
        "Token.Operator.Word": look.keyword,
        "Token.Name.Tag": look.keyword,
        "Token.Name.Decorator": look.keyword,
        "Token.Literal.String": look.string,
        "Token.Literal.Number": look.number,
        "Token.Name.Function": look.title,
        "Token.Name.Class": look.title,
    }


@cache
def _lexer(language: str) -> Lexer | None:
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=True)
    except ClassNotFound:
        return None
