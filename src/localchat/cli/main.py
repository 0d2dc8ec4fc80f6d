"""The `localchat` command: find the subcommand, run it, turn whatever goes wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from localchat import __version__
from localchat.errors import LocalchatError

if TYPE_CHECKING:
    import click

COMMANDS = {
    "ask": "answer one prompt: for scripts and quick questions",
    "batch": "answer many prompts together, one a line, to go on with after an interruption",
    "chat": "open the terminal chat (also what `localchat` alone does)",
    "chats": "list, search, show, export, import and remove your chats",
    "models": "show which models are here, which can be fetched, and which fit this machine",
    "pull": "fetch a model: a catalogue name, owner/repo[:quantization] of a hub, or a URL",
    "import": "take in a GGUF file, or find those that other programs have (--scan)",
    "export": "copy a model and its record to a folder, such as a USB stick",
    "show": "show what is known of a model",
    "verify": "read models again and compare their sha256",
    "rm": "remove a model",
    "prune": "remove partial downloads and other leftovers",
    "du": "show what takes room on the disk",
    "cache": "show and clear what is kept of prompts that models have read",
    "bench": "measure how fast this machine is with a model",
    "tune": "find the settings with which a model is fastest here",
    "doctor": "look this machine over and say what to mend",
    "status": "show what the engine holds in memory",
    "stop": "end the engine",
    "serve": "run the engine in the foreground, on request as an OpenAI-compatible server",
}

_MODULES = {"import": "import_"}
"""Commands whose module cannot have their name."""

_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit with the documented code."""
    _replace_closed_streams()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        _let_nothing_interrupt()
        code = _code_of(error)
    _let_nothing_interrupt()
    _give_up_stderr_if_full()
    sys.exit(code)


def _let_nothing_interrupt() -> None:
    """The command is over: another Ctrl+C would only be a traceback out of the little that is left to do.

    SIGTERM, and SIGQUIT (Ctrl and the backslash), still end it at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _code_of(error: Exception | KeyboardInterrupt) -> int:
    """Say what went wrong; the exit code for it."""
    if isinstance(error, LocalchatError):
        return _complain(error.message, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has enough, as `head` has; that is no error.
        give_up_stdout()
        return 0
    if isinstance(error, OSError):
        give_up_stdout()
        if error.errno == errno.EBADF:
            return _complain("standard output is closed: there is nowhere to write to", 1)
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}: see that there is room and that it can be written", 1)
    return _complain(_unexpected(error), 1)


def _replace_closed_streams() -> None:
    """Put something in place of a standard stream that was closed (`<&-`), before a file or a socket takes its number.

    Reading finds the end at once, what is written to stderr is lost, and writing to stdout fails, as it should.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def give_up_stdout() -> None:
    """Write no more to stdout: what is left in its buffer would fail again as Python exits, with a code of its own."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _give_up_stderr_if_full() -> None:
    """What cannot be said on stderr changes no exit code; Python would make it 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  (for the few moments until the exit)


def _run(arguments: list[str]) -> int:
    arguments = _without_globals(arguments)
    if arguments[:1] in (["-h"], ["--help"]) or arguments in (["help"], ["help", "help"]):
        print(_help())
        return 0
    if arguments[:1] in (["-V"], ["--version"]):
        print(f"localchat {__version__}")
        return 0
    if arguments[:2] == ["serve", "--detached"]:
        from localchat.cli.detached import serve_detached

        return serve_detached(arguments[2])
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    name, arguments, implicit = _command_of(arguments)
    module = importlib.import_module(f"localchat.cli.{_MODULES.get(name, name)}")
    command: click.Command = module.command
    import click

    try:
        # The object tells `ask` that nobody typed its name: without a prompt, that is a wish to chat. (`command.main`
        # would do all this too, but exits with 1 where a pipe was closed.)
        with command.make_context(f"localchat {name}", arguments, obj=implicit) as context:
            result = command.invoke(context)
    except click.exceptions.Abort as error:
        raise KeyboardInterrupt from error
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _complain(_usage(error, f"localchat {name}"), 2)
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException, command: str) -> str:
    """click's word on what was typed, with the next step: the help of the very (sub)command that it was typed to."""
    import re

    context = getattr(error, "ctx", None)
    see = f"`{context.command_path if context else command} --help`"
    said = re.sub(r"is not a valid integer( range)?\b", "is no whole number", error.format_message())
    if meant := re.search(r"\. \(?Did you mean (?:one of: )?(.+?)\?\)?\.?$", said):
        return f"{said[: meant.start()]}: did you mean {meant[1]}? See {see}"
    return f"{said.rstrip('.')}: see {see}"


def _without_globals(arguments: list[str]) -> list[str]:
    """`--offline` and `--max-ram SIZE` may stand anywhere before a `--`; they are handed on as the variables that every
    part looks at. Raises `UsageError` for what is no size.
    """
    options, rest = arguments, []
    if "--" in arguments:
        end = arguments.index("--")
        options, rest = arguments[:end], arguments[end:]
    if "--offline" in options:
        os.environ["LOCALCHAT_OFFLINE"] = "1"
        options = [argument for argument in options if argument != "--offline"]
    return _without_max_ram(options) + rest


def _without_max_ram(options: list[str]) -> list[str]:
    left: list[str] = []
    waiting = iter(options)
    for option in waiting:
        name, equals, said = option.partition("=")
        if name != "--max-ram":
            left.append(option)
            continue
        from localchat.settings import ram_bytes

        said = said if equals else next(waiting, "")
        ram_bytes(said, "--max-ram")
        os.environ["LOCALCHAT_MAX_RAM"] = said
    return left


def _command_of(arguments: list[str]) -> tuple[str, list[str], bool]:
    """The subcommand's name, its arguments, and whether it was left out.

    `localchat "two words"`, `localchat -m NAME "…"` and `echo hi | localchat` ask; `localchat` alone opens the chat.
    """
    if not arguments:
        return ("chat" if sys.stdin.isatty() else "ask"), [], True
    first = arguments[0]
    if first in COMMANDS:
        return first, arguments[1:], False
    if first == "--plain":
        return "chat", arguments, False
    if first.startswith("-") or any(character.isspace() for character in first):
        return "ask", arguments, True
    import difflib

    close = difflib.get_close_matches(first, COMMANDS, n=1)
    meant = f"did you mean `localchat {close[0]}`?" if close else f"to ask that, type `localchat ask {first!r}`"
    from localchat.errors import UsageError
    from localchat.safe_text import safe_line

    raise UsageError(f"there is no command {safe_line(first)!r}: {safe_line(meant)}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "Usage: localchat [COMMAND] [OPTIONS]\n\n"
        "Chat with open-weight models on this computer: no account, no service, no network once a model is here.\n\n"
        f"Commands:\n{commands}\n\n"
        'Without a command: `localchat` opens the chat, `localchat "a question"` and `… | localchat` ask.\n'
        "`localchat -c` goes on with your last chat, `localchat ask -c` with your last question.\n"
        "`localchat COMMAND --help` or `localchat help COMMAND` explains a command; --version prints the version.\n"
        "With `--offline` (or LOCALCHAT_OFFLINE=1) nothing asks the network.\n"
        "With `--max-ram 6G` (or LOCALCHAT_MAX_RAM=6G) the engine takes no more memory than that, whatever it does.\n\n"
        "Exit codes: 0 ok, 1 unexpected, 2 usage, 3 no such model, 4 could not fetch, 5 does not fit in memory,\n"
        "6 prompt exceeds the context window, 7 engine failed, 8 damaged or unverified file, 130 interrupted."
    )


def _complain(message: str, code: int) -> int:
    """Say what is wrong, on stderr; nothing else may be lost by a stderr that is closed."""
    from contextlib import suppress

    from localchat.safe_text import safe_text

    with suppress(OSError, ValueError):
        print(f"localchat: {safe_text(message)}", file=sys.stderr, flush=True)
    return code


def _unexpected(error: Exception) -> str:
    """The sentence for what nobody foresaw; the traceback goes to a file, where it can be reported from."""
    import traceback

    from localchat.paths import paths, private_folder

    what = f"something unexpected happened ({type(error).__name__}: {error})"
    try:
        log = private_folder(paths().state) / "crash.log"
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            traceback.print_exception(error, file=file)
        return f"{what}: please report it with {log}"
    except (OSError, LocalchatError):
        return f"{what}: please report it"
