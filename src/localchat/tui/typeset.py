"""Sets one block of Markdown as lines of a terminal: paragraphs, headings, lists, quotes; code and tables by their own.

Knows Markdown (markdown-it) and rich's text, and nothing of widgets or conversations. The text it is given is safe
already. Nothing is fetched, nothing is clickable, and every link shows its full address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from localchat.safe_text import safe_line
from localchat.tui.blocks import Block
from localchat.tui.code import code_lines
from localchat.tui.table import Table

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from rich.console import Console

TAB = 4
_LEAST_WIDTH = 8
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")
_MAY_LINK = re.compile(r"\]|<|://")
_ADDRESS = re.compile(r"(?:https?://|mailto:)\S+", re.IGNORECASE)
_WRITTEN_OUT = re.compile(r"https?://[^\s<>()\[\]\"'`|\\]+", re.IGNORECASE)
_DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]+\]:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Look:
    """The styles of a page. All but `text` and `panel` are laid over one of these two."""

    text: Style
    strong: Style
    emphasis: Style
    struck: Style
    code: Style
    link: Style
    address: Style
    heading: Style
    marker: Style
    quote: Style
    rule: Style
    panel: Style
    panel_label: Style
    comment: Style
    keyword: Style
    string: Style
    number: Style
    title: Style


References = dict[str, Any]
"""markdown-it's table of the addresses that a text defines at its end (`[1]: https://…`)."""


class Typesetter:
    """Turns blocks into strips of at most `width` cells. Without `references`, late-defined links stay as written."""

    def __init__(self, console: Console, look: Look, width: int) -> None:
        self._console = console
        self.look = look
        self.width = width
        self._columns: dict[str, list[int]] = {}

    def block(self, block: Block, references: References | None = None) -> list[Strip]:
        """The lines of one block, without a gap before or after."""
        indent = min(block.indent, max(0, self.width - _LEAST_WIDTH))
        width = self.width - indent
        if block.kind == "code":
            lines = code_lines(*_listing(block), width, self._console, self.look, continues=block.continues)
        elif block.kind == "table":
            lines = self._table(block, width, references or {})
        else:
            lines = self._prose(_dedent(block.source, block.indent), width, references or {})
        strips = [Strip(line.render(self._console, end="")).simplify() for line in lines]
        margin = Strip.blank(indent, self.look.text)
        return [(Strip.join([margin, strip]) if indent else strip).crop(0, self.width) for strip in strips]

    def gap_before(self, block: Block, previous: Block | None) -> bool:
        """Whether an empty line sets a block off from the one before it."""
        if previous is None or block.continues:
            return False
        first = _without_blank_lines(block.source)
        apart = {block.kind, previous.kind} & {"code", "table"}
        return first != block.source or bool(apart) or (block.kind == "prose" and first.startswith("#"))

    def _table(self, block: Block, width: int, references: References) -> list[Text]:
        if not block.continues:
            return self._prose(block.source, width, references)
        # A later part has the columns of all before it, wider only where its own cells need it.
        if block.opening not in self._columns:
            self._columns[block.opening] = self._read_table(iter(_parser().parse(block.opening))).wanted()
        head = "".join(block.opening.splitlines(keepends=True)[:2])
        return self._prose(head + block.source, width, references, columns=self._columns[block.opening])

    def _read_table(self, tokens: Iterator[Token]) -> Table:
        """Read to the end of a table; text that the parser does not take for one gives an empty table."""
        table = Table()
        for token in tokens:
            if token.type == "tr_open":
                table.rows.append([])
            elif token.type in ("th_open", "td_open") and len(table.rows) == 1:
                table.aligns.append(str(token.attrs.get("style", "")).removeprefix("text-align:") or "left")
            elif token.type == "inline" and table.rows:
                table.rows[-1].append(self._inline(token, self.look.text))
            elif token.type == "table_close":
                break
        return table

    def _prose(self, source: str, width: int, references: References, columns: list[int] | None = None) -> list[Text]:
        """Markdown of any kind; with `columns` it is a later part of a table with columns (at least) so wide."""
        lines: list[Text] = []
        frames: list[_Frame] = []
        style = self.look.text
        tokens = iter(_parser().parse(source, {"references": dict(references)}))

        def add(leaf: list[Text], gap: bool) -> None:
            if gap and lines:
                lines.append(_joined([frame.rest for frame in frames]))
            for line in leaf:
                lines.append(_joined([*(frame.take() for frame in frames), line]))

        tight = False
        for token in tokens:
            inner = max(_LEAST_WIDTH, width - sum(frame.width for frame in frames))
            if token.type == "list_item_open":
                mark = f"{token.info}{token.markup} " if token.info else "• "
                frames.append(
                    _Frame(Text(mark, self.look.text + self.look.marker), Text(" " * len(mark), self.look.text))
                )
            elif token.type == "blockquote_open":
                bar = Text("▏ ", self.look.text + self.look.rule)
                frames.append(_Frame(bar, bar))
                style = self.look.text + self.look.quote
            elif token.type in ("list_item_close", "blockquote_close"):
                frames.pop()
                if token.type == "blockquote_close":
                    style = self.look.text
            elif token.type == "paragraph_open":
                tight = token.hidden
            elif token.type == "heading_open":
                tight, style = False, self.look.text + self.look.heading
            elif token.type == "heading_close":
                style = self.look.text
            elif token.type == "inline":
                add(self._wrapped(self._inline(token, style), inner), gap=not tight)
            elif token.type == "hr":
                add([Text("─" * inner, self.look.text + self.look.rule)], gap=True)
            elif token.type in ("fence", "code_block"):
                add(code_lines(token.info, token.content, inner, self._console, self.look), gap=True)
            elif token.type == "table_open":
                table = self._read_table(tokens)
                if columns is not None:
                    columns[:] = _widest(columns, table.wanted())
                add(table.lines(inner, self._console, self.look, wanted=columns, with_head=columns is None), gap=True)
                columns = None
        # An item that has no text yet still shows its mark.
        if not lines and (bare := re.match(r"\s*([-*+]|\d{1,9}[.)])\s*$", source)):
            shown = "•" if bare[1] in "-*+" else bare[1]
            return [Text(shown, self.look.text + self.look.marker)]
        return lines

    def _wrapped(self, text: Text, width: int) -> list[Text]:
        return list(text.wrap(self._console, width, overflow="fold", tab_size=TAB)) if text.plain else []

    def _inline(self, token: Token, base: Style) -> Text:
        """One run of text with its emphasis, code and links."""
        text = Text(style=base, end="")
        styles = [base]
        links: list[tuple[str, int]] = []
        for child in token.children or []:
            kind = child.type
            if kind == "text":
                text.append(child.content, styles[-1])
            elif kind in ("softbreak", "hardbreak"):
                # Models that break a line mean it: verses, addresses, steps.
                text.append("\n")
            elif kind == "code_inline":
                text.append(child.content, styles[-1] + self.look.code)
            elif kind == "link_open":
                links.append((str(child.attrs.get("href", "")), len(text)))
                styles.append(styles[-1] + self.look.link)
            elif kind == "link_close":
                styles.pop()
                address, start = links.pop()
                if text.plain[start:] not in (address, address.removeprefix("mailto:")):
                    text.append(f" ({address})", styles[-1] + self.look.address)
            elif kind == "image":
                text.append(
                    f"{child.content or 'image'} ({child.attrs.get('src', '')})", styles[-1] + self.look.address
                )
            elif kind.endswith("_open"):
                over = {"strong_open": self.look.strong, "em_open": self.look.emphasis, "s_open": self.look.struck}
                styles.append(styles[-1] + over.get(kind, Style.null()))
            elif kind.endswith("_close"):
                styles.pop()
            else:
                text.append(child.content, styles[-1])
        return text


class _Frame:
    """What stands left of a container's lines: a list item's mark (on the first line only), a quote's bar."""

    def __init__(self, first: Text, rest: Text) -> None:
        self._next = first
        self.rest = rest
        self.width = first.cell_len

    def take(self) -> Text:
        taken, self._next = self._next, self.rest
        return taken


def code_in(block: Block) -> str | None:
    """The code of a block that is a listing, or of the first listing inside it."""
    if block.kind == "code":
        return _listing(block)[1]
    if "```" not in block.source and "~~~" not in block.source:
        return None
    tokens = _parser().parse(_dedent(block.source, block.indent))
    return next((token.content.removesuffix("\n") for token in tokens if token.type == "fence"), None)


def links_in(blocks: list[Block]) -> list[str]:
    """The addresses of web and mail in the blocks, in order, each once: those of links and those written out."""
    found: dict[str, None] = {}
    references = references_in(blocks)
    for block in blocks:
        if block.kind == "code" or not _MAY_LINK.search(block.source):
            bare = [block.source]
        else:
            bare = []
            for token in _parser().parse(_dedent(block.source, block.indent), {"references": dict(references)}):
                for child in token.children or []:
                    address = str(child.attrs.get("href") or child.attrs.get("src") or "")
                    if _ADDRESS.fullmatch(address):
                        found[safe_line(address)] = None
                    elif child.type in ("text", "code_inline"):
                        bare.append(child.content)
        for text in bare:
            for written in _WRITTEN_OUT.findall(text):
                found[safe_line(written.rstrip(".,;:!?*_"))] = None
    return list(found)


def references_in(blocks: list[Block]) -> References:
    """The addresses that the blocks define for links written elsewhere; empty where there are none."""
    defining = [
        block.source for block in blocks if block.kind in ("prose", "item") and _DEFINITION.search(block.source)
    ]
    environment: dict[str, Any] = {}
    if defining:
        _parser().parse("\n\n".join(defining), environment)
    references: References = environment.get("references", {})
    return references


def _joined(parts: list[Text]) -> Text:
    return parts[0] if len(parts) == 1 else Text.assemble(*parts, end="")


def _widest(one: list[int], other: list[int]) -> list[int]:
    return [max(pair) for pair in zip(one, other, strict=True)] if len(one) == len(other) else other


def _without_blank_lines(source: str) -> str:
    """`source` from its first line that has text on it."""
    return _BLANK_LINES.sub("", source)


def _listing(block: Block) -> tuple[str, str]:
    """A code block's language as written, and its code."""
    if block.continues:
        opening, code = block.opening, block.source
    else:
        opening, _, code = _without_blank_lines(block.source).partition("\n")
    fence = opening.strip()
    mark = fence[: len(fence) - len(fence.lstrip(fence[:1]))]
    lines = _dedent(code, block.indent).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if lines and mark and lines[-1].strip().startswith(mark) and not lines[-1].strip().strip(mark[0]):
        lines.pop()
    return fence.removeprefix(mark).strip(), "\n".join(lines)


def _dedent(source: str, columns: int) -> str:
    if not columns:
        return source
    lines = (line.expandtabs(TAB) if line.startswith((" ", "\t")) else line for line in source.split("\n"))
    return "\n".join(line[min(columns, len(line) - len(line.lstrip(" "))) :] for line in lines)


@cache
def _parser() -> MarkdownIt:
    # Imported at the first answer: the first screen does not need it.
    from markdown_it import MarkdownIt

    # HTML is shown as it was written: dropping it would hide what a model said.
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
