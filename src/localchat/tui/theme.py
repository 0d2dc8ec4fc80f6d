"""The colours of each theme: a calm page, quiet greys, one accent. Widgets take their colours from here by name.

Which theme: the one that the person last chose with the key, until they change the line in their settings.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec
from textual.theme import Theme

from localchat.errors import LocalchatError
from localchat.paths import paths, write_private
from localchat.settings import ThemeName, settings


def _theme(
    name: ThemeName,
    *,
    dark: bool,
    background: str,
    surface: str,
    panel: str,
    foreground: str,
    accent: str,
    muted: str,
    faint: str,
    border: str,
    error: str,
    success: str,
    code: dict[str, str],
    cursor: tuple[str, str] | None = None,
    selection: tuple[str, str] | None = None,
    ansi: bool = False,
) -> Theme:
    """A theme in the roles that the widgets know.

    `foreground` is for text, `muted` for what is said beside it, `faint` for hints and rules, `code` for the parts of a
    listing. `cursor` and `selection` are background and text.
    """
    cursor = cursor or (accent, background)
    selection = selection or (f"{accent} 30%", foreground)
    return Theme(
        name=name,
        dark=dark,
        ansi=ansi,
        primary=accent,
        accent=accent,
        secondary=muted,
        foreground=foreground,
        background=background,
        surface=surface,
        panel=panel,
        success=success,
        warning=accent,
        error=error,
        variables={
            # Named once more: Textual would make them see-through in a theme of the terminal's own colours.
            "surface": surface,
            "panel": panel,
            "muted": muted,
            "faint": faint,
            "border": border,
            "border-blurred": border,
            **{f"code-{part}": colour for part, colour in code.items()},
            "block-cursor-background": cursor[0],
            "block-cursor-foreground": cursor[1],
            "block-cursor-text-style": "none",
            "input-cursor-background": cursor[0],
            "input-cursor-foreground": cursor[1],
            "input-selection-background": selection[0],
            "input-selection-foreground": selection[1],
            "screen-selection-background": selection[0],
            "screen-selection-foreground": selection[1],
            # What Textual's own styles ask for in a theme of the terminal's colours.
            "ansi-background": background,
            "ansi-foreground": foreground,
            "scrollbar": border,
            "scrollbar-hover": faint,
            "scrollbar-active": muted,
            "scrollbar-background": background,
            "scrollbar-background-hover": background,
            "scrollbar-background-active": background,
            "scrollbar-corner-color": background,
        },
    )


DARK = _theme(
    "dark",
    dark=True,
    background="#17181b",
    surface="#1f2124",
    panel="#26282c",
    foreground="#d5d3ce",
    accent="#d9a05b",
    muted="#909296",
    faint="#63666d",
    border="#33363b",
    error="#cf7b6f",
    success="#9db48a",
    code={"string": "#a9b797", "number": "#c3a98a", "name": "#e8e6e1", "comment": "#8c8f95"},
)

LIGHT = _theme(
    "light",
    dark=False,
    background="#faf9f6",
    surface="#f1efea",
    panel="#e8e5de",
    foreground="#2b2a28",
    accent="#8f5410",
    muted="#605e59",
    faint="#85827b",
    border="#d3cfc6",
    error="#a3342a",
    success="#48642f",
    code={"string": "#44602a", "number": "#7d4718", "name": "#141312", "comment": "#65635d"},
)

CONTRAST = _theme(
    "contrast",
    dark=True,
    background="#000000",
    surface="#0c0c0c",
    panel="#1a1a1a",
    foreground="#ffffff",
    accent="#ffcf4d",
    muted="#cfcfcf",
    faint="#a6a6a6",
    border="#8c8c8c",
    error="#ff9c91",
    success="#a8e08a",
    code={"string": "#b9e69a", "number": "#ffc48a", "name": "#ffffff", "comment": "#bdbdbd"},
    selection=("#ffcf4d", "#000000"),
)

# Of a terminal's own sixteen colours only the default pair is sure to be readable, and bright black is its only grey.
ANSI = _theme(
    "ansi",
    ansi=True,
    dark=True,
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    foreground="ansi_default",
    accent="ansi_yellow",
    muted="ansi_bright_black",
    faint="ansi_bright_black",
    border="ansi_bright_black",
    error="ansi_red",
    success="ansi_green",
    code={"string": "ansi_green", "number": "ansi_cyan", "name": "ansi_default", "comment": "ansi_bright_black"},
    cursor=("ansi_yellow", "ansi_black"),
    selection=("ansi_yellow", "ansi_black"),
)

THEMES: dict[str, Theme] = {theme.name: theme for theme in (DARK, LIGHT, CONTRAST, ANSI)}
"""By the names that the settings have for them, in the order in which the key goes through them."""

WITHOUT_COLOURS = """
App:nocolor .text-area--selection, App:nocolor .input--selection, App:nocolor .screen--selection,
App:nocolor .option-list--option-highlighted { text-style: reverse; }
"""
"""CSS for the app: where there are no colours (NO_COLOR), what is selected shows in reverse."""


class _Chosen(msgspec.Struct, frozen=True):
    """What was last chosen with the key, and what the settings said then."""

    theme: str
    instead_of: str


def is_colourless() -> bool:
    """Whether the person wants no colours at all (https://no-color.org); asked before Textual takes the variable."""
    return "NO_COLOR" in os.environ


def chosen() -> str:
    """The name of the theme to begin with, where there are colours."""
    own = settings().theme
    with suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(_file().read_bytes(), type=_Chosen)
        if kept.instead_of == own and kept.theme in THEMES:
            return kept.theme
    return own


def next_theme(name: str) -> str:
    """The theme after this one."""
    names = [*THEMES]
    return names[(names.index(name) + 1) % len(names)] if name in names else names[0]


def remember(name: str) -> None:
    """Keep the choice for the next time; where that cannot be, it holds for this one."""
    with suppress(OSError, LocalchatError):
        write_private(_file(), msgspec.json.encode(_Chosen(name, settings().theme)))


def _file() -> Path:
    return paths().state / "theme.json"
