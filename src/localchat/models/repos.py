"""What a hub offers: the GGUF files of a repo with sizes and hashes, and repos that match some words.

Asks through huggingface_hub, whose errors become sentences here. Moves no file: that is `fetch`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from localchat import __version__
from localchat.errors import FetchError, NoSuchModel
from localchat.models import hub
from localchat.models.names import check_repo
from localchat.models.transfer.connection import SOCKS, TransportError
from localchat.models.transfer.transport import check_url, host_of
from localchat.safe_text import safe_line
from localchat.settings import is_offline

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT_S = 15.0
_TRIES = 3
_TELLING = 160
_MOST_FILES = 4096
"""GGUF files of one repo that are looked at; honest ones have some dozens."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo: its path there, its size in bytes and its sha256, where the hub says them."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Repo:
    """A repo of a hub at one commit, with its GGUF files. `gated`: its licence must be accepted on its page first."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]
    license: str = ""
    gated: bool = False
    downloads: int = 0


def listing(repo: str, revision: str = "main") -> Repo:
    """The GGUF files of a repo. Raises `NoSuchModel` where there is no such repo or revision, and `FetchError`."""
    check_repo(repo)
    with _sentences(repo, revision) as api:
        info = _again(lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S))
        return _repo(info, repo)


def search(words: str, limit: int) -> list[str]:
    """Names of repos with GGUF files that match `words`, the most downloaded first. Raises `FetchError`."""
    with _sentences(words, "") as api:
        from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

        def ask() -> Any:
            # The library's own `list_models` has no time limit, tries for half a minute and writes to stderr meanwhile.
            answer = get_session().get(
                f"{api.endpoint}/api/models",
                params={"search": words, "filter": "gguf", "sort": "downloads", "limit": limit},
                headers=dict(hub.identity()),
                timeout=_TIMEOUT_S,
            )
            hf_raise_for_status(answer)
            return answer.json()

        return [str(info["id"]) for info in _again(ask)]


def _repo(info: Any, name: str) -> Repo:
    files: list[RemoteFile] = []
    for sibling in info.siblings or ():
        if not sibling.rfilename.lower().endswith(".gguf"):
            continue
        if len(files) == _MOST_FILES:
            break
        # The library's own class for this is a dict as well; older hubs send the hash alone.
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        size = sibling.size if isinstance(sibling.size, int) and sibling.size > 0 else None
        files.append(RemoteFile(sibling.rfilename, size, sha256 if hub.is_sha256(sha256) else None))
    tags = [tag for tag in info.tags or () if isinstance(tag, str)]
    stated = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
    commit = info.sha if isinstance(info.sha, str) else ""
    downloads = info.downloads if isinstance(info.downloads, int) else 0
    return Repo(name, commit, tuple(files), stated, bool(info.gated), downloads)


@contextmanager
def _sentences(what: str, revision: str) -> Iterator[HfApi]:
    """The library, ready to ask; its errors become one sentence with the next step."""
    if is_offline():
        raise FetchError(
            f"{safe_line(what)} would have to be looked up at the hub, and localchat is set to stay offline: "
            "leave out --offline, or set LOCALCHAT_OFFLINE=0"
        )
    endpoint = hub.endpoint()
    where = host_of(endpoint)
    try:
        check_url(endpoint)  # the library would send a token over plain http too
    except TransportError as error:
        raise FetchError(f"{error.reason}: set HF_ENDPOINT to an https:// address, or unset it") from error
    import httpx2
    from huggingface_hub import HfApi, errors

    shown = safe_line(what)
    try:
        yield HfApi(endpoint=endpoint, library_name="localchat", library_version=__version__)
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{shown} wants its licence accepted first: do that at {endpoint}/{shown}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NoSuchModel(f"{shown} has no revision {safe_line(revision)}: leave it out, or choose another") from error
    except errors.RepositoryNotFoundError as error:
        token = "the token was refused, or " if os.environ.get("HF_TOKEN") else ""
        raise NoSuchModel(
            f"{where} has no repo {shown} ({token}it shows it only to those it knows): check its spelling, "
            f'find it with `localchat models --search "{shown.rpartition("/")[2]}"`, or set HF_TOKEN'
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise FetchError(f"{shown} cannot be looked up, as HF_HUB_OFFLINE is set: unset it") from error
    except errors.HFValidationError as error:
        raise NoSuchModel(f"{shown} is no name of a repo: write owner/repo") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            raise FetchError(f"{where} refused the token: set HF_TOKEN to a valid one, or unset it") from error
        if status == 429:
            raise FetchError(f"{where} is asked too often: try again in some minutes") from error
        raise FetchError(f"{where} answered {status} when asked for {shown}: try again later") from error
    except ImportError as error:
        raise FetchError(f"{SOCKS}; models that are here work without it") from error
    except (TypeError, KeyError, AttributeError, JSONDecodeError, RecursionError) as error:
        raise FetchError(
            f"{where} sent something that is no answer to a question for models: try again later"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        reason = safe_line(str(error))[:_TELLING] or type(error).__name__
        raise FetchError(
            f"{where} cannot be reached ({reason}): check the connection; models that are here work without it"
        ) from error


def _again(ask: Callable[[], T]) -> T:
    """Ask, and ask again where the hub stumbles: it does for a moment, now and then."""
    import time

    from huggingface_hub import errors

    for attempt in range(1, _TRIES + 1):
        try:
            return ask()
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status not in (429, 500, 502, 503, 504) or attempt == _TRIES:
                raise
            time.sleep(0.4 * attempt)
    raise AssertionError
