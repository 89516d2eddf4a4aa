"""Publishing with the Hub's real client, to a stand-in of the Hub on this machine."""

from __future__ import annotations

import pytest

from sd_ext.errors import HubError, InputError
from sd_ext.hub import Content, publish_content

from .standin import LARGE, serve


@pytest.fixture
def standin(monkeypatch):
    """The stand-in, and the real client pointed at it, with its token and without waiting between tries."""
    import huggingface_hub.constants as constants

    hub = serve()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def content():
    """Two large files, one small, and a card."""
    import torch
    from safetensors.torch import save_file

    def write(new):
        for name, value in (("one.safetensors", 1.0), ("two.safetensors", 2.0)):
            save_file({"weight": torch.full((LARGE,), value)}, new / name)
        (new / "config.json").write_text("{}")
        (new / "README.md").write_text("---\nlicense: mit\n---\n\n# Thing\n")
        return {"one.safetensors", "two.safetensors", "config.json", "README.md"}

    return lambda: Content("a thing", write)


def test_what_arrives_is_what_was_staged(standin, content, tmp_path):
    from sd_ext.hub import stage_content

    sent = publish_content(content, "alice/thing", private=True, message="First")
    staged = stage_content(content(), tmp_path / "staged")
    assert standin.repos["alice/thing"] == {path.name: path.read_bytes() for path in staged.iterdir()}
    assert standin.commits == ["First"] and standin.private == {"alice/thing"}
    assert sent.url.startswith(standin.url) and set(sent.files) == set(standin.repos["alice/thing"])
    publish_content(content, "alice/thing")  # an earlier version of the same is no obstacle
    assert standin.commits[1:] in (["a thing"], [])


def test_after_a_broken_connection_what_has_arrived_is_not_sent_again(standin, content):
    standin.mishaps = {"POST /api/models/alice/thing/commit": "drop"}
    with pytest.raises(HubError, match="publish again when it can"):
        publish_content(content, "alice/thing")
    uploads = [asked for asked in standin.asked if asked.startswith("PUT /lfs/")]
    assert len(uploads) == 2 and standin.repos["alice/thing"] == {}
    standin.mishaps, standin.asked = {}, []
    publish_content(content, "alice/thing")
    assert not [asked for asked in standin.asked if asked.startswith("PUT /lfs/")]
    assert len(standin.repos["alice/thing"]) == 4


@pytest.mark.parametrize(
    ("mishaps", "says"),
    [
        ({"GET /api/whoami-v2": 401}, "no valid token here, or it has expired"),
        ({"GET /api/whoami-v2": 503}, "answered 503"),
        ({"POST /api/repos/create": 403}, "may not write to alice/thing"),
        ({"POST /api/validate-yaml": 400}, "does not accept the card"),
        ({"POST /api/models/alice/thing/preupload": "drop"}, "could not be reached, or not to the end"),
        ({"POST /api/models/alice/thing/commit": 401}, "it has expired"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_without_the_token(standin, content, mishaps, says):
    standin.mishaps = mishaps
    with pytest.raises((HubError, InputError), match=says) as caught:
        publish_content(content, "alice/thing")
    assert standin.token not in str(caught.value) and "\n" not in str(caught.value)
    assert not standin.repos.get("alice/thing") and not standin.commits


def test_nothing_is_put_together_without_a_token_or_for_somebody_else(standin, monkeypatch):
    def untouched():
        pytest.fail("it was put together")

    with pytest.raises(InputError, match="bob/thing is not yours: the token in use is of alice"):
        publish_content(untouched, "bob/thing")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 6)
    with pytest.raises(HubError, match="no valid token"):
        publish_content(untouched, "alice/thing")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(HubError, match="no valid token"):
        publish_content(untouched, "alice/thing")
    assert {asked.split()[1] for asked in standin.asked} == {"/api/whoami-v2"}


def test_a_repository_that_holds_something_else_is_left_alone(standin, content):
    standin.repos["team/thing"] = {"model_index.json": b"{}", ".gitattributes": b"", "README.md": b""}
    with pytest.raises(InputError, match=r"holds something else \(model_index.json\)"):
        publish_content(content, "team/thing")
    assert set(standin.repos["team/thing"]) == {"model_index.json", ".gitattributes", "README.md"}
    assert standin.commits == []
