"""`localchat export`: copy a model and its record to a folder, such as a USB stick."""

from __future__ import annotations

from pathlib import Path

import click

from localchat.cli.following import files, following
from localchat.cli.progress import ProgressLine, size
from localchat.models.upkeep.exporting import export
from localchat.safe_text import safe_line


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file of the same name that has other bytes.")
def command(name: str, folder: Path, force: bool) -> None:
    """Copy a model, its projector and their records to DIR, verified on the way.

    The files land as DIR/owner/repo/file.gguf with file.gguf.json beside each. On the other machine, either run
    `localchat import DIR/owner/repo/file.gguf`, or copy the folders in DIR into localchat's models folder
    (`localchat du` says where that is). Other programs can open the .gguf files as they are.
    """
    with ProgressLine() as line:
        done = export(name, folder.expanduser(), force=force, on_progress=following(line))
    model = safe_line(done.model.name)
    if not done.copied:
        print(f"{model} was there already, with the same bytes.")
    else:
        print(f"{model} is copied and verified ({files(len(done.copied))}, {size(done.size)}).")
    for path in [*done.copied, *done.there]:
        print(f"  {safe_line(str(path))}")
