"""The options that several commands share, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from localchat.chats.records import ChatSettings
from localchat.errors import UsageError
from localchat.paths import paths
from localchat.protocol import Count, PositiveCount, Sampling
from localchat.safe_text import safe_line
from localchat.settings import plainly, settings


class ModelOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `-o` takes beside the sampling settings. `stop` may be given several times."""

    max_tokens: PositiveCount | None = None
    context: PositiveCount | None = None
    gpu_layers: Count | None = None
    stop: list[str] = []
    thinking: bool | None = None
    overflow: Literal["error", "slide"] | None = None


MODEL_OPTION = click.option(
    "-m",
    "--model",
    default="",
    metavar="NAME",
    help="A catalogue name, an installed name, or a path to a GGUF file; without it, the model of the settings, else "
    "the one fetched or verified last.",
)
ENGINE_OPTION = click.option(
    "--engine",
    metavar="URL",
    help="Ask this OpenAI-compatible server instead of this machine's own engine (as engine in the settings).",
)
SYSTEM_OPTION = click.option("-s", "--system", metavar="TEXT", help="The system prompt.")
SET_OPTION = click.option(
    "-o",
    "--option",
    "options",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    help="A setting: " + ", ".join([*Sampling.__struct_fields__, *ModelOptions.__struct_fields__]) + ".",
)
MAX_TOKENS_OPTION = click.option(
    "--max-tokens", metavar="N", help="At most this many tokens in an answer (as -o max_tokens)."
)
TEMPERATURE_OPTION = click.option(
    "--temperature", metavar="T", help="0 takes the likeliest token each time (as -o temperature)."
)
SEED_OPTION = click.option("--seed", metavar="N", help="The same seed gives the same answer (as -o seed).")

_OVERFLOW = ("error", "slide")
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def named_options(max_tokens: str | None, temperature: str | None, seed: str | None) -> tuple[tuple[str, str], ...]:
    """The options that have a name of their own, as `-o` pairs."""
    named = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return tuple((key, value) for key, value in named.items() if value is not None)


def parse_options(pairs: tuple[tuple[str, str], ...]) -> tuple[Sampling, ModelOptions]:
    """Typed settings from `-o KEY VALUE` pairs. Raises `UsageError` naming a key that is unknown or has a bad value."""
    sampling: dict[str, Any] = {}
    other: dict[str, Any] = {}
    known = [*Sampling.__struct_fields__, *ModelOptions.__struct_fields__]
    for key, value in pairs:
        if key not in known:
            close = _close(key, known)
            hint = f"did you mean {close}?" if close else "known are " + ", ".join(known)
            raise UsageError(f"-o {safe_line(key)}: there is no such setting: {hint}")
        if key == "stop":
            # A shell has no easy way to type a line end.
            other.setdefault("stop", []).append(value.replace("\\n", "\n").replace("\\t", "\t"))
        elif key == "overflow":
            if value not in _OVERFLOW:
                raise UsageError(f"-o overflow takes {' or '.join(_OVERFLOW)}, not {safe_line(value)!r}")
            other[key] = value
        elif key == "thinking":
            if value.lower() not in _YES + _NO:
                raise UsageError(f"-o thinking takes true or false, not {safe_line(value)!r}")
            other[key] = value.lower() in _YES
        else:
            _check(key, value, Sampling if key in Sampling.__struct_fields__ else ModelOptions)
            (sampling if key in Sampling.__struct_fields__ else other)[key] = value
    return msgspec.convert(sampling, Sampling, strict=False), msgspec.convert(other, ModelOptions, strict=False)


def _close(key: str, known: list[str]) -> str:
    """The setting that a mistyped `key` most likely is: what it begins, as in "temp", before what it looks like."""
    import difflib

    begun = [name for name in known if name.startswith(key.lower().replace("-", "_"))] if len(key) > 1 else []
    close = begun or difflib.get_close_matches(key, known, n=1)
    return " or ".join(close)


def wishes(
    model: str, system: str | None, pairs: tuple[tuple[str, str], ...], kept: ChatSettings | None = None
) -> ChatSettings:
    """The command line's model, system prompt and `-o` pairs over the person's settings, or over those of a chat.

    The model is a name, an absolute path, or "": the one fetched or verified last. Raises `UsageError`.
    """
    sampling, other = parse_options(pairs)
    base = kept or _own_settings()
    return msgspec.structs.replace(
        base,
        model=model_name(model) if model else base.model,
        system=base.system if system is None else system,
        sampling=msgspec.structs.replace(base.sampling, **_given(sampling)),
        **_given(other),
    )


def _own_settings() -> ChatSettings:
    own = settings()
    return ChatSettings(
        model=model_name(own.model or "", paths().config),
        system=own.system,
        sampling=own.options,
        context=own.context,
        gpu_layers=own.gpu_layers,
    )


def _given(options: msgspec.Struct) -> dict[str, Any]:
    """What was typed of these options."""
    return {name: value for name, value in msgspec.structs.asdict(options).items() if value not in (None, [])}


def _check(key: str, value: str, kind: type[msgspec.Struct]) -> None:
    try:
        msgspec.convert({key: value}, kind, strict=False)
    except msgspec.ValidationError as error:
        # What comes from the command line is always text: that it is some is no news.
        problem = plainly(str(error).partition(" - at ")[0]).removesuffix(", not text")
        raise UsageError(f"-o {key}: {problem}, not {safe_line(value)!r}") from error


def model_name(name: str, folder: Path | None = None) -> str:
    """A model name as the host can use it: a path is made absolute, since the host runs in a folder of its own.

    A relative path is meant from `folder`, or from where the person is. Raises `UsageError` for a name that is no text.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{safe_line(name)} is a name that is no UTF-8 text: rename the file") from None
    if not name.lower().endswith(".gguf") and not name.startswith((".", "~", "/")):
        return name
    path = ((folder or Path()) / Path(name).expanduser()).absolute()
    # What is no file here may still be a name: `owner/repo/file.gguf` in the store.
    return str(path) if path.is_file() or name.startswith((".", "~", "/")) else name
