"""The person's own settings (`settings.toml` in the config folder), read once; a fault names file, line and key."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from localchat.errors import UsageError
from localchat.paths import paths
from localchat.protocol import Sampling
from localchat.safe_text import safe_line

T = TypeVar("T")
Positive = Annotated[int, msgspec.Meta(gt=0)]
# What `size_bytes` takes. A bare number would be bytes, which nobody means; 0 alone needs no unit.
_SIZE = r"\s*(\d+(?:\.\d+)?)\s*([KMGTkmgt])(?:i?[Bb])?\s*"
Size = Annotated[str, msgspec.Meta(pattern=f"^{_SIZE}$")]
SizeOrNone = Annotated[str, msgspec.Meta(pattern=f"^(?:{_SIZE}|\\s*0\\s*)$")]
_MOST = 1 << 60  # what counters on disk and in messages can hold, and no machine has
A_SIZE = 'it takes a size such as "6G"'
ThemeName = Literal["dark", "light", "contrast", "ansi"]


class Preset(Sampling, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A system prompt and sampling values under one name; what it leaves out is the model's own choice."""

    system: str | None = None

    def sampling(self) -> Sampling:
        """The sampling values on their own."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.__struct_fields__})


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person can set once instead of typing it each time; an option on the command line wins.

    `idle`, `threads`, `prefix_cache` and `drafts` are read when the engine starts; so are `context`, `gpu_layers` and
    (by `localchat serve`) `max_ram`, for programs that ask without naming them. localchat's own commands name these
    three with each question. All else counts with the next command; a chat that is open keeps what it began with.
    """

    model: str | None = None
    """The model used where none is named: a catalogue name, an installed name, or a path to a GGUF file (a relative one
    is meant from the folder that this file is in)."""

    system: str | None = None
    """The system prompt used where none is given."""

    engine: str | None = None
    """The base URL of an OpenAI-compatible server to use instead of this machine's own engine."""

    offline: bool = False
    """Open no network connection, whatever is asked (as `LOCALCHAT_OFFLINE=1`)."""

    idle: Positive = 300
    """Seconds without a question after which the engine process leaves memory."""

    threads: Positive | None = None
    """The most CPU threads that the engine uses; unset, one for each physical core that it may use."""

    context: Positive | None = None
    """The context window, in tokens; unset, it grows with the conversation as far as model and memory allow."""

    gpu_layers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """How many of a model's layers lie on GPUs, where the engine was built for one; 0: none; unset, as many as fit."""

    max_ram: Size | None = None
    """The most memory that the engine may take ("6G"): weights, KV cache, buffers, and what it keeps of prompts; unset,
    what the machine has free."""

    prefix_cache: SizeOrNone = "4G"
    """How much room on disk what the model has read may take, so that it is never read twice; "0": none is kept."""

    drafts: bool = True
    """Look in the text so far for what the model may say next, while that measurably makes answers faster."""

    show_thinking: bool = False
    """Show what a model thinks before it answers (`ask` writes it to stderr)."""

    options: Sampling = Sampling()
    """Sampling defaults: temperature, top_p, top_k, min_p, repeat_penalty, seed and the like."""

    presets: dict[str, Preset] = {}
    """Named system prompts with sampling values (`[presets.NAME]`), to choose from in the settings of a chat."""

    theme: ThemeName = "dark"
    """The chat's colours; "ansi" takes the terminal's own sixteen. The key that changes the theme wins until this line
    is changed."""

    vim: bool = False
    """Move by vim's keys while reading, and edit in its normal mode while writing."""

    newline_on_enter: bool = False
    """Enter begins a new line and Ctrl+J sends, instead of the other way round."""

    sidebar: bool = False
    """Show the list of chats from the start."""

    titles: bool = True
    """Let the model give each chat its title; otherwise that is the first words of the chat."""

    keep_asks: bool = True
    """Keep what `localchat ask` was asked and answered, apart from the chats."""

    keys: dict[str, str] = {}
    """Keys of your own for the chat's actions, by the action's name: `again = "ctrl+y"`; several with commas."""


@cache
def settings() -> Settings:
    """The settings of this process; without a file, the defaults. Raises `UsageError` naming file, line and key."""
    return load(paths().settings)


def is_offline() -> bool:
    """Whether the person forbade every network connection; what the environment says wins over the settings."""
    said = os.environ.get("LOCALCHAT_OFFLINE", "")
    return said != "0" if said else settings().offline


def max_ram() -> int | None:
    """Bytes that the engine may take altogether, or None; what the environment says wins over the settings.

    Raises `UsageError` where that is no size.
    """
    if said := os.environ.get("LOCALCHAT_MAX_RAM", ""):
        return ram_bytes(said, "LOCALCHAT_MAX_RAM")
    return None if settings().max_ram is None else ram_bytes(settings().max_ram or "", f"max_ram in {paths().settings}")


def ram_bytes(text: str, where: str) -> int:
    """The bytes of an amount of memory ("6G"). Raises `UsageError` naming `where` it stands if it is none."""
    try:
        if count := size_bytes(text):
            return count
    except ValueError:
        pass
    raise UsageError(f"{where}: {A_SIZE}, not {safe_line(text)!r}")


def size_bytes(text: str) -> int:
    """The bytes of a size as people write it: "6G", "6 GiB" and "6 gb" all mean 6 times 1024 times 1024 times 1024.

    Raises `ValueError` for anything else; "0" needs no unit.
    """
    if text.strip() == "0":
        return 0
    found = re.fullmatch(_SIZE, text)
    if not found:
        raise ValueError(f"{text!r} is no size")
    return min(int(float(found[1]) * (1 << 10 * ("KMGT".index(found[2].upper()) + 1))), _MOST)


def load(file: Path) -> Settings:
    """Read one settings file. Raises `UsageError` with file, line and key where it is wrong."""
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror}): make it readable or remove it") from error
    return decode_toml(file, raw, Settings)


def decode_toml(file: Path, raw: bytes, kind: type[T]) -> T:
    """Validate TOML text as `kind`. Raises `UsageError` naming file, line and key."""
    import tomllib

    try:
        text = raw.decode()
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).removesuffix(")").partition(" (at ")
        place = place.replace("end of document", f"line {len(text.splitlines())}, its end")
        raise UsageError(f"{file}, {place or 'somewhere'}: not valid TOML: {problem}") from error
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `")
        steps = _steps(where)
        if "[...]" in where:
            steps.insert(1, _faulty(kind, data, str(steps[0])))
        unknown = re.search(r"unknown field `(.+?)`", problem)
        if unknown:
            steps.append(unknown[1])
            problem = "there is no such key"
        if problem.startswith("Invalid enum value") and (choices := _choices(kind, steps)):
            problem = f"it takes {' or '.join(choices)}"
        if _takes_size(kind, steps):
            problem = A_SIZE
        # A fault of the whole file (an entry listed twice) says by itself where to look.
        where = f", line {_line_of(text, steps)}, key {_spoken(data, steps)}" if steps else ""
        raise UsageError(f"{file}{where}: {plainly(problem)}") from error


def _faulty(kind: Any, data: dict[str, Any], key: str) -> str:
    """The name of the first wrong entry in the table at `key`: msgspec does not say which it is."""
    of = get_args(get_type_hints(kind, include_extras=True)[key])[1]
    for name, entry in data[key].items():
        try:
            msgspec.convert(entry, of)
        except msgspec.ValidationError:
            return str(name)
    return "?"


def _choices(kind: Any, steps: list[str | int]) -> list[str]:
    """The texts that a key of a settings struct may have, where those are few."""
    hints = get_type_hints(kind) if len(steps) == 1 else {}
    return [f'"{choice}"' for choice in get_args(hints.get(str(steps[0])) if steps else None)]


def _takes_size(kind: Any, steps: list[str | int]) -> bool:
    """Whether a key of a settings struct takes a size."""
    hints = get_type_hints(kind, include_extras=True) if len(steps) == 1 else {}
    hint = hints.get(str(steps[0])) if steps else None
    return any(one in (Size, SizeOrNone) for one in (hint, *get_args(hint)))


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_BOUNDS = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}


def plainly(problem: str) -> str:
    """msgspec's word on a value ("Expected `int | null` >= 1, got `str`") as a person would say it."""
    if missing := re.fullmatch(r"Object missing required field `(.+)`", problem):
        return f"the key {missing[1]} is missing"
    said = re.fullmatch(r"Expected `([^`]+)`(?: (>=|>|<=|<) (\S+?))?(?:, got `([^`]+)`)?", problem)
    kinds = [kind for kind in said[1].split(" | ") if kind != "null"] if said else []
    if not said or not all(kind in _KINDS for kind in kinds):
        return problem[:1].lower() + problem[1:].replace("`", '"')
    bound = f" {_BOUNDS[said[2]]} {said[3]}" if said[2] else ""
    got = f", not {_KINDS.get(said[4], said[4])}" if said[4] else ""
    return f"it takes {' or '.join(_KINDS[kind] for kind in kinds)}{bound}{got}"


def _steps(where: str) -> list[str | int]:
    """Split msgspec's path to a fault (`$.model[0].size`) into keys and 0-based places in arrays."""
    found = re.findall(r"\.([\w-]+)|\[(\d+)\]", where)
    return [int(place) if place else key for key, place in found]


def _spoken(data: object, steps: list[str | int]) -> str:
    """The path for a person: an array's entry goes by its `name` where it has one, else by its number from 1."""
    spoken = ""
    for step in steps:
        if isinstance(step, str):
            spoken += f".{step}" if spoken else step
            data = data.get(step) if isinstance(data, dict) else None
        else:
            data = data[step] if isinstance(data, list) and step < len(data) else None
            name = data.get("name") if isinstance(data, dict) else None
            spoken += f"[{safe_line(name) if isinstance(name, str) else step + 1}]"
    return spoken


def _line_of(text: str, steps: list[str | int]) -> int:
    """The 1-based line where the key at the end of `steps` is set, or else the closest thing around it."""
    lines = text.splitlines()
    headers = {
        number: (match[1] == "[[", re.findall(r"[\w-]+", match[2]))
        for number, line in enumerate(lines)
        if (match := re.match(r"\s*(\[\[?)([\w\s.\"'-]+)\]", line))
    }
    at = 0
    table: list[str] = []
    for position, step in enumerate(steps):
        if isinstance(step, int):
            continue
        table.append(step)
        place = steps[position + 1] if position + 1 < len(steps) else None
        wanted = [number for number, (array, name) in headers.items() if number >= at and name == table]
        number = place if isinstance(place, int) else 0
        if len(wanted) > number and headers[wanted[number]][0] == isinstance(place, int):
            at = wanted[number]
            continue
        # No header of its own: the key stands in the table that begins at `at`, perhaps inside inline braces.
        end = next((start for start in headers if start > at), len(lines))
        pattern = re.compile(rf"(^|[\s{{,.\"'\[]){re.escape(step)}[\"']?\s*(=|\.)")
        at = next((line for line in range(at, end) if pattern.search(lines[line])), at)
        if isinstance(place, int) and not re.search(r"=\s*\[[^{\]]*\]", lines[at]):
            bare = [re.sub(r'"[^"]*"', "", line) for line in lines[at:end]]  # a brace in a text opens nothing
            braces = [at + number for number, line in enumerate(bare) for _ in range(line.count("{"))]
            at = braces[place] if place < len(braces) else at
    return at + 1
