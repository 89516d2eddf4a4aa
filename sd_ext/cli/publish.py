"""`sd-ext publish`: publish a finished LoRA run on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Publish a finished LoRA on the Hugging Face Hub.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Publish a finished LoRA on the Hugging Face Hub."""


@app.command()
def lora(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output of `sd-ext train lora`.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the Hub; made if it is not there.")],
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry-run", metavar="DIR", help="Write what would be sent to this new folder; send nothing."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch; made if it is not there.")] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="The commit's first line.")] = None,
) -> None:
    """Publish a LoRA: both file formats, its pictures and a model card; nothing else leaves this machine."""
    from ..hub import publish, stage
    from ..hub.stage import left_out

    if dry_run is None:
        sent = publish(folder, repo_id, private=private, revision=revision, message=message)
        print(sent.url)
        return
    staged = stage(folder, dry_run, repo_id)
    for path in sorted(staged.rglob("*")):
        if path.is_file():
            print(path)
    if names := left_out(folder, staged):
        typer.echo(f"not published: {', '.join(names)}", err=True)
    if "\nlicense:" not in (staged / "README.md").read_text("utf-8"):
        typer.echo("the card states no licence, and says why; a dry run asks no one on the network", err=True)
