"""Sending a finished LoRA to the Hub: staged, read back, and only then one commit."""

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
    """What was sent: the commit's address and the names of the files."""

    url: str
    files: tuple[str, ...]


def publish(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> Published:
    """Publish the finished LoRA run in `folder` as `repo_id`, in one commit, after it has proven to load again.

    Nothing on the Hub is deleted; files of the same names are replaced, as in any commit.

    Args:
        folder: the output of a finished LoRA run, or the `model` folder in it.
        repo_id: `owner/name`; made if it is not there.
        private: make the repository private. One that is public already is refused.
        revision: the branch to commit to, made if it is not there; None is the main one.
        message: the commit's first line.

    Raises:
        InputError: see `sd_ext.hub.stage.stage`; nothing was sent.
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
    """The Hub's own check of the card's metadata, before there is a repository."""
    from huggingface_hub import ModelCard

    try:
        ModelCard.load(staged / README).validate()
    except ValueError as error:  # an answer of the Hub, not a failure to answer
        raise InputError(f"the Hub does not accept the card: {without_tokens(str(error))}") from None


def _check_private(api: HfApi, repo_id: str) -> None:
    """A repository that is there already stays as public as it is, whatever `create_repo` was asked."""
    if not api.repo_info(repo_id).private:
        raise InputError(f"{repo_id} is there already and public; make it private on the Hub first, or leave --private")


@contextmanager
def in_one_sentence(repo_id: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into a `HubError`; its cause, which may hold the token, is not attached."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise HubError(explain(error, repo_id)) from None


def explain(error: Exception, repo_id: str) -> str:
    """One sentence on what went wrong between here and the Hub, without the token."""
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
    """`text` with what looks like a token, and the one in use, crossed out."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"\b(hf_|Bearer\s+)[\w.-]+", r"\1***", text)
