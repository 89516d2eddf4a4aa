"""`sd-ext publish`: publish LoRAs, samplers, U-Nets and pipelines on the Hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import printable

if TYPE_CHECKING:
    from ..hub import Content

ABOUT = "Publish a LoRA, a sampler, a U-Net or a pipeline on the Hugging Face Hub."
app = typer.Typer(help=ABOUT, no_args_is_help=True)

Repo = Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the Hub; made if it is not there.")]
Licence = Annotated[
    str | None, typer.Option("--license", metavar="NAME", help="As the Hub calls it, such as apache-2.0.")
]
Link = Annotated[str | None, typer.Option("--license-link", metavar="URL", help="Where its text is, for `other`.")]
BaseModel = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="The model on the Hub that it is made for.")]


@app.callback()
def _group() -> None:
    """Publish a LoRA, a sampler, a U-Net or a pipeline on the Hugging Face Hub."""


@dataclass
class Sending:
    """Where something goes, and how: the options that all kinds share."""

    repo_id: Repo
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry-run", metavar="DIR", help="Write what would be sent to this new folder; send nothing."),
    ] = None
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch; made if it is not there.")] = None
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="The commit's first line.")] = None
    allow_mail: Annotated[
        bool, typer.Option("--allow-mail", help="Publish mail addresses too, where there are any.")
    ] = False

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

        options = {"private": self.private, "revision": self.revision, "message": self.message}
        print(publish_content(lambda: make(True), self.repo_id, mail=mail, **options).url)  # type: ignore[arg-type]

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


def published(make: Callable[..., Content]) -> Callable[..., Content]:
    """Make a command of a function that says what is published: its options, and after them those of `Sending`.

    Args:
        make: what makes the content. Gets its own options, `repo_id`, and as `online` whether it may ask the network.
    """
    own = signature(make, eval_str=True, locals={"Content": object}).parameters.values()
    shared = signature(Sending, eval_str=True).parameters.values()
    names = [each.name for each in shared]

    def command(**given: Any) -> None:
        sending = Sending(**{name: given.pop(name) for name in names})
        for value in given.values():
            if isinstance(value, Path):
                value.expanduser().lstat()  # what is not there is said before the Hub is asked
        sending.send(lambda online: make(repo_id=sending.repo_id, online=online, **given))

    options = [each for each in own if each.name not in ("repo_id", "online")]
    every = sorted([*options, *shared], key=lambda each: each.default is not each.empty)  # arguments come first
    command.__signature__ = Signature([each.replace(kind=each.KEYWORD_ONLY) for each in every])  # type: ignore
    app.command(make.__name__, help=make.__doc__)(command)
    return make


@published
def lora(
    source: Annotated[
        Path, typer.Argument(metavar="DIR_OR_FILE", help="The output of `sd-ext train lora`, or any LoRA file.")
    ],
    repo_id: str,
    online: bool,
    base_model: BaseModel = None,
    words: Annotated[str, typer.Option(metavar="TEXT", help="Of a file: what calls it in a prompt.")] = "",
    licence: Licence = None,
    licence_link: Link = None,
) -> Content:
    """Publish a LoRA: both file formats, its pictures and a model card; nothing else leaves this machine."""
    if source.expanduser().is_file():
        from ..hub.kinds import lora_file

        return lora_file(
            source.expanduser(), repo_id, base_model=base_model, words=words, licence=licence,
            licence_link=licence_link, online=online,
        )  # fmt: skip
    given = {"--base-model": base_model, "--words": words, "--license": licence, "--license-link": licence_link}
    if flag := next((flag for flag, value in given.items() if value), None):
        from ..errors import InputError

        raise InputError(f"{flag} is for LoRA files; a run says so itself, and its licence is that of its base model")
    from ..hub.stage import finished_run

    return finished_run(source, repo_id, online)


@published
def sampler(
    source: Annotated[str, typer.Argument(metavar="DIR_OR_NAME", help="A calibrated or saved sampler, or a name.")],
    repo_id: str,
    online: bool,
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_ID", help="For a name: the model whose noise schedule it is for.")
    ] = None,
    licence: Licence = None,
    licence_link: Link = None,
) -> Content:
    """Publish a sampler: its tables, a file that runs them with Diffusers alone, and a card."""
    from ..hub.kinds import sampler

    return sampler(source, repo_id, model=model, licence=licence, licence_link=licence_link)


@published
def unet(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a U-Net, or of a pipeline with one.")],
    repo_id: str,
    online: bool,
    base_model: BaseModel = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Publish its options only, for the base model's weights.")
    ] = False,
    licence: Licence = None,
    licence_link: Link = None,
) -> Content:
    """Publish a U-Net: its config with all options, its weights or not, and a card."""
    from ..hub.kinds import unet

    return unet(
        source.expanduser(), repo_id, base_model=base_model, weights=not no_weights, licence=licence,
        licence_link=licence_link, online=online,
    )  # fmt: skip


@published
def pipeline(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A pipeline's folder, as save_pretrained writes it.")],
    repo_id: str,
    online: bool,
    base_model: BaseModel = None,
    licence: Licence = None,
    licence_link: Link = None,
) -> Content:
    """Publish a pipeline: parts that anybody can load, whatever is installed, and a card."""
    from ..hub.kinds import pipeline

    return pipeline(
        source.expanduser(), repo_id, base_model=base_model, licence=licence, licence_link=licence_link, online=online,
    )  # fmt: skip
