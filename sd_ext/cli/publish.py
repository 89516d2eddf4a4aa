"""`sd-ext publish`: publish LoRAs, samplers, U-Nets and pipelines on the Hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import printable

if TYPE_CHECKING:
    from ..hub import Content

ABOUT = "Publish a LoRA, a sampler, a U-Net or a pipeline on the Hugging Face Hub."
app = typer.Typer(help=ABOUT, no_args_is_help=True)

Repo = Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the Hub; made if it is not there.")]
Dry = Annotated[
    Path | None,
    typer.Option("--dry-run", metavar="DIR", help="Write what would be sent to this new folder; send nothing."),
]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private.")]
Branch = Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch; made if it is not there.")]
Message = Annotated[str | None, typer.Option(metavar="TEXT", help="The commit's first line.")]
Mail = Annotated[bool, typer.Option("--allow-mail", help="Publish mail addresses too, where there are any.")]
Licence = Annotated[
    str | None, typer.Option("--license", metavar="NAME", help="As the Hub calls it, such as apache-2.0.")
]
Link = Annotated[str | None, typer.Option("--license-link", metavar="URL", help="Where its text is, for `other`.")]
BaseModel = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="The model on the Hub that it is made for.")]


@app.callback()
def _group() -> None:
    """Publish a LoRA, a sampler, a U-Net or a pipeline on the Hugging Face Hub."""


@app.command()
def lora(
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_FILE", help="The output of `sd-ext train lora`, or any LoRA file.")
    ],
    repo_id: Repo,
    base_model: BaseModel = None,
    words: Annotated[str, typer.Option(metavar="TEXT", help="Of a file: what calls it in a prompt.")] = "",
    licence: Licence = None,
    licence_link: Link = None,
    dry_run: Dry = None,
    private: Private = False,
    revision: Branch = None,
    message: Message = None,
    allow_mail: Mail = False,
) -> None:
    """Publish a LoRA: both file formats, its pictures and a model card; nothing else leaves this machine."""
    sending = Sending(repo_id, dry_run, private, revision, message, allow_mail)
    if source.expanduser().is_file():

        def of_file(online: bool) -> Content:
            from ..hub.kinds import lora_file

            return lora_file(
                source.expanduser(), repo_id, base_model=base_model, words=words, licence=licence,
                licence_link=licence_link, online=online,
            )  # fmt: skip

        sending.send(of_file)
        return
    given = {"--base-model": base_model, "--words": words, "--license": licence, "--license-link": licence_link}
    if flag := next((flag for flag, value in given.items() if value), None):
        from ..errors import InputError

        raise InputError(f"{flag} is for LoRA files; a run says so itself, and its licence is that of its base model")

    def of_run(online: bool) -> Content:
        from ..hub.stage import finished_run

        return finished_run(source, repo_id, online)

    sending.send(of_run)


@app.command()
def sampler(
    source: Annotated[str, typer.Argument(metavar="DIR_OR_NAME", help="A calibrated or saved sampler, or a name.")],
    repo_id: Repo,
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_ID", help="For a name: the model whose noise schedule it is for.")
    ] = None,
    licence: Licence = None,
    licence_link: Link = None,
    dry_run: Dry = None,
    private: Private = False,
    revision: Branch = None,
    message: Message = None,
    allow_mail: Mail = False,
) -> None:
    """Publish a sampler: its tables, a file that runs them with Diffusers alone, and a card."""

    def made(online: bool) -> Content:
        from ..hub.kinds import sampler

        return sampler(source, repo_id, model=model, licence=licence, licence_link=licence_link)

    Sending(repo_id, dry_run, private, revision, message, allow_mail).send(made)


@app.command()
def unet(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a U-Net, or of a pipeline with one.")],
    repo_id: Repo,
    base_model: BaseModel = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Publish its options only, for the base model's weights.")
    ] = False,
    licence: Licence = None,
    licence_link: Link = None,
    dry_run: Dry = None,
    private: Private = False,
    revision: Branch = None,
    message: Message = None,
    allow_mail: Mail = False,
) -> None:
    """Publish a U-Net: its config with all options, its weights or not, and a card."""

    def made(online: bool) -> Content:
        from ..hub.kinds import unet

        return unet(
            source.expanduser(), repo_id, base_model=base_model, weights=not no_weights, licence=licence,
            licence_link=licence_link, online=online,
        )  # fmt: skip

    Sending(repo_id, dry_run, private, revision, message, allow_mail).send(made)


@app.command()
def pipeline(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A pipeline's folder, as save_pretrained writes it.")],
    repo_id: Repo,
    base_model: BaseModel = None,
    licence: Licence = None,
    licence_link: Link = None,
    dry_run: Dry = None,
    private: Private = False,
    revision: Branch = None,
    message: Message = None,
    allow_mail: Mail = False,
) -> None:
    """Publish a pipeline: parts that anybody can load, whatever is installed, and a card."""

    def made(online: bool) -> Content:
        from ..hub.kinds import pipeline

        return pipeline(
            source.expanduser(),
            repo_id,
            base_model=base_model,
            licence=licence,
            licence_link=licence_link,
            online=online,
        )

    Sending(repo_id, dry_run, private, revision, message, allow_mail).send(made)


class Sending:
    """Where something goes, and how; the arguments are the options of the same names."""

    def __init__(
        self,
        repo_id: str,
        dry_run: Path | None,
        private: bool,
        revision: str | None,
        message: str | None,
        allow_mail: bool,
    ):
        self.repo_id, self.dry_run, self.allow_mail = repo_id, dry_run, allow_mail
        self.options = {"private": private, "revision": revision, "message": message}

    def send(self, make: Callable[[bool], Content]) -> None:
        """Publish, or write what would be; asks about mail addresses where somebody can answer.

        Args:
            make: says what is published; gets whether it may ask the network.
        """
        from ..hub.verify import MailFoundError

        act = self._publish if self.dry_run is None else self._write
        try:
            act(make, self.allow_mail)
        except MailFoundError as error:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            typer.confirm(f"{printable(str(error))}\nPublish it?", abort=True, err=True)
            act(make, True)

    def _publish(self, make: Callable[[bool], Content], mail: bool) -> None:
        from ..hub import publish_content

        print(publish_content(lambda: make(True), self.repo_id, mail=mail, **self.options).url)  # type: ignore[arg-type]

    def _write(self, make: Callable[[bool], Content], mail: bool) -> None:
        from ..hub import stage_content
        from ..hub.stage import README, check_repo_id

        check_repo_id(self.repo_id)
        assert self.dry_run is not None
        content = make(False)
        staged = stage_content(content, self.dry_run, mail)
        for path in sorted(staged.rglob("*")):
            if path.is_file():
                print(path)
        if content.left_out:
            typer.echo(f"not published: {', '.join(map(printable, content.left_out))}", err=True)
        if "\nlicense:" not in (staged / README).read_text("utf-8"):
            typer.echo("the card states no licence, and says why; a dry run asks no one on the network", err=True)
