from __future__ import annotations

import importlib
import importlib.util

import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from sd_ext.errors import HubError, InputError
from sd_ext.hub import publish, stage

# What the Hub's client speaks through: version 1 is made of httpx, version 2 of its successor.
httpx = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
REPO = "alice/brush"
TOKEN = "hf_" + "aB3" * 11


def answer(status: int, kind: type = HfHubHTTPError, text: str = "no") -> Exception:
    request = httpx.Request("POST", "https://huggingface.co/api")
    return kind(text, response=httpx.Response(status, request=request))


def test_one_commit_of_exactly_the_staged_files(finished, hub, tmp_path):
    sent = publish(finished, REPO)
    assert hub.names == ["hf_hub_download", "validate", "create_repo", "upload_folder"]
    staged = stage(finished, tmp_path / "staged", REPO)
    expected = {p.relative_to(staged).as_posix(): p.read_bytes() for p in staged.rglob("*") if p.is_file()}
    readme, dry = (files.pop("README.md").decode() for files in (hub.sent, expected))
    assert hub.sent == expected
    assert readme == dry.replace(" without the network", "")  # the licence is looked up only when publishing
    assert sent.url.startswith("https://huggingface.co/alice/brush/commit/")
    assert set(sent.files) == {*hub.sent, "README.md"}
    assert dict(hub.calls)["create_repo"] == {"repo_id": REPO, "private": None, "exist_ok": True}


def test_branch_message_and_privacy(finished, hub):
    publish(finished, REPO, private=True, revision="v2", message="Second try")
    assert hub.names[2:] == ["create_repo", "repo_info", "create_branch", "upload_folder"]
    calls = dict(hub.calls)
    assert calls["create_repo"]["private"] is True
    assert calls["create_branch"] == {"repo_id": REPO, "branch": "v2", "exist_ok": True}
    assert (calls["upload_folder"]["revision"], calls["upload_folder"]["commit_message"]) == ("v2", "Second try")


def test_private_is_not_published_in_public(finished, hub):
    hub.public = True
    with pytest.raises(InputError, match="there already and public"):
        publish(finished, REPO, private=True)
    assert "upload_folder" not in hub.names


def test_nothing_is_asked_of_the_hub_before_all_is_well(out, edit, hub):
    edit(prompts=[TOKEN])
    with pytest.raises(InputError, match="an access token"):
        publish(out, REPO)
    assert set(hub.names) <= {"hf_hub_download"}  # the licence of the base model
    with pytest.raises(InputError):
        publish(out, "no repository")
    assert not hub.sent


def test_a_card_the_hub_does_not_accept(finished, hub):
    hub.fails["validate"] = ValueError('"license" must be one of ...')
    with pytest.raises(InputError, match='does not accept the card: "license" must'):
        publish(finished, REPO)
    assert hub.names[-1] == "validate"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("Token is required"), "hf auth login"),
        (answer(401), "hf auth login"),
        (answer(403), "may not write to alice/brush"),
        (answer(404, RepositoryNotFoundError), "no owner or branch"),
        (answer(500, text="server\nerror"), "answered 500 to publishing alice/brush: server error"),
        (OfflineModeIsEnabled("offline"), "unset HF_HUB_OFFLINE"),
        (httpx.ConnectError("[Errno -3] Name resolution"), "could not be reached"),
        (httpx.ReadTimeout("timed out"), "could not be reached"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
@pytest.mark.parametrize("call", ["validate", "create_repo", "upload_folder"])
def test_the_hubs_errors_are_one_sentence(finished, hub, call, error, message):
    hub.fails[call] = error
    with pytest.raises(HubError, match=message) as caught:
        publish(finished, REPO)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_no_error_shows_a_token(finished, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    hub.fails["create_repo"] = answer(500, text=f"bad header 'Bearer {TOKEN}', {TOKEN} an-unusual-token")
    with pytest.raises(HubError) as caught:
        publish(finished, REPO)
    assert TOKEN not in str(caught.value)
    assert "unusual" not in str(caught.value)
