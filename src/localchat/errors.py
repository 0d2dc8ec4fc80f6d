"""Everything that can go wrong, as one hierarchy: each kind knows its exit code and how it crosses the protocol.

A message is one sentence for the person at the keyboard that ends with what to do next. Only `cli.main` and the
host's error handler turn these into an exit or an HTTP answer; everybody else raises them.
"""

from __future__ import annotations


class LocalchatError(Exception):
    """Base of all errors that carry a sentence for the person; on its own, something nobody expected.

    `exit_code` is the process exit code, `code` the error's name in the protocol, `status` the HTTP status that a host
    of ours gives it; `http_status` is the one that a server answered with (None: no server said this).
    """

    exit_code = 1
    code = "internal_error"
    status = 500
    http_status: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UsageError(LocalchatError):
    """What was asked for cannot be asked for: a bad option, value, file or request field."""

    exit_code = 2
    code = "invalid_request"
    status = 400


class NoSuchModel(LocalchatError):
    """No installed model, catalogue entry or file goes by that name."""

    exit_code = 3
    code = "model_not_found"
    status = 404


class FetchError(LocalchatError):
    """A model could not be fetched: no network, no source that answers, no room on the disk."""

    exit_code = 4
    code = "fetch_failed"
    status = 502


class DoesNotFit(LocalchatError):
    """The model, or the context window asked for, needs more memory than there is."""

    exit_code = 5
    code = "does_not_fit"
    status = 507


class ContextExceeded(LocalchatError):
    """The prompt has more tokens than the context window holds."""

    exit_code = 6
    code = "context_length_exceeded"
    status = 400


class EngineFailed(LocalchatError):
    """The engine could not be started, could not be reached, or died."""

    exit_code = 7
    code = "engine_failed"
    status = 503


class EngineLeaving(EngineFailed):
    """The engine is on its way out and took nothing of the request: ask again, and the next one starts by itself."""

    code = "engine_leaving"
    status = 409


class NeedsVerification(LocalchatError):
    """The model file's hash is not known to be right yet, and the request asked to be told rather than to wait."""

    exit_code = 8
    code = "needs_verification"
    status = 428


class DamagedFile(LocalchatError):
    """A model file is not what it should be: wrong hash, cut short, or not a GGUF at all."""

    exit_code = 8
    code = "damaged_file"
    status = 422


class ChatsError(LocalchatError):
    """The conversations on disk cannot be read or written."""

    code = "chats_failed"


class ChatsLocked(ChatsError):
    """Another program holds the file, and did not let go in time."""

    code = "chats_locked"


class ChatsReadOnly(ChatsError):
    """The file or its folder cannot be written."""

    code = "chats_read_only"


class ChatsDiskFull(ChatsError):
    """There is no room for what was to be kept."""

    code = "chats_disk_full"


class ChatsDamaged(ChatsError):
    """The file is not what SQLite wrote."""

    code = "chats_damaged"
    exit_code = 8


class NoSuchChat(ChatsError):
    """No chat goes by that number."""

    code = "chat_not_found"
    exit_code = 2


class Interrupted(LocalchatError):
    """The person, or the other end of the pipe, asked to stop."""

    exit_code = 130
    code = "interrupted"
    status = 499


_BY_CODE = {
    kind.code: kind
    for kind in (
        LocalchatError,
        UsageError,
        NoSuchModel,
        FetchError,
        DoesNotFit,
        ContextExceeded,
        EngineFailed,
        EngineLeaving,
        NeedsVerification,
        DamagedFile,
        ChatsError,
        ChatsLocked,
        ChatsReadOnly,
        ChatsDiskFull,
        ChatsDamaged,
        NoSuchChat,
        Interrupted,
    )
}


def from_code(code: str | None, message: str) -> LocalchatError:
    """The error that a server named by `code`; an unknown name (a foreign server's) is an engine failure."""
    return _BY_CODE.get(code or "", EngineFailed)(message)
