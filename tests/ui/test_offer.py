"""What is offered, by which names; and that nothing else can be opened."""

from __future__ import annotations

import shutil

import pytest

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.ui.offer import Offer, offer


def test_the_embedded_model_is_always_offered_and_first_if_no_other_is_named(tiny_pipeline_dir):
    assert offer("model", []).names == ["embedded"]
    both = offer("model", [str(tiny_pipeline_dir)])
    assert both.names == [tiny_pipeline_dir.name, "embedded"]
    assert both.source(tiny_pipeline_dir.name) == str(tiny_pipeline_dir)
    assert offer("model", ["owner/name"]).names == ["owner/name", "embedded"]


def test_a_folder_offers_what_is_in_it_and_says_what_it_passes_over(tiny_pipeline_dir, style, tmp_path):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "all" / "deep" / "tiny")
    shutil.copy(style, tmp_path / "all" / "style.safetensors")
    (tmp_path / "all" / "broken.safetensors").write_bytes(b"no header")
    told: list[str] = []
    models = offer("model", [str(tmp_path / "all")], told.append)
    assert models.names == ["deep/tiny", "embedded"]
    assert told == [f"{tmp_path}/all: 2 files are passed over, being no model: broken.safetensors, style.safetensors."]
    loras = offer("LoRA", [str(tmp_path / "all"), style])
    assert len(loras.names) == 2 and loras.names[0] == "style.safetensors"
    assert loras.name(style) == loras.names[1] and loras.names[1].endswith("/style.safetensors")


def test_the_same_name_twice_gets_another(style, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(style, tmp_path / folder)
    found = offer("LoRA", [str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.names == ["style.safetensors", "b/style.safetensors"]
    assert found.source("b/style.safetensors") == str(tmp_path / "b" / "style.safetensors")


@pytest.mark.parametrize("name", ["/etc/passwd", "../style.safetensors", "", "owner/name", "style"])
def test_what_is_not_offered_opens_nothing(style, name):
    found = offer("LoRA", [style])
    with pytest.raises(UnknownNameError, match="unknown LoRA on this page"):
        found.source(name)


def test_places_that_cannot_be(style, tmp_path):
    with pytest.raises(InputError, match="no such model or folder of them"):
        offer("model", [str(tmp_path / "missing")])
    with pytest.raises(InputError, match="is no model in a"):
        offer("model", [style])
    with pytest.raises(InputError, match="is no LoRA"):
        offer("LoRA", [__file__])


def test_what_a_recipe_names_is_found_by_the_file_it_means(style, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(style)
    found = Offer("LoRA", {"mine": style})
    assert found.name(str(link)) == "mine"
    assert found.name("elsewhere.safetensors") is None
    assert offer("model", []).name("embedded") == "embedded"
