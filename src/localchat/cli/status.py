"""`localchat status`: what the engine holds in memory, and for how long."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import click

from localchat.cli.progress import seconds, size
from localchat.client.local import LocalEngine
from localchat.paths import paths
from localchat.protocol import LoadedModel, Status
from localchat.safe_text import json_text, safe_line
from localchat.settings import settings, size_bytes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (null where no engine runs).")
def command(as_json: bool) -> None:
    """Show what is loaded, how big it is, and how long it stays."""
    status = LocalEngine().status()
    if as_json:
        print(json_text(status))
    elif status:
        print("\n".join(f"{label + ':':<10} {safe_line(value)}" for label, value in _lines(status)))
    else:
        print("No engine is running; it starts by itself with the first question.")


def _lines(status: Status) -> list[tuple[str, str]]:
    if status.active or status.queued:
        answers = "one answer" if status.active == 1 else f"{status.active} answers"
        stays = f"busy with {answers}, {status.queued} waiting"
    elif status.leaves_in_s is not None:
        stays = f"idle for {seconds(status.idle_s)}, leaves memory in {seconds(status.leaves_in_s)}"
    else:
        stays = f"idle for {seconds(status.idle_s)}, stays until it is stopped"
    lines = [
        ("engine", f"version {status.version}, process {status.pid}, up {seconds(time.time() - status.started)}"),
        ("state", f"{stays}; {status.answered} answered"),
        ("memory", f"{size(status.anonymous_bytes)} of its own, {size(status.resident_bytes)} with mapped files"),
    ]
    if status.max_ram:
        lines.append(("ceiling", f"{size(status.max_ram)} (--max-ram), of which {size(status.taken_bytes)} are taken"))
    if model := status.model:
        lines += [
            ("model", f"{model.name} ({model.architecture}, {model.parameters / 1e6:,.0f} M parameters)"),
            ("file", f"{model.path} ({size(model.file_bytes)})"),
            ("context", f"{model.context:,} tokens (trained for {model.context_trained:,}), {size(model.kv_bytes)}"),
            ("threads", _threads(model)),
            *(("gpu", line) for line in _gpu_lines(model)),
        ]
        if model.kept_bytes:
            lines.append(("kept", f"{size(model.kept_bytes)} of what was read, beside the context"))
    else:
        lines.append(("model", "none loaded"))
    most = size_bytes(settings().prefix_cache)
    on_disk = f"{size(_bytes_in(paths().prefixes))} of at most {size(most)} on disk" if most else "none on disk"
    lines.append(("prefixes", on_disk))
    return [*lines, ("address", status.address), ("log", status.log)]


def _threads(model: LoadedModel) -> str:
    if model.prefill_threads in (0, model.threads):
        return str(model.threads)
    return f"{model.threads} while answering, {model.prefill_threads} while reading"


def _bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder, as far as they can be seen; files may come and go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total


def _gpu_lines(model: LoadedModel) -> list[str]:
    if not model.devices:
        return []
    lines = [f"{model.gpu_layers} of {model.layers} layers"]
    return lines + [f"{device.name} ({device.description}): {size(device.bytes)}" for device in model.devices]
