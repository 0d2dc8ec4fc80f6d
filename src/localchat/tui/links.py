"""Addresses in messages: what of them is shown, whether one may be opened, and opening it in the person's browser.

A model or a file wrote them. What is opened is exactly what was shown, its host in the letters that the network uses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

_WEB = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?P<user>[^@]*@)*(?P<host>\[[0-9A-Fa-f:.]+\]|[^:@\[\]]*)(?P<port>:\d{0,5})?")
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?|\[[0-9A-Fa-f:.]+\]")
_MAIL = re.compile(r"mailto:[^?#\s@]+@([^?#\s@,]+)(?:\?(.*))?", re.IGNORECASE)
_MAIL_FIELDS = {"subject", "body", "cc", "bcc"}
_DOTS = str.maketrans("。．｡", "...")
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """A link as it is shown: `before`, `host` and `after` together are all of it, safe for a terminal.

    `network_host` is the host in ASCII where it was written in other letters, else "". `target` is what may be opened;
    where that is "", `why` says in a clause why nothing may.
    """

    before: str
    host: str
    after: str
    network_host: str = ""
    target: str = ""
    why: str = ""

    @property
    def shown(self) -> str:
        """The whole address."""
        return self.before + self.host + self.after


def address(link: str) -> Address:
    """Take a link apart. Only plain http, https and mailto addresses get a target."""
    if mail := _MAIL.fullmatch(link):
        return _mail(link, mail)
    web = _WEB.fullmatch(link)
    if not web:
        return Address(_visible(link), "", "", why="only http, https and mailto addresses are opened")
    scheme, authority, rest = web.groups()
    parts = _AUTHORITY.fullmatch(authority)
    if not parts:
        return Address(_visible(link), "", "", why="its host cannot be read")
    host, port = parts["host"], parts["port"] or ""
    user = authority[: parts.start("host")]
    network = _network_host(host)
    shown = Address(
        _visible(f"{scheme}://{user}"),
        _visible(host),
        _visible(port + rest),
        network if network and network != host.lower() else "",
    )
    why = ""
    if network is None:
        why = "its host is not one that a network knows"
    elif user:
        why = "a name before the @ pretends to be the host"
    elif not link.isprintable() or any(character in link for character in ' \\"<>`{}|^'):
        why = "it has characters that a plain address has not"
    if why:
        return replace(shown, why=why)
    return replace(shown, target=f"{scheme.lower()}://{network}{port}{quote(rest, safe=_ASCII)}")


def open_in_browser(target: str) -> str:
    """Have the desktop open an address; returns a sentence that says what became of it. May take some seconds."""
    command = _opener()
    if not command:
        return "No desktop is here to open it: y copies the address"
    try:
        # A session of its own and no terminal: a browser that runs in terminals must not draw over the chat.
        process = subprocess.Popen(
            [*command, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Some return at once, others when the browser is closed.
        code = process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = 0
    except OSError:
        code = 1
    return f"{command[0]} could not open it: y copies the address" if code else "Opened in your browser"


_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def _opener() -> list[str] | None:
    if sys.platform == "darwin":
        return ["open"]
    if sys.platform == "win32":
        return ["rundll32", "url.dll,FileProtocolHandler"]
    if shutil.which("wslview"):
        return ["wslview"]
    if (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and shutil.which("xdg-open"):
        return ["xdg-open"]
    return None


def _mail(link: str, mail: re.Match[str]) -> Address:
    start, end = mail.span(1)
    shown = Address(_visible(link[:start]), _visible(link[start:end]), _visible(link[end:]))
    fields = {unquote(part.partition("=")[0]).lower() for part in (mail[2] or "").split("&") if part}
    if fields - _MAIL_FIELDS:
        # Some mail programs attach whatever file an address names.
        return replace(shown, why="it asks for more than a subject and a text")
    if not (link.isascii() and link.isprintable()) or any(character in link for character in ' \\"<>`{}|^'):
        return replace(shown, why="it has characters that a plain address has not")
    return replace(shown, target=link)


def _network_host(host: str) -> str | None:
    """The host in ASCII (punycode), or None where it is none."""
    labels = []
    for label in unicodedata.normalize("NFC", host).translate(_DOTS).lower().split("."):
        if not label.isascii():
            folded = unicodedata.normalize("NFKC", label).lower()
            if not all(letter.isalnum() or letter == "-" or unicodedata.combining(letter) for letter in folded):
                return None
            label = folded if folded.isascii() else "xn--" + folded.encode("punycode").decode()
        labels.append(label)
    network = ".".join(labels)
    return network if _HOST.fullmatch(network) else None


def _visible(text: str) -> str:
    """`text` with nothing hidden in it, and in the order that it has: what is invisible is named."""
    return "".join(_visible_one(character) for character in text)


def _visible_one(character: str) -> str:
    if not character.isprintable():
        return f"<U+{ord(character):04X}>"
    if unicodedata.bidirectional(character) in _RIGHT_TO_LEFT:
        return quote(character)
    return character
