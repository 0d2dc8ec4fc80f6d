"""The number of layers on GPUs, from where a person sets it to where the engine reads it, and what `status` says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from localchat.chats.records import Node
from localchat.chats.requests import request
from localchat.cli.options import parse_options, wishes
from localchat.cli.status import _lines
from localchat.errors import UsageError
from localchat.protocol import DeviceUse, LoadedModel, Message, Status
from tests.conftest import forget_home


@pytest.mark.parametrize(
    ("setting", "typed", "expected"),
    [
        ("", (), None),
        ("gpu_layers = 7\n", (), 7),
        ("gpu_layers = 7\n", (("gpu_layers", "0"),), 0),
        ("", (("gpu_layers", "9"),), 9),
    ],
)
def test_the_command_line_wins_over_the_settings(
    empty_home: Path, setting: str, typed: tuple[tuple[str, str], ...], expected: int | None
) -> None:
    empty_home.mkdir(parents=True)
    (empty_home / "settings.toml").write_text(setting)
    forget_home()
    asked = request([Node(0, None, Message("user", "hello"))], wishes("", None, typed))
    assert asked.localchat
    assert asked.localchat.gpu_layers == expected


@pytest.mark.parametrize("value", ["-1", "all", "1.5", ""])
def test_what_is_no_number_of_layers_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="-o gpu_layers"):
        parse_options((("gpu_layers", value),))


def test_status_shows_where_the_layers_are() -> None:
    model = LoadedModel(
        "m", "/m.gguf", "llama", 1, 2, 3, 4, 5, 6, 33, 20, [DeviceUse("CUDA0", "A card", 3_000_000_000)]
    )
    status = Status(version="1", pid=1, started=0, idle_s=1, model=model)
    said = [value for label, value in _lines(status) if label == "gpu"]
    assert said == ["20 of 33 layers", "CUDA0 (A card): 3.0 GB"]
    on_processor = msgspec.structs.replace(model, gpu_layers=0, devices=[])
    assert not [label for label, _ in _lines(msgspec.structs.replace(status, model=on_processor)) if label == "gpu"]
