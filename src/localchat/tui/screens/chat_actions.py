"""What a person can do in the chat: the methods behind the table of actions, and the dialogs that they open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from textual.screen import Screen

from localchat.chats.records import ChatSettings, Hit
from localchat.errors import LocalchatError
from localchat.protocol import Sampling
from localchat.safe_text import safe_line
from localchat.tui.actions import by_slash, slash_commands
from localchat.tui.conversation import Item, Prompt
from localchat.tui.session import Session, settings_with

if TYPE_CHECKING:
    from localchat.chats.keeper import Keeper
    from localchat.chats.store import Chats
    from localchat.tui.widgets.composer import Composer
    from localchat.tui.widgets.transcript import Transcript

_THINKING: tuple[tuple[bool | None, str], ...] = ((None, "as the model likes"), (True, "on"), (False, "off"))


class ChatActions(Screen[None]):
    """The actions of the chat; what they act on belongs to `ChatScreen`."""

    session: Session
    keeper: Keeper
    transcript: Transcript
    composer: Composer

    # What the chat screen gives.

    def hint(self, text: str) -> None:
        """Say something in the status line for a while."""
        raise NotImplementedError

    async def open_chat(self, chat: int, at: int | None = None) -> None:
        """Show another chat."""
        raise NotImplementedError

    def begin_chat(self) -> None:
        """Show a new chat."""
        raise NotImplementedError

    def take_model(self, name: str) -> None:
        """Let a model answer from now on."""
        raise NotImplementedError

    async def refresh_list(self) -> None:
        """Read the list of chats anew, where it is shown."""
        raise NotImplementedError

    def do(self, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` beside the screen; what goes wrong is said in the status line."""

        async def run() -> None:
            try:
                await work
            except LocalchatError as error:
                self.hint(safe_line(error.message))
            self.start_looking()

        self.run_worker(run(), exit_on_error=True)

    def command(self, name: str, argument: str) -> None:
        """A slash command that the person typed."""
        action = by_slash(name)
        if not action:
            self.hint(f"there is no command /{safe_line(name)}: F1 shows all")
        elif action.argument and (argument or not action.argument.startswith("[")):
            if not argument:
                self.hint(f"/{name} needs more: /{name} {action.argument}")
            else:
                getattr(self, f"slash_{action.name}")(argument)
        else:
            self.do(self._run_method(action.method))

    async def _run_method(self, method: str) -> None:
        await self.run_action(method if method.startswith("app.") else f"screen.{method}")

    # The answer.

    def action_stop(self) -> None:
        """Stop the answer at once; what came stays. Else leave what is being edited."""
        if self.composer.escape(answering=self.session.busy):
            return
        if self.session.busy:
            self.session.stop()
        elif self.transcript.has_focus:
            self.composer.focus()
        else:
            self.leave_edit()

    def leave_edit(self) -> None:
        """Give up editing an earlier message, if one is edited."""
        raise NotImplementedError

    def action_again(self) -> None:
        """Another answer to the last question."""
        if self.session.running or not self.session.items():
            self.hint("stop the answer first" if self.session.running else "there is nothing to ask again")
            return
        self.do(self.session.again())

    def action_again_this(self) -> None:
        """Another answer to the question at the mark."""
        if (node := self._marked()) is not None:
            self.do(self.session.again(node))

    def action_go_on(self) -> None:
        """Go on with the last answer."""
        reply = self.session.last_reply
        self._go_on(reply.node if reply else None)

    def action_go_on_this(self) -> None:
        """Go on with the answer at the mark."""
        self._go_on(self._marked())

    def _go_on(self, node: int | None) -> None:
        if node is None or self.session.running:
            self.hint("there is nothing to go on with")
        elif why := self.session.can_go_on(node):
            self.hint(why)
        else:
            self.do(self.session.go_on(node))

    def action_edit(self) -> None:
        """Edit the last message."""
        mine = [item for item in self.session.items() if isinstance(item.content, Prompt)]
        self._edit(mine[-1] if mine else None)

    def action_edit_this(self) -> None:
        """Edit the message at the mark."""
        self._edit(self.transcript.current)

    def _edit(self, item: Item | None) -> None:
        if not item or item.node is None or not isinstance(item.content, Prompt):
            self.hint("choose a message of yours to edit")
        elif self.session.running:
            self.hint("stop the answer first")
        else:
            self.begin_edit(item.node, item.content)

    def begin_edit(self, node: int, prompt: Prompt) -> None:
        """Put a message into the composer, to be sent beside the old one."""
        raise NotImplementedError

    def action_walk(self, by: int) -> None:
        """Go to another version of the message at the mark."""
        if (node := self._marked()) is not None:
            self.do(self.walk(node, by))

    async def walk(self, node: int, by: int) -> None:
        """Go to the version `by` places on."""
        if self.session.running:
            self.hint("stop the answer first")
        elif not await self.session.walk(node, by):
            self.hint("there is no other version on that side")

    def _marked(self) -> int | None:
        item = self.transcript.current
        if self.session.running:
            self.hint("stop the answer first")
            return None
        if not item or item.node is None:
            self.hint("choose a message first")
            return None
        return item.node

    # Chats.

    def action_new_chat(self) -> None:
        """Begin a new chat with the same settings; an answer on its way goes on, and a draft stays with its chat."""
        self.begin_chat()

    def action_last_chat(self) -> None:
        """Go on with the last chat."""

        async def go() -> None:
            here = self.session.chat
            chats = await self._read(lambda chats: chats.chats("chat", 50))
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

        self.app.push_screen(FindScreen(lambda asked: self._read(lambda chats: chats.search(asked)), words), found)

    def action_title(self) -> None:
        """Give the chat a title."""
        from localchat.tui.screens.line import LineScreen

        self.app.push_screen(LineScreen("The title of this chat", self.session.title), self._titled)

    def slash_title(self, title: str) -> None:
        """Give the chat this title."""
        self._titled(title)

    def _titled(self, title: str | None) -> None:
        if title and title.strip():
            self.do(self.session.rename(safe_line(title)))

    def action_export(self) -> None:
        """Write the chat to a file."""
        from localchat.tui.screens.line import LineScreen

        name = "".join(letter if letter.isalnum() or letter in " -_" else "-" for letter in self.session.title)
        self.app.push_screen(
            LineScreen("Write this chat to (.md or .json)", f"{name.strip()[:60] or 'chat'}.md"),
            lambda file: self.slash_export(file) if file else None,
        )

    def slash_export(self, file: str) -> None:
        """Write the chat to this file."""
        chat, path = self.session.chat, Path(file.strip()).expanduser().absolute()
        if chat is None:
            self.hint("there is nothing to write yet")
            return

        async def write() -> None:
            await self._read(lambda chats: _write_chat(chats, chat, path))
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
            await self._read(lambda chats: chats.delete(chat))
            await self.refresh_list()
            self.hint(f"deleted: `localchat chats restore {chat}` brings it back within 30 days")

        self.do(delete())

    async def _read(self, work: Callable[[Any], Any]) -> Any:
        return await asyncio.wrap_future(self.keeper.call(work))

    # The model.

    def action_model(self) -> None:
        """Choose a model."""
        raise NotImplementedError

    def slash_model(self, name: str) -> None:
        """Take this model."""
        self.take_model(name.strip())

    def action_settings(self) -> None:
        """The chat's settings."""
        from localchat.tui.screens.chat_settings import ChatSettingsScreen

        self.app.push_screen(ChatSettingsScreen(self.session.settings), self._changed)

    def slash_system(self, text: str) -> None:
        """Set the system prompt."""
        self._changed(settings_with(self.session.settings, system=text.strip() or None))

    def slash_set(self, pair: str) -> None:
        """Set one sampling value or limit."""
        name, _, value = pair.partition(" ")
        sampling = {field: getattr(self.session.settings.sampling, field) for field in Sampling.__struct_fields__}
        try:
            if name in sampling:
                wanted = None if value.strip() in ("", "none") else value.strip()
                new = msgspec.convert({**sampling, name: wanted}, Sampling, strict=False)
                self._changed(settings_with(self.session.settings, sampling=new))
            elif name in ("max_tokens", "context", "gpu_layers"):
                other = msgspec.convert({name: value.strip() or None}, ChatSettings, strict=False)
                self._changed(settings_with(self.session.settings, **{name: getattr(other, name)}))
            else:
                self.hint(f"there is no setting {safe_line(name)}: known are {', '.join([*sampling, 'max_tokens'])}")
        except msgspec.ValidationError as error:
            self.hint(f"{safe_line(name)}: {safe_line(str(error).partition(' - at')[0])}")

    def action_think(self) -> None:
        """Let the model think in its own way, always, or never."""
        states = [state for state, _ in _THINKING]
        after = states[(states.index(self.session.settings.thinking) + 1) % len(states)]
        self._changed(settings_with(self.session.settings, thinking=after), quiet=True)
        self.hint(f"thinking: {dict(_THINKING)[after]}")

    def slash_think(self, word: str) -> None:
        """Thinking on, off, or as the model likes."""
        known = {"on": True, "off": False, "auto": None}
        if word.strip() in known:
            self._changed(settings_with(self.session.settings, thinking=known[word.strip()]))
        else:
            self.hint("/think takes on, off or auto")

    def action_overflow(self) -> None:
        """What happens when the window is full."""
        slides = self.session.settings.overflow == "slide"
        self._changed(settings_with(self.session.settings, overflow="error" if slides else "slide"), quiet=True)
        self.hint("when the window is full: you are asked" if slides else "when the window is full: the oldest go")

    def action_summarise(self) -> None:
        """Put a summary in the place of the older messages."""
        if why := self.session.summarise():
            self.hint(why)
        else:
            self.start_looking()

    def start_looking(self) -> None:
        """Look in on the engine regularly from now on."""
        raise NotImplementedError

    def _changed(self, settings: ChatSettings | None, *, quiet: bool = False) -> None:
        if settings is None:
            return
        self.do(self.session.change(settings))
        if not quiet:
            self.hint("these settings count from your next message on")

    # Looking.

    def action_toggle_thinking(self) -> None:
        """Show or fold the thinking of all answers."""
        self.transcript.toggle_thinking()

    def action_toggle_this(self) -> None:
        """Show or fold the thinking of the answer at the mark."""
        self.transcript.toggle_thinking(only_current=True)

    def action_toggle_figures(self) -> None:
        """Show or hide the figures of each answer."""
        self.transcript.toggle_figures()

    def action_scroll(self, where: str) -> None:
        """Scroll the page; at its end it follows the answer again."""
        if where in ("top", "bottom"):
            self.transcript.to(where)
        else:
            self.transcript.move(-1 if where == "page_up" else 1, "page")

    def action_read(self) -> None:
        """Go up into the page."""
        if self.session.items():
            self.transcript.focus()
        else:
            self.hint("there is nothing to read yet")

    def action_write(self) -> None:
        """Back to the composer."""
        self.composer.focus()

    def action_move(self, by: int, unit: str) -> None:
        """Move the mark."""
        self.transcript.move(by, unit)

    def action_copy(self) -> None:
        """Copy the message at the mark, or the last answer."""
        item = self.transcript.current
        reply = self.session.last_reply
        self._copy(self.transcript.current_text() if item else reply.text if reply else "", "the message")

    def action_copy_code(self) -> None:
        """Copy the code block at the mark."""
        self._copy(self.transcript.current_code() or "", "the code")

    def _copy(self, text: str, what: str) -> None:
        if not text:
            self.hint(f"there is nothing to copy: {what} is not there")
            return
        from localchat.tui.clipboard import copy

        async def run() -> None:
            self.hint(f"{what}: {await asyncio.to_thread(copy, text, self.app)}")

        self.do(run())

    def action_link(self) -> None:
        """Show the links of the message at the mark."""
        links = self.transcript.links()
        if not links:
            self.hint("this message has no links")
            return
        from localchat.tui.screens.links import LinkScreen

        self.app.push_screen(LinkScreen(links))

    def action_keys(self) -> None:
        """Show the sheet of keys."""
        from localchat.tui.screens.keys import KeySheet

        self.app.push_screen(KeySheet())

    def action_theme(self) -> None:
        """The next theme."""
        raise NotImplementedError

    def action_attach(self) -> None:
        """Begin to name a file to attach."""
        self.composer.begin_attaching()

    def action_editor(self) -> None:
        """Write in the person's own editor."""
        self.do(self.composer.run_action("edit"))


def _write_chat(chats: Chats, chat: int, path: Path) -> None:
    """Write a chat to a new file, in the form that its name asks for. Raises `LocalchatError`."""
    from localchat.chats.exporting import WholeChat, as_json, as_markdown

    info, tree = chats.info(chat), chats.tree(chat)
    whole = path.suffix.lower() == ".json"
    content = as_json([WholeChat.of(info, tree)]) if whole else as_markdown(info, tree).encode()
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise LocalchatError(f"cannot write {path} ({error.strerror}): choose another name") from error


def commands() -> list[tuple[str, str, str]]:
    """Name, argument and label of each slash command, for the composer."""
    return slash_commands()
