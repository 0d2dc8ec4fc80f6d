"""How keys and pastes come in from the terminal: Textual's own driver, its reading made safe for what people paste.

Three things are put right. A paste is taken whole, whatever it contains: Textual's parser looks for keys after an
escape character inside of one (a carriage return there would send the message), and takes two seconds a megabyte.
Bytes that are not UTF-8 become marks instead of ending the program. Alt+Enter is told from Enter also where it comes
as escape and carriage return.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
from codecs import getincrementaldecoder
from collections.abc import Iterable

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.driver import Driver
from textual.message import Message

_BITE = 65_536  # bytes read at once
_LOOK_S = 0.1  # how long at most until a lone escape, or the end of the program, is noticed


class InputParser(XTermParser):
    """Textual's parser for everything but pastes, which go past it."""

    def __init__(self) -> None:
        super().__init__()
        self._pasted: list[str] | None = None
        self._tail = ""

    def feed(self, data: str) -> Iterable[Message]:
        """Events in `data`; a mark that begins or ends a paste may be split over several calls."""
        if not data:
            yield from super().feed(data)
        while data:
            if self._pasted is None:
                seen = self._tail + data
                begin = seen.find(BRACKETED_PASTE_START)
                if begin < 0:
                    self._tail = seen[1 - len(BRACKETED_PASTE_START) :]
                    yield from super().feed(data)
                    return
                end = begin + len(BRACKETED_PASTE_START) - len(self._tail)
                yield from super().feed(data[:end])
                data, self._pasted, self._tail = data[end:], [], ""
            else:
                seen = self._tail + data
                end = seen.find(BRACKETED_PASTE_END)
                if end < 0:
                    keep = len(BRACKETED_PASTE_END) - 1
                    self._pasted.append(seen[:-keep])
                    self._tail = seen[-keep:]
                    return
                self._pasted.append(seen[:end])
                text, self._pasted, self._tail = "".join(self._pasted), None, ""
                # The parser has seen an empty paste begin, and is told of its end.
                yield from (event for event in super().feed(BRACKETED_PASTE_END) if not isinstance(event, events.Paste))
                yield events.Paste(text.replace("\0", ""))
                data = seen[end + len(BRACKETED_PASTE_END) :]

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        for key in super()._sequence_to_key_events(sequence, alt=alt):
            yield events.Key("alt+enter", None) if alt and key.key == "enter" else key


def driver() -> type[Driver] | None:
    """The driver for this system's terminal; None where Textual's own has to do."""
    if sys.platform == "win32":
        return None
    from textual.drivers.linux_driver import LinuxDriver

    class TerminalDriver(LinuxDriver):
        """Reads the terminal with the parser above."""

        def run_input_thread(self) -> None:
            """Read until told to stop, or until the terminal is gone: then the program has nobody to talk to."""
            parser = InputParser()
            decode = getincrementaldecoder("utf-8")("replace").decode
            # What is typed before there is a composer stays in the terminal until there is one.
            takes_keys: threading.Event | None = getattr(self._app, "takes_keys", None)
            while takes_keys and not self.exit_event.is_set() and not takes_keys.wait(_LOOK_S):
                pass
            with selectors.DefaultSelector() as selector:
                selector.register(self.fileno, selectors.EVENT_READ)
                while not self.exit_event.is_set():
                    if selector.select(_LOOK_S):
                        try:
                            data = os.read(self.fileno, _BITE)
                        except OSError:
                            data = b""
                        if not data:
                            self._app.call_later(self._app.exit, return_code=128 + 1)
                            return
                        for event in parser.feed(decode(data)):
                            self.process_message(event)
                    for event in parser.tick():
                        self.process_message(event)

    return TerminalDriver
