"""The chats beside this one: the list, search, titles, files, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual import events
from textual.containers import Horizontal

from localchat.chats.records import Hit
from localchat.errors import ChatsDamaged, LocalchatError
from localchat.safe_text import safe_line
from localchat.tui.kept_chat import done
from localchat.tui.screens.parts import ChatParts

if TYPE_CHECKING:
    from localchat.chats.store import Chats
    from localchat.tui.widgets.sidebar import Sidebar

NARROW = 80
"""Below so many columns the list lies over the page."""


class Lists(ChatParts):
    """The part of the chat screen that knows of other chats."""

    sidebar: Sidebar | None = None
    _offering = False
    _folded = False

    # Chats.

    def action_new_chat(self) -> None:
        """Begin a new chat with the same settings; an answer on its way goes on, and a draft stays with its chat."""
        self.begin_chat()

    def action_last_chat(self) -> None:
        """Go on with the last chat."""

        async def go() -> None:
            here = self.session.chat
            chats = await self.read(lambda chats: chats.chats("chat", 50))
            other = max((chat for chat in chats if chat.id != here), key=lambda chat: chat.updated, default=None)
            if other:
                await self.open_chat(other.id)
            else:
                self.hint("there is no other chat yet")

        self.do(go())

    def action_find(self) -> None:
        """Search in everything."""
        self._find("")

    def slash_find(self, words: str) -> None:
        """Search for words."""
        self._find(words)

    def _find(self, words: str) -> None:
        from localchat.tui.screens.find import FindScreen

        def found(hit: Hit | None) -> None:
            if hit:
                self.do(self.open_chat(hit.chat, hit.node))

        self.app.push_screen(FindScreen(lambda asked: self.read(lambda chats: chats.search(asked)), words), found)

    def action_title(self) -> None:
        """Give the chat a title."""
        from localchat.tui.screens.line import LineScreen

        self.app.push_screen(LineScreen("The title of this chat", self.session.kept.title), self._titled)

    def slash_title(self, title: str) -> None:
        """Give the chat this title."""
        self._titled(title)

    def _titled(self, title: str | None) -> None:
        if title and title.strip():
            self.do(self.session.rename(safe_line(title)))
            self.hint(f"this chat is called {safe_line(title)}")

    def action_export(self) -> None:
        """Write the chat to a file."""
        from localchat.tui.screens.line import LineScreen

        name = "".join(letter if letter.isalnum() or letter in " -_" else "-" for letter in self.session.kept.title)
        self.app.push_screen(
            LineScreen("Write this chat to (.md or .json)", f"{name.strip()[:60] or 'chat'}.md", _why_not),
            lambda file: self.slash_export(file) if file else None,
        )

    def slash_export(self, file: str) -> None:
        """Write the chat to this file."""
        chat, path = self.session.chat, Path(file.strip()).expanduser().absolute()
        if chat is None:
            self.hint("there is nothing to write yet")
            return

        async def write() -> None:
            await self.read(lambda chats: _write_chat(chats, chat, path))
            self.hint(f"written to {safe_line(str(path))}")

        self.do(write())

    def action_delete(self) -> None:
        """Delete the chat; the list of chats can bring it back."""
        chat = self.session.chat
        if chat is None:
            self.hint("this chat has nothing in it")
            return

        async def delete() -> None:
            self.session.stop()
            self.begin_chat()
            await self.read(lambda chats: chats.delete(chat))
            await self.refresh_list()
            self.hint(f"deleted: `localchat chats restore {chat}` brings it back within 30 days")

        self.do(delete())

    # The list of chats.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While the list has the focus, Esc, F2 and the page keys are its own."""
        if action in ("stop", "edit", "scroll") and self.sidebar and self.sidebar.has_focus_within:
            return False
        return super().check_action(action, parameters)

    def action_sidebar(self) -> None:
        """Show the list of chats and go there; from there, put it away."""
        if not (self.sidebar and self.sidebar.display):
            self.show_sidebar().focus()
        elif self.sidebar.has_focus_within:
            self._hide_sidebar()
        else:
            self.sidebar.focus()

    def show_sidebar(self) -> Sidebar:
        """Show the list of chats."""
        from localchat.tui.widgets.sidebar import Sidebar

        if not self.sidebar:
            self.sidebar = Sidebar()
            self.query_one(Horizontal).mount(self.sidebar, before=0)
        self.sidebar.display = True
        self.sidebar.set_class(self.is_narrow(), "-over")
        self.do(self.refresh_list())
        return self.sidebar

    def _hide_sidebar(self) -> None:
        if self.sidebar:
            self.sidebar.display = False
        self.composer.focus()

    def is_narrow(self) -> bool:
        """Whether there is no room for a list beside the page."""
        return self.size.width < NARROW

    def on_resize(self, event: events.Resize) -> None:
        """Where there is no room for the list beside the page, it folds away until there is, or lies over the page
        while somebody is in it.
        """
        sidebar, narrow = self.sidebar, event.size.width < NARROW
        if not sidebar:
            return
        if narrow and not sidebar.has_class("-over") and sidebar.display and not sidebar.has_focus_within:
            sidebar.display, self._folded = False, True
        sidebar.set_class(narrow, "-over")
        if self._folded and not narrow:
            self._folded = False
            self.show_sidebar()

    async def refresh_list(self) -> None:
        """Read the list of chats anew, where it is shown."""
        if self.sidebar and self.sidebar.display:
            self.sidebar.show(await self.read(lambda chats: chats.chats("chat")), self.session.chat)

    def on_sidebar_opened(self, message: Sidebar.Opened) -> None:
        """Another chat."""
        self.do(self.open_chat(message.chat))
        if self.is_narrow():
            self._hide_sidebar()
        else:
            self.composer.focus()

    def on_sidebar_new_chat(self) -> None:
        """A new chat."""
        self.begin_chat()

    def on_sidebar_left(self) -> None:
        """Back to writing."""
        if self.is_narrow():
            self._hide_sidebar()
        else:
            self.composer.focus()

    def on_sidebar_renamed(self, message: Sidebar.Renamed) -> None:
        """A new title."""
        self.do(self._rename(message.chat, safe_line(message.title)))

    async def _rename(self, chat: int, title: str) -> None:
        if chat == self.session.chat:
            await self.session.rename(title)
        else:
            await self.read(lambda chats: chats.rename(chat, title, "person"))
        await self.refresh_list()

    def on_sidebar_pinned(self, message: Sidebar.Pinned) -> None:
        """To the top, or back."""
        self._then_list(lambda chats: chats.pin(message.chat, message.pinned))

    def on_sidebar_deleted(self, message: Sidebar.Deleted) -> None:
        """Gone, until it is brought back."""
        self.stop_chat(message.chat)
        if message.chat == self.session.chat:
            self.begin_chat(focus=False)
        self._then_list(lambda chats: chats.delete(message.chat))

    def on_sidebar_restored(self, message: Sidebar.Restored) -> None:
        """Brought back."""
        self._then_list(lambda chats: chats.restore(message.chat))

    def _then_list(self, work: Callable[..., object]) -> None:
        async def run() -> None:
            await self.read(work)
            await self.refresh_list()

        self.do(run())

    # A damaged database.

    def offer_backup(self, error: ChatsDamaged) -> None:
        """Let the person choose what becomes of a damaged database."""
        if not self._offering:
            self._offering = True
            self.run_worker(self._offer_backup(error))

    async def _offer_backup(self, error: ChatsDamaged) -> None:
        from datetime import datetime

        from localchat.chats import backup
        from localchat.tui.screens.choose import Choice, ChooseScreen

        copies = await asyncio.to_thread(backup.backups)
        choices: list[Choice[backup.Backup | str]] = []
        if copies:
            made = datetime.fromtimestamp(copies[0].made).strftime("%-d %B, %H:%M")
            what = f"and add what can still be read; it holds {copies[0].chats:,} chats"
            choices.append(Choice("r", f"Restore the backup of {made}", what, copies[0]))
        choices += [
            Choice("n", "Save what can be read", "into a new file; the damaged one is kept beside it", "new"),
            Choice("l", "Later", "go on without the chats; nothing is kept", ""),
        ]
        chosen = await self.app.push_screen_wait(
            ChooseScreen("The file of your chats is damaged.", choices, safe_line(error.message), unasked=True)
        )
        self._offering = False
        if not chosen:
            self.session.kept.keeps = False
            self.show_status()
            return
        try:
            copy = chosen if isinstance(chosen, backup.Backup) else None
            restored = await done(self.keeper.restore(copy))
        except LocalchatError as problem:
            self.hint(safe_line(problem.message), lasting=True)
            return
        self.show_status()  # the trouble is over
        self.hint(f"restored; the damaged file is {safe_line(str(restored.aside))}", lasting=True)
        await self.refresh_list()


def _why_not(file: str) -> str | None:
    """Why a file cannot be written under that name; None where it can."""
    path = Path(file.strip()).expanduser()
    if path.suffix.lower() not in (".md", ".json"):
        return "the name has to end with .md or .json"
    if path.exists():
        return "that file exists: choose another name"
    return None if path.absolute().parent.is_dir() else "there is no such folder"


def _write_chat(chats: Chats, chat: int, path: Path) -> None:
    """Write a chat to a new file, in the form that its name asks for. Raises `LocalchatError`."""
    from localchat.chats import exporting

    raw = exporting.document(chats.info(chat), chats.tree(chat), path)
    try:
        exporting.write(path, raw)
    except OSError as error:
        raise LocalchatError(f"cannot write {path} ({error.strerror}): choose another name") from error
