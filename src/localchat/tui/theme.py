"""The colours: a dark page, quiet greys, one accent. Every widget takes its colours from here by their theme names."""

from __future__ import annotations

from textual.theme import Theme

PAGE = Theme(
    name="localchat",
    dark=True,
    primary="#d9a05b",
    accent="#d9a05b",
    secondary="#8a8f98",
    foreground="#d5d3ce",
    background="#17181b",
    surface="#1f2124",
    panel="#26282c",
    success="#9db48a",
    warning="#d9a05b",
    error="#cf7b6f",
    variables={
        "muted": "#8b8d91",
        "faint": "#53565c",
        "code-string": "#a9b797",
        "code-number": "#c3a98a",
        "code-name": "#e8e6e1",
        "code-comment": "#797c82",
        "border": "#33363b",
        "input-cursor-background": "#d9a05b",
        "input-cursor-foreground": "#17181b",
        "input-selection-background": "#d9a05b 30%",
        "scrollbar": "#33363b",
        "scrollbar-hover": "#53565c",
        "scrollbar-active": "#8b8d91",
        "scrollbar-background": "#17181b",
        "scrollbar-background-hover": "#17181b",
        "scrollbar-background-active": "#17181b",
        "scrollbar-corner-color": "#17181b",
    },
)
