"""What the parts of the chat screen share: the session, the widgets, and what each part may ask of the others."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from textual.screen import Screen

from localchat.errors import ChatsDamaged, LocalchatError
from localchat.safe_text import safe_line
from localchat.tui.kept_chat import done

if TYPE_CHECKING:
    from localchat.chats.keeper import Keeper
    from localchat.chats.records import ChatSettings, Draft
    from localchat.chats.store import Chats
    from localchat.tui.session import Session
    from localchat.tui.widgets.composer import Composer
    from localchat.tui.widgets.status import Status
    from localchat.tui.widgets.transcript import Transcript

T = TypeVar("T")


class ChatParts(Screen[None]):
    """The base of the parts; `ChatScreen` puts them together and gives them what is declared here."""

    session: Session
    keeper: Keeper
    transcript: Transcript
    composer: Composer
    status: Status
    editing: tuple[int | None, Draft] | None = None
    """An earlier message that is being edited: its parent, and the draft that stood in the composer before."""

    def hint(self, text: str, *, lasting: bool = False) -> None:
        """Say something in the status line: for a while, or until something else happens (`lasting`)."""
        raise NotImplementedError

    def start_looking(self) -> None:
        """Look in on the engine regularly, while there is something to see."""
        raise NotImplementedError

    def show_status(self) -> None:
        """Bring the status line up to date."""
        raise NotImplementedError

    def begin_chat(self, *, focus: bool = True) -> None:
        """Show a new chat with the same settings; a draft comes along."""
        raise NotImplementedError

    async def open_chat(self, chat: int, at: int | None = None) -> None:
        """Show a chat, at a message of it."""
        raise NotImplementedError

    def stop_chat(self, chat: int) -> None:
        """Stop the answer that a chat is getting, shown or not."""
        raise NotImplementedError

    def keep_draft(self) -> None:
        """Have what stands in the composer on disk, soon."""
        raise NotImplementedError

    def action_read(self) -> None:
        """Go up into the page."""
        raise NotImplementedError

    async def refresh_list(self) -> None:
        """Read the list of chats anew, where it is shown."""
        raise NotImplementedError

    def change_settings(self, settings: ChatSettings | None, said: str = "") -> None:
        """Other settings for this chat, from the next message on."""
        raise NotImplementedError

    def offer_backup(self, error: ChatsDamaged) -> None:
        """Let the person choose what becomes of a damaged database."""
        raise NotImplementedError

    def do(self, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` beside the screen; what goes wrong is said in the status line."""

        async def run() -> None:
            try:
                await work
            except ChatsDamaged as error:
                self.offer_backup(error)
            except LocalchatError as error:
                self.hint(safe_line(error.message))
            self.start_looking()

        self.run_worker(run())

    async def read(self, work: Callable[[Chats], T]) -> T:
        """Have the keeper do something. Raises `ChatsError`."""
        return await done(self.keeper.call(work))
