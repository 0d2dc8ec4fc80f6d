"""Values as they stand in a column: structs as JSON, texts as SQLite takes them.

What a newer version wrote must not keep this one from reading a chat: a field that it does not understand is left out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

_TITLE = 60
"""Characters of a title that is made of the first words."""


def text(value: str) -> str:
    """`value` with lone surrogates replaced: Python puts them where a file name or a terminal's input is not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def one_line(value: str) -> str:
    """`value` as a title: in one line."""
    return " ".join(text(value).split())


def first_words(content: str) -> str:
    """The beginning of a message as a title, cut between words where there are any."""
    line = one_line(content[: 8 * _TITLE])
    if len(line) <= _TITLE:
        return line
    cut = line[:_TITLE]
    return (cut[: cut.rfind(" ")] if cut.rfind(" ") > _TITLE // 2 else cut) + "…"


def encoded(value: msgspec.Struct) -> str:
    """A struct as JSON."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value))).decode()


def decoded(column: str, kind: type[T]) -> T:
    """The struct of type `kind` that `column` holds, as far as it can be understood."""
    try:
        return msgspec.json.decode(column, type=kind)
    except msgspec.DecodeError:
        try:
            return _understood(msgspec.json.decode(column), kind)
        except msgspec.DecodeError:
            return kind()


def _understood(value: Any, kind: type[T]) -> T:
    """`value` as a `kind`, of which every field has a default, without the fields that do not fit."""
    known = {}
    for field in msgspec.structs.fields(kind):
        if not isinstance(value, dict) or field.encode_name not in value:
            continue
        given = value[field.encode_name]
        try:
            known[field.name] = msgspec.convert(given, field.type)
        except msgspec.ValidationError:
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                known[field.name] = _understood(given, field.type)
    return kind(**known)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    return value
