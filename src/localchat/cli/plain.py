"""`localchat chat --plain`: the chat line by line, in the terminal's own scrollback.

For screen readers, dumb terminals, and people who like it so: every message has a label, nothing that was written is
written over, and there are no colours. What can be done has the names that it has on the screen.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from localchat.chats.keeper import Keeper
from localchat.chats.records import Attachment, ChatSettings, Draft
from localchat.cli import labelled
from localchat.cli.figures import drafts, from_cache
from localchat.cli.options import model_name, wishes
from localchat.cli.plain_chat import PlainChat, say, sliding
from localchat.cli.plain_input import Cut, Lines
from localchat.client.local import LocalEngine
from localchat.client.remote import RemoteEngine
from localchat.errors import ChatsError, ContextExceeded, LocalchatError, UsageError
from localchat.safe_text import safe_line
from localchat.settings import settings

_SHOWN_ON_OPENING = 6
_LISTED = 15
_CLOSING_S = 5.0


def converse(engine: LocalEngine | RemoteEngine, wanted: ChatSettings, chat: int | None) -> int:
    """Talk until the person leaves; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    _leave_in_order_when_told_to()
    keeper = Keeper()
    try:
        Plain(engine, keeper, wanted).run(chat)
    finally:
        keeper.close(_CLOSING_S)
    return 0


def _leave_in_order_when_told_to() -> None:
    """Give the terminal back as it was, and keep what came: the editing of lines does neither where a signal kills."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]

    def leave(number: int, frame: object) -> None:
        for one in numbers:  # once is enough: what came is being kept
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for one in numbers:
        signal.signal(one, leave)


class _Leave(Exception):
    """The person wants to go."""


class Plain:
    """The conversation with the person; `wanted` are the settings of new chats."""

    def __init__(self, engine: LocalEngine | RemoteEngine, keeper: Keeper, wanted: ChatSettings) -> None:
        self._engine = engine
        self._keeper = keeper
        self._wanted = wanted
        self._attachments: list[Attachment] = []
        self._chat = self._new_chat()

    def run(self, chat: int | None) -> None:
        """Read and answer until the person leaves."""
        earlier: list[str] = []
        try:
            earlier = self._chat.kept(lambda chats: chats.prompts())
        except ChatsError as error:
            say(error.message)
        self._lines = Lines(earlier)
        say("localchat, plain: type a message and press Enter; /help lists the commands, Ctrl+D leaves")
        if chat is not None:
            self._open(chat)
        while True:
            try:
                self._do(self._lines.message())
            except KeyboardInterrupt:
                print()
                say("Ctrl+D leaves")
            except (EOFError, Cut) as end:
                print()
                self._keep_draft(end.text if isinstance(end, Cut) else "")
                return
            except _Leave:
                self._keep_draft("")
                return
            except LocalchatError as error:
                say(error.message)

    def _do(self, text: str) -> None:
        """A message is sent, a command is carried out."""
        if not text.strip():
            return
        name, _, argument = text.partition(" ")
        # A path is no command, and a message of several lines is none either.
        if text.startswith("/") and "/" not in name[1:] and "\n" not in text:
            command = _COMMANDS.get(name[1:])
            if not command:
                raise UsageError(f"there is no command {safe_line(name)}: /help lists them; a space before it sends it")
            command[2](self, argument.strip())
            return
        self._send(text.strip("\n"), self._chat.tree.tip)

    def _send(self, text: str, parent: int | None) -> None:
        try:
            self._chat.ask(text, self._attachments, parent)
        except ChatsError as error:
            say(f"the message was not sent, because it cannot be kept: {error.message}")
            if self._lines.line("Send it without keeping this chat? [y/N] ").strip().lower() not in ("y", "yes"):
                return
            self._chat.keeps = False
            self._chat.ask(text, self._attachments, parent)
        self._attachments = []
        self._when_full()

    def _when_full(self) -> None:
        """Where the window is full, the person chooses."""
        if not (self._chat.last and isinstance(self._chat.last.error, ContextExceeded)):
            return
        if self._chat.settings.overflow == "slide":
            return
        question = "Go on without the oldest messages, from now on? [y/N] "
        if self._lines.line(question).strip().lower() in ("y", "yes"):
            self._chat.change(sliding(self._chat.settings))
            self._chat.again()

    def _new_chat(self) -> PlainChat:
        return PlainChat(self._engine, self._keeper, self._wanted, show_thinking=settings().show_thinking)

    def _keep_draft(self, text: str) -> None:
        """What was not sent is there again on the screen."""
        if text.strip() or self._attachments:
            chat, draft = self._chat.chat, Draft(text, self._attachments)
            self._chat.kept(lambda chats: chats.keep_draft(chat, draft))

    # Commands

    def _help(self, argument: str) -> None:
        for name, (usage, what, _) in _COMMANDS.items():
            print(f"/{name}{' ' + usage if usage else ''}: {what}")
        print('A line that ends with \\ goes on in the next one; """ opens and closes a message of several lines.')
        print("Ctrl+C stops an answer and keeps what came. Ctrl+D leaves.")

    def _new(self, argument: str) -> None:
        self._chat = self._new_chat()
        say("a new chat")

    def _chats(self, argument: str) -> None:
        from localchat.cli.chats import table

        found = self._chat.kept(lambda chats: chats.chats(limit=_LISTED))
        print(table(found) if found else "There are no chats yet.")

    def _open_command(self, argument: str) -> None:
        if not argument.isdecimal():
            raise UsageError("/open takes the number of a chat: /chats lists them")
        self._open(int(argument))

    def _last(self, argument: str) -> None:
        info = self._chat.kept(lambda chats: chats.latest("chat"))
        if not info:
            raise UsageError("there is no earlier chat: type a message to begin one")
        self._open(info.id)

    def _open(self, number: int) -> None:
        self._chat.open(number)
        paragraphs = list(labelled.page(self._chat.tree))
        title = self._chat.kept(lambda chats: chats.info(number)).title
        hidden = len(paragraphs) - _SHOWN_ON_OPENING
        more = f"; {hidden} earlier messages are not shown, /show shows all" if hidden > 0 else ""
        say(f"chat {number}: {safe_line(title) or 'Untitled'}{more}")
        print("\n".join(f"{paragraph}\n" for paragraph in paragraphs[-_SHOWN_ON_OPENING:]))

    def _show(self, argument: str) -> None:
        for paragraph in labelled.page(self._chat.tree):
            print(f"{paragraph}\n")

    def _find(self, argument: str) -> None:
        from localchat.cli.chats import found_line

        if not argument:
            raise UsageError("/find takes the words to look for")
        hits = self._chat.kept(lambda chats: chats.search(argument, _LISTED))
        print("\n".join(map(found_line, hits)) or "Nothing was found.")

    def _retry(self, argument: str) -> None:
        if not any(node.message.role == "user" for node in self._chat.tree.path()):
            raise UsageError("there is no message to answer again: type one")
        self._chat.again()
        self._when_full()

    def _continue(self, argument: str) -> None:
        node = next(iter(self._chat.tree.path()[-1:]), None)
        if node is None or node.message.role != "assistant":
            raise UsageError("there is no answer to go on with: type a message")
        if node.state == "done" and node.outcome.finish_reason != "length":
            raise UsageError("this answer came to its own end: /retry asks again")
        self._chat.go_on(node)

    def _edit(self, argument: str) -> None:
        node = next((node for node in reversed(self._chat.tree.path()) if node.message.role == "user"), None)
        if not node:
            raise UsageError("there is no message to edit: type one")
        if not argument and not self._lines.can_edit:
            raise UsageError("this terminal cannot edit: type the new message after /edit")
        text = argument or self._lines.message(node.message.text())
        if text.strip():
            self._attachments = [*node.attachments, *self._attachments]
            self._send(text, node.parent)

    def _version(self, argument: str) -> None:
        tree = self._chat.tree
        node = next((node for node in reversed(tree.path()) if len(tree.siblings(node.id)) > 1), None)
        if not node:
            raise UsageError("there is only one version of everything: /retry and /edit make others")
        siblings = tree.siblings(node.id)
        if not argument.isdecimal() or not 1 <= int(argument) <= len(siblings):
            raise UsageError(f"this is {labelled.versions(tree, node)}: /version takes a number up to {len(siblings)}")
        chosen = siblings[int(argument) - 1]
        self._chat.go_to(tree.tip_under(chosen))
        for shown in tree.path()[[one.id for one in tree.path()].index(chosen) :]:
            print(labelled.message(shown, labelled.versions(tree, shown)) + "\n")

    def _system(self, argument: str) -> None:
        if argument:
            system = None if argument == "-" else argument
            self._chat.change(msgspec.structs.replace(self._chat.settings, system=system))
        system = self._chat.settings.system
        say(f"the system prompt is: {system}" if system else "there is no system prompt")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if argument:
            self._chat.change(wishes("", None, ((name, value.strip()),), self._chat.settings))
        shown = msgspec.to_builtins(self._chat.settings)
        shown |= shown.pop("sampling", {})
        said = ", ".join(f"{key} {value}" for key, value in shown.items() if key not in ("system", "model"))
        say(said or "nothing is set: the model's own values hold")

    def _think(self, argument: str) -> None:
        values = {"on": True, "off": False, "auto": None}
        if argument not in values:
            raise UsageError("/think takes on, off or auto")
        self._chat.change(msgspec.structs.replace(self._chat.settings, thinking=values[argument]))
        say(f"thinking is {argument} from the next message on")

    def _overflow(self, argument: str) -> None:
        if argument not in ("error", "slide"):
            raise UsageError("/overflow takes slide (the oldest messages are left out) or error (you are asked)")
        self._chat.change(wishes("", None, (("overflow", argument),), self._chat.settings))
        say(f"when the window is full: {argument}")

    def _model(self, argument: str) -> None:
        if argument:
            self._chat.change(msgspec.structs.replace(self._chat.settings, model=model_name(argument)))
        model = self._chat.settings.model
        say(f"the model is {model}" if model else "the model is the engine's own choice; /model NAME names one")

    def _attach(self, argument: str) -> None:
        from localchat.chats.attachments import read

        if not argument:
            raise UsageError("/attach takes the name of a file")
        self._attachments.append(read(Path(argument).expanduser()))
        say(f"{labelled.attached(self._attachments[-1])}; it goes with your next message")

    def _title(self, argument: str) -> None:
        number = self._number()
        if argument:
            self._chat.kept(lambda chats: chats.rename(number, argument))
        say(f"the title is {self._chat.kept(lambda chats: chats.info(number)).title}")

    def _export(self, argument: str) -> None:
        from localchat.chats import exporting
        from localchat.cli.chats import write

        number = self._number()
        info = self._chat.kept(lambda chats: chats.info(number))
        file = Path(argument or exporting.file_name(info, "md")).expanduser()
        write(file, exporting.document(info, self._chat.tree, file), force=False)
        say(f"written to {file}")

    def _delete(self, argument: str) -> None:
        number = self._number()
        self._chat.kept(lambda chats: chats.delete(number))
        self._chat = self._new_chat()
        say(f"chat {number} is removed, `localchat chats restore {number}` brings it back; this is a new chat")

    def _figures(self, argument: str) -> None:
        reply = self._chat.last
        if not reply or not reply.usage:
            raise UsageError("there are no figures: they come with an answer")
        window = f" of {reply.context:,}" if reply.context else ""
        speed = f", {reply.timings.tokens_per_second:.1f} tokens/s" if reply.timings else ""
        cached = f" ({from_cache(reply)})" if reply.cached_tokens is not None else ""
        drafted = f", {drafts(reply)}" if reply.drafted_tokens else ""
        say(
            f"{reply.model}: {reply.usage.prompt_tokens:,} prompt tokens{cached}, {reply.usage.completion_tokens:,} "
            f"answer tokens, {reply.usage.total_tokens:,}{window} in the window{speed}{drafted}"
        )

    def _quit(self, argument: str) -> None:
        raise _Leave

    def _number(self) -> int:
        if self._chat.chat is None:
            raise UsageError("this chat has not begun: type a message first")
        return self._chat.chat


_Command = tuple[str, str, Callable[[Plain, str], None]]

# Private methods of the class above: the table is a part of it that reads better down here.
_COMMANDS: dict[str, _Command] = {
    "help": ("", "list the commands", Plain._help),
    "new": ("", "begin a new chat", Plain._new),
    "chats": ("", f"list your newest {_LISTED} chats", Plain._chats),
    "open": ("ID", "open a chat", Plain._open_command),
    "last": ("", "go on with your last chat", Plain._last),
    "show": ("", "show this chat from its beginning", Plain._show),
    "find": ("WORDS", "search in everything", Plain._find),
    "retry": ("", "ask again: another answer beside the last one", Plain._retry),
    "continue": ("", "go on with an answer that ended too early", Plain._continue),
    "edit": ("[TEXT]", "edit your last message: the old one stays beside it", Plain._edit),
    "version": ("N", "go to another version of the last message that has several", Plain._version),
    "attach": ("FILE", "attach a text or PDF file to your next message", Plain._attach),
    "model": ("[NAME]", "choose another model", Plain._model),
    "system": ("[TEXT]", "set the system prompt of this chat (- for none)", Plain._system),
    "set": ("[NAME VALUE]", "set a sampling value of this chat, such as temperature 0.5", Plain._set),
    "think": ("on|off|auto", "let the model think: yes, no, its own way", Plain._think),
    "overflow": ("error|slide", "when the window is full: ask you, or leave out the oldest messages", Plain._overflow),
    "figures": ("", "show the figures of the last answer", Plain._figures),
    "title": ("[TITLE]", "give this chat a title", Plain._title),
    "export": ("[FILE]", "write this chat to a file (.md or .json)", Plain._export),
    "delete": ("", "remove this chat (it can be undone)", Plain._delete),
    "quit": ("", "leave", Plain._quit),
}
