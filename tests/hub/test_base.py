from __future__ import annotations

import pytest

import sd_ext
from sd_ext.hub.base import Base, look_up
from sd_ext.hub.card import licence_text


@pytest.fixture
def hub_card(monkeypatch, tmp_path):
    """`hub_card(text)` is the card of every model on the Hub; the arguments it is asked with are noted."""
    asked = []

    def set_card(text: str | bytes):
        (tmp_path / "card.md").write_bytes(text if isinstance(text, bytes) else text.encode())

        def download(*arguments, **options):
            asked.append((arguments, options))
            return str(tmp_path / "card.md")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        return asked

    return set_card


def folder_with(tmp_path, card: str):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(card)
    return str(tmp_path / "base")


def test_the_licence_of_a_local_base(tmp_path):
    base = look_up(folder_with(tmp_path, "---\nlicense: creativeml-openrail-m\n---\n# Base\n"))
    assert base == Base(licence={"license": "creativeml-openrail-m"})
    assert licence_text(base) == "`creativeml-openrail-m`, as the card of the base model states."


def test_a_licence_of_its_own_keeps_name_and_link(hub_card):
    hub_card("---\nlicense: other\nlicense_name: my-terms\nlicense_link: LICENSE.md\n---\n")
    base = look_up("someone/base")
    link = "https://huggingface.co/someone/base/blob/main/LICENSE.md"
    assert base.licence == {"license": "other", "license_name": "my-terms", "license_link": link}
    assert licence_text(base).startswith(f"[my-terms]({link})")


def test_a_link_that_leads_nowhere_is_left_out(tmp_path):
    text = "---\nlicense: other\nlicense_link: LICENSE.md\n---\n"
    assert look_up(folder_with(tmp_path, text)).licence == {"license": "other"}


@pytest.mark.parametrize(
    "card",
    [
        "# no head\n",
        "---\ntags: [a]\n---\n",
        "---\nlicense: ''\n---\n",
        "---\nlicense: [mit, apache-2.0]\n---\n",
        "---\nlicense: [\n---\n",
        "---\n- a list\n---\n",
        b"\xff\xfe",
    ],
)
def test_no_licence_is_invented(hub_card, card):
    hub_card(card)
    base = look_up("someone/base")
    assert base.hub_id == "someone/base"
    assert not base.licence
    assert base.why
    assert licence_text(base).startswith(f"Not known: {base.why}")


def test_a_base_without_a_card(tmp_path):
    assert look_up(str(tmp_path)) == Base(why="the folder of the base model has no card")
    assert look_up(str(tmp_path / "gone")).hub_id is None


def test_the_network_is_asked_only_when_told_to(hub_card, hub):
    asked = hub_card("---\nlicense: mit\n---\n")
    look_up("someone/base")
    look_up("someone/base", online=True)
    assert [options["local_files_only"] for _, options in asked] == [True, False]


def test_a_card_that_cannot_be_read_is_no_error(hub):
    assert "without the network" in look_up("someone/base").why
    assert "without the network" not in look_up("someone/base", online=True).why


@pytest.mark.parametrize("name", ["embedded", str(sd_ext.pretrained_path())])
def test_the_embedded_model(name):
    assert look_up(name) == Base(embedded=True, licence={"license": "apache-2.0"})
