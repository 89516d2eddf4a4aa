"""Send something to the Hub: put the files together, verify them, and upload them in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HubError, InputError
from .content import Content, stage_content
from .stage import README, check_repo_id, finished_run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".onnx", ".gguf", ".json", ".py")
"""Of files that make a repository something: pictures, cards and texts do not."""


@dataclass(frozen=True)
class Published:
    """What was uploaded: the commit's URL and the names of the files."""

    url: str
    files: tuple[str, ...]


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    mail: bool = False,
) -> Published:
    """Publish a finished LoRA run in one commit, after verifying that its files load; see `publish_content`.

    Args:
        folder: the output folder of a finished LoRA run, or the `model` folder in it.
        repo_id, private, revision, message, mail: as there.
    """
    options = {"private": private, "revision": revision, "message": message, "mail": mail}
    return publish_content(lambda: finished_run(folder, repo_id, online=True), repo_id, **options)


def publish_content(
    make: Callable[[], Content],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    mail: bool = False,
) -> Published:
    """Publish something in one commit, after verifying all of it.

    Nothing on the Hub is deleted; files of the same names are replaced, as in any commit. After a broken connection,
    the same call goes on: large files that had arrived are not sent again.

    Args:
        make: says what is published; called when the token is known to be good.
        repo_id: `owner/name`; the repository is created if it does not exist.
        private: create a private repository. An existing public one is refused.
        revision: the branch to commit to, created if it does not exist; None is the main branch.
        message: the commit's first line; None is a standard one.
        mail: whether mail addresses may be published.

    Returns:
        The commit's URL and the names of the files.

    Raises:
        InputError: it cannot be published, or the repository holds something else; nothing was sent.
        HubError: the Hub refused, or could not be reached.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    api = HfApi(library_name="sd_ext")
    with in_one_sentence(repo_id):
        _check_owner(api, repo_id)
    with tempfile.TemporaryDirectory(prefix="sd-ext-publish-") as work:
        content = make()
        staged = stage_content(content, Path(work) / "model", mail)
        with in_one_sentence(repo_id):
            return _send(api, staged, repo_id, private, revision, message or content.what)


def _check_owner(api: HfApi, repo_id: str) -> None:
    """Raise `InputError` if the token in use is nobody's, or of somebody who does not own the repository."""
    told = api.whoami()
    owner, names = repo_id.partition("/")[0], [told.get("name"), *(each.get("name") for each in told.get("orgs", ()))]
    if owner.lower() not in [str(name).lower() for name in names]:
        raise InputError(
            f"{repo_id} is not yours: the token in use is of {names[0]}; publish as {names[0]}/... instead"
        )


def _send(api: HfApi, staged: Path, repo_id: str, private: bool, revision: str | None, message: str) -> Published:
    files = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    _check_vacant(api, repo_id, files)
    _check_card_online(staged)
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private:
        _check_private(api, repo_id)
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=staged, commit_message=message, revision=revision, repo_type="model"
    )
    return Published(commit.commit_url, tuple(files))


def _check_vacant(api: HfApi, repo_id: str, files: Sequence[str]) -> None:
    """Raise `InputError` if the repository is there and holds a model that shares no file with what is to be sent."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = [name for name in api.list_repo_files(repo_id) if name.endswith(ENDINGS)]
    except RepositoryNotFoundError:
        return
    if there and not set(there) & set(files):
        raise InputError(
            f"{repo_id} holds something else ({there[0]}); choose another name, or empty it on the Hub first"
        )


def _check_card_online(staged: Path) -> None:
    """Let the Hub validate the card's metadata, before the repository is created."""
    from huggingface_hub import ModelCard

    try:
        ModelCard.load(staged / README).validate()
    except ValueError as error:  # the Hub has answered that the card is invalid
        raise InputError(f"the Hub does not accept the card: {without_tokens(str(error))}") from None


def _check_private(api: HfApi, repo_id: str) -> None:
    """Raise `InputError` if the repository is public; `create_repo` does not change one that exists already."""
    if not api.repo_info(repo_id).private:
        raise InputError(f"{repo_id} is there already and public; make it private on the Hub first, or leave --private")


@contextmanager
def in_one_sentence(repo_id: str) -> Iterator[None]:
    """Context manager that turns any exception of the Hub's client into a `HubError`.

    The original exception is not attached, because it may contain the token.

    Args:
        repo_id: the repository, for the message.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise HubError(explain(error, repo_id)) from None


def explain(error: Exception, repo_id: str) -> str:
    """One sentence, without the token, on why publishing failed.

    Args:
        error: what the Hub's client raised.
        repo_id: the repository.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            "the Hub knows no valid token here, or it has expired; run `hf auth login` with one that may write, or set "
            "HF_TOKEN"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off here: unset HF_HUB_OFFLINE to publish"
    if status == 403:
        return f"the token in use may not write to {repo_id}; use one with write permission for its owner"
    if status == 404:
        return f"the Hub finds no owner or branch for {repo_id}, or the token in use may not see it"
    if status is not None:
        return f"the Hub answered {status} to publishing {repo_id}: {_short(error)}"
    return f"the Hub could not be reached, or not to the end ({_short(error)}); publish again when it can"


def _short(error: Exception) -> str:
    text = without_tokens(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"


def without_tokens(text: str) -> str:
    """`text` with the token in use, and whatever looks like a token, replaced by asterisks."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"\b(hf_|Bearer\s+)[\w.-]+", r"\1***", text)
