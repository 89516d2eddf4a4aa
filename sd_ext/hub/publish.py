"""Send a finished LoRA to the Hub: put the files together, verify them, and upload them in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HubError, InputError
from .stage import README, stage

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MESSAGE = "LoRA in Diffusers and kohya formats, pictures and card"


@dataclass(frozen=True)
class Published:
    """What was uploaded: the commit's URL and the names of the files."""

    url: str
    files: tuple[str, ...]


def publish(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> Published:
    """Publish a finished LoRA run in one commit, after verifying that its files load.

    Nothing on the Hub is deleted; files of the same names are replaced, as in any commit.

    Args:
        folder: the output folder of a finished LoRA run, or the `model` folder in it.
        repo_id: `owner/name`; the repository is created if it does not exist.
        private: create a private repository. An existing public one is refused.
        revision: the branch to commit to, created if it does not exist; None is the main branch.
        message: the commit's first line; None is a standard one.

    Returns:
        The commit's URL and the names of the files.

    Raises:
        InputError: the run cannot be published (see `sd_ext.hub.stage.stage`); nothing was sent.
        HubError: the Hub refused, or could not be reached.
    """
    with tempfile.TemporaryDirectory(prefix="sd-ext-publish-") as work:
        staged = stage(folder, Path(work) / "model", repo_id, online=True)
        with in_one_sentence(repo_id):
            return _send(staged, repo_id, private, revision, message or MESSAGE)


def _send(staged: Path, repo_id: str, private: bool, revision: str | None, message: str) -> Published:
    from huggingface_hub import HfApi

    api = HfApi(library_name="sd_ext")
    _check_card_online(staged)
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private:
        _check_private(api, repo_id)
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=staged, commit_message=message, revision=revision, repo_type="model"
    )
    files = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    return Published(commit.commit_url, tuple(files))


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
        return "the Hub knows no valid token here; run `hf auth login` with a token that may write, or set HF_TOKEN"
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
