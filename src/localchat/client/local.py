"""The engine of this machine, behind the host's Unix socket."""

from __future__ import annotations

import http.client
import time
from typing import TypeVar

import msgspec

from localchat import __version__, protocol
from localchat.client.connect import connect_if_running, connect_or_start, last_words
from localchat.client.stream import ChatStream, Reply, error_of, send
from localchat.errors import EngineFailed, LocalchatError
from localchat.locks import FileLock
from localchat.paths import paths
from localchat.settings import max_ram

_HEADERS = {"Content-Type": "application/json", protocol.VERSION_HEADER: __version__}
# A host that makes room for another version, or leaves because it was idle, needs a moment.
_ATTEMPTS = 3
_STOP_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 5.0
_Answer = TypeVar("_Answer")


class LocalEngine:
    """The engine of this machine: started when first asked, gone by itself when idle."""

    is_local = True
    goes_on = True

    def chat(self, request: protocol.ChatRequest) -> ChatStream:
        """Begin to stream an answer. `request.model` is a name or an absolute path; "" is the one that was fetched or
        verified last: what the settings say is the caller's to look up.

        Raises the error that the host names (`NoSuchModel`, `UsageError`, …) or `EngineFailed`.
        """
        body = msgspec.json.encode(_limited(request))
        return ChatStream(self._ask(protocol.CHAT_PATH, body, request.model), last_words)

    def answer(self, request: protocol.ChatRequest) -> protocol.Completion:
        """The whole answer in one piece: for who asks many things side by side, and would wake up for every token.

        Raises as `chat` does. An engine that dies meanwhile is not asked again, as it may have died of this question.
        """
        body = msgspec.json.encode(msgspec.structs.replace(_limited(request), stream=False, stream_options=None))
        return self._answer(protocol.CHAT_PATH, body, request.model, protocol.Completion, once=True)

    def load(
        self, model: str = "", context: int | None = None, gpu_layers: int | None = None, *, verified_only: bool = False
    ) -> protocol.Status:
        """Have a model loaded, and wait until it is. With `verified_only` a file that has to be hashed first is not:
        that raises `NeedsVerification`.
        """
        body = msgspec.json.encode(protocol.LoadRequest(model, context, gpu_layers, verified_only, max_ram()))
        return self._answer(protocol.LOAD_PATH, body, model, protocol.Status)

    def tokenize(self, text: str, model: str = "", *, verified_only: bool = False) -> list[int]:
        """The token ids of `text` as the content of a message; `verified_only` as in `load`."""
        body = msgspec.json.encode(protocol.TokenizeRequest(text, model, verified_only, max_ram()))
        return self._answer(protocol.TOKENIZE_PATH, body, model, protocol.TokenizeResponse).tokens

    def status(self) -> protocol.Status | None:
        """What the host holds and does, or None where none runs."""
        connection = connect_if_running(_STATUS_TIMEOUT_S)
        if not connection:
            return None
        try:
            connection.request("GET", protocol.STATUS_PATH)
            response = connection.getresponse()
            if response.status != 200:
                raise error_of(response)
            return msgspec.json.decode(response.read(), type=protocol.Status)
        except (OSError, http.client.HTTPException) as error:
            raise EngineFailed(f"the engine does not answer ({error}): end it with `localchat stop`") from error
        except msgspec.DecodeError as error:
            raise EngineFailed("the engine is of another version: run `localchat stop`, it starts by itself") from error
        finally:
            connection.close()

    def stop(self) -> bool:
        """End the host at once, and wait until it is gone; False where none ran."""
        connection = connect_if_running(_STATUS_TIMEOUT_S)
        if not connection:
            return False
        try:
            # No version is named: a host of another one would only make way, once its answers are through.
            connection.request("POST", protocol.STOP_PATH, body=b"{}", headers={"Content-Type": "application/json"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass  # it may be gone before it has answered, or hang: the lock tells
        finally:
            connection.close()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        # It listens no more at once, and holds its lock until the model is out of memory.
        lock = FileLock(paths().host_lock)
        while not lock.acquire(blocking=False):
            if time.monotonic() > deadline:
                raise EngineFailed(
                    f"the engine does not stop: end its process with `kill -9 {connection.peer or 'PID'}`"
                )
            time.sleep(0.02)
        lock.release()
        return True

    def _answer(self, path: str, body: bytes, model: str, kind: type[_Answer], *, once: bool = False) -> _Answer:
        reply = self._ask(path, body, model, once=once)
        try:
            return msgspec.json.decode(reply.response.read(), type=kind)
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            # Half an answer is none either.
            raise EngineFailed(f"the engine died ({last_words()}): ask again") from error
        finally:
            reply.connection.close()

    def _ask(self, path: str, body: bytes, model: str, *, once: bool = False) -> Reply:
        """Post to the host, starting or replacing it where needed; the answer is 200 or an error is raised.

        With `once` a host that breaks off is not asked again; one that says that it leaves is.
        """
        failure: LocalchatError | None = None
        for _ in range(_ATTEMPTS):
            connection = connect_or_start(model)
            try:
                reply = send(connection, "POST", path, body, _HEADERS)
                if reply.response.status == 200:
                    return reply
                failure = error_of(reply.response)
            except (OSError, http.client.HTTPException) as error:
                # No byte of an answer came, so nothing was lost: the host was just leaving, or it crashed.
                connection.close()
                failure = EngineFailed(f"the engine closed the connection ({error}; {last_words()}): ask again")
                if once:
                    break
                continue
            connection.close()
            if reply.response.status != 409:
                break
            time.sleep(0.05)
        assert failure is not None
        raise failure


def _limited(request: protocol.ChatRequest) -> protocol.ChatRequest:
    """The request under the person's ceiling on memory, where it names no other."""
    most, extras = max_ram(), request.localchat or protocol.Extras()
    if most is None or extras.max_ram is not None:
        return request
    return msgspec.structs.replace(request, localchat=msgspec.structs.replace(extras, max_ram=most))


def held_by_engine() -> int:
    """Bytes that an engine which is running holds, and gives back when it takes another model."""
    try:
        status = LocalEngine().status()
    except LocalchatError:
        return 0
    return status.anonymous_bytes if status and status.model else 0
