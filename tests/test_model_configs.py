"""The JSON of a model's folder: refused before a library builds anything from it."""

from __future__ import annotations

import json
import os

import pytest

from sd_ext.errors import ModelError
from sd_ext.model_configs import check_plain, parts_in, read_config, read_index

PART = ["diffusers", "UNet2DConditionModel"]


def saved(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    return folder / name


def test_parts_are_those_with_a_class(tmp_path):
    index = {"unet": PART, "safety_checker": [None, None], "_class_name": ["a", "b"], "scale": [1, 2], "sizes": ["a"]}
    saved(tmp_path, "model_index.json", index)
    assert parts_in(read_index(tmp_path)) == ["unet"]


@pytest.mark.parametrize("name", ["../unet", "/etc", "", "a/b", "x" * 5000, "a\x1b"])
def test_a_name_that_leads_elsewhere_is_no_part(tmp_path, name):
    saved(tmp_path, "model_index.json", {"unet": PART, name: PART})
    with pytest.raises(ModelError, match=r"model_index\.json: .* is no name of a part") as error:
        read_index(tmp_path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layers_per_block": 10**6}, "layers_per_block holds 1000000; no model has more than 256"),
        ({"transformer_layers_per_block": [1, [2, 9999]]}, "transformer_layers_per_block holds 9999"),
        ({"block_out_channels": [320, 10**9]}, "block_out_channels holds 1000000000"),
        ({"hidden_size": -(10**9)}, "hidden_size holds"),
    ],
)
def test_numbers_that_no_model_has_are_refused(tmp_path, config, words):
    with pytest.raises(ModelError, match=words):
        read_config(saved(tmp_path, "config.json", config))


def test_what_libraries_write_is_read(tmp_path):
    (tmp_path / "scheduler_config.json").write_text('{"lambda_min_clipped": -Infinity}')
    assert read_config(tmp_path / "scheduler_config.json") == {"lambda_min_clipped": -float("inf")}
    no_limit = {"model_max_length": 1000000000000000019884624838656}
    assert read_config(saved(tmp_path, "tokenizer_config.json", no_limit)) == no_limit


def test_a_pipe_among_the_files_is_named(tmp_path):
    (tmp_path / "unet").mkdir()
    check_plain(tmp_path)
    os.mkfifo(tmp_path / "unet" / "config.json")
    with pytest.raises(ModelError, match=r"config\.json is a named pipe, not a file; remove it"):
        check_plain(tmp_path)
