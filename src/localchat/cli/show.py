"""`localchat show`: what is known of a model."""

from __future__ import annotations

from datetime import UTC

import click
import msgspec

from localchat.cli.progress import ProgressLine, size
from localchat.errors import LocalchatError
from localchat.models.upkeep.details import Details, details
from localchat.safe_text import json_text, safe_line, safe_text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, the chat template included.")
@click.option("--template", is_flag=True, help="Print the chat template and nothing else.")
def command(name: str, as_json: bool, template: bool) -> None:
    """Show what a model's file, its record and the catalogue say: of one that is here, a file, or a catalogue name."""
    found = details(name)
    if as_json:
        print(json_text(found))
        return
    if template:
        if found.template is None:
            reason = "its file has none" if found.path and not found.problem else "its file cannot be read"
            reason = reason if found.architecture else "its file is not here"
            raise LocalchatError(f"there is no chat template of {safe_line(found.name)} to show ({reason})")
        print(safe_text(found.template))
        return
    lines = [(label, value) for label, value in _lines(found) if value]
    width = max(len(label) for label, _ in lines) + 1
    for label, value in lines:
        print(f"{label + ':':<{width}}  {safe_line(value)}")
    with ProgressLine() as line:
        if found.problem:
            line.note(found.problem)
        elif found.template is not None and not found.template_known:
            line.note(
                "its chat template is not a known one: it decides what the model reads around your words, so read it "
                f"with `localchat show {found.name} --template` before you trust it"
            )


def _lines(found: Details) -> list[tuple[str, str]]:
    return [
        ("name", found.name),
        ("state", _state(found)),
        ("file", found.path + (f" and {found.parts - 1} more parts" if found.parts > 1 else "")),
        ("size", size(found.size) if found.size else ""),
        ("quantization", found.quantization),
        ("also offered as", ", ".join(one for one in found.quantizations if one != found.quantization)),
        ("title", found.title),
        ("architecture", found.architecture),
        ("parameters", _count(found.parameters)),
        ("trained context", f"{found.context:,} tokens" if found.context else ""),
        ("layers", str(found.layers or "")),
        ("license", f"{found.license} (says {_who(found.license_from)})" if found.license else "not stated"),
        ("languages", ", ".join(found.languages)),
        ("abilities", ", ".join(found.abilities)),
        ("projector", found.projector),
        ("sampling", _sampling(found)),
        ("sha256", found.sha256 + ("" if found.installed or not found.sha256 else " (pinned by the catalogue)")),
        ("verified", found.verified.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if found.verified else ""),
        ("source", found.source),
        ("revision", found.revision),
        ("chat template", _template(found)),
    ]


def _state(found: Details) -> str:
    if found.problem:
        return "DAMAGED or unreadable"
    if found.installed:
        return "installed" if found.verified else "installed, to be verified when first used"
    return "a file outside the models folder, not verified" if found.architecture else "not here: can be fetched"


def _who(source: str) -> str:
    return "the catalogue" if source == "catalogue" else source


def _count(parameters: int | None) -> str:
    if not parameters:
        return ""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _sampling(found: Details) -> str:
    values = {key: value for key, value in msgspec.structs.asdict(found.sampling).items() if value is not None}
    if not values:
        return "the engine's own defaults"
    return ", ".join(f"{key} {value}" for key, value in values.items()) + f" ({found.sampling_from})"


def _template(found: Details) -> str:
    if not found.architecture:
        return ""
    if found.template is None:
        return "none in the file"
    if found.template_known == "catalogue":
        return "known: the catalogue vouches for this file"
    if found.template_known:
        return f"known: {found.template_known}"
    return f"NOT A KNOWN ONE ({len(found.template):,} characters)"
