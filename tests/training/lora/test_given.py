"""A run that begins with a file: its adapters make the file's change, of whatever kind that is."""

from __future__ import annotations

import json

import pytest
import torch

from sd_ext.errors import InputError
from sd_ext.lora import from_peft, read_lora
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.given import put
from sd_ext.training.lora.network import adapt_unet
from sd_ext.training.model.trainable import find_trainable

from ..lora_cases import SETTINGS, train


def begun(base, source, **settings):
    """The LoRA that a run begins with, and the notes."""
    files, config = find_trainable(str(base)), LoraConfig.of(**{**SETTINGS, **settings})
    unet = files.load("unet")
    adapt_unet(unet, config, files.family)
    notes = put(str(source), {"unet": unet}, files, config)
    return from_peft({"unet": unet}, base=files.family), notes, files


def assert_same_change(one, other, weights=None, atol=1e-5) -> None:
    assert one.adapters.keys() == other.adapters.keys()
    for module, adapter in one.adapters.items():
        weight = weights[module.path] if weights else None
        change = other.adapters[module].delta(weight)
        torch.testing.assert_close(
            adapter.delta(weight), change.reshape(adapter.delta(weight).shape), atol=atol, rtol=1e-4
        )


def test_the_change_of_any_kind_is_what_the_run_begins_with(bases, lora_run):
    plain = lora_run()
    for file, settings in (
        (plain.kohya, {}),
        (plain.diffusers, {"rank": 5, "alpha": 3.0}),
        (lora_run(method="lokr").kohya, {"rank": 64}),
    ):
        made, notes, _ = begun(bases["sd15"], file, **settings)
        assert_same_change(made, read_lora(file))
        assert not notes
    spare = begun(bases["sd15"], plain.diffusers, rank=5)[0]
    assert all(adapter.down[2:].any() and not adapter.up[:, 2:].any() for adapter in spare.adapters.values())
    _, (note,), _ = begun(bases["sd15"], plain.kohya, rank=1)
    assert "is cut to the ranks of this run" in note
    dora = lora_run(method="dora")
    made, notes, files = begun(bases["sd15"], dora.kohya, method="dora")
    weights = {n: m.weight.detach() for n, m in files.load("unet").named_modules() if hasattr(m, "weight")}
    assert_same_change(made, read_lora(dora.kohya), weights)


def test_what_does_not_fit_is_said(bases, lora_run, tmp_path):
    file = lora_run().kohya
    _, (note,), _ = begun(bases["sd15"], file, blocks=("mid_block",))
    assert "modules are not trained here and are left out, such as unet.down_blocks.1." in note
    for settings, message in (
        ({"blocks": ("up_blocks",)}, "none of its modules is trained here"),
        ({"method": "loha"}, "method = loha starts from no file; set method = lora"),
        ({"init": "pissa"}, "init = pissa starts from no file"),
        ({"method": "dora"}, "does not fit a dora of this rank"),
    ):
        with pytest.raises(InputError, match=message):
            begun(bases["sd15"], file, **settings)
    with pytest.raises(InputError, match="it is a LoRA for sd15, and the model is sdxl"):
        begun(bases["sdxl"], file)


@pytest.mark.slow
def test_a_run_from_a_file_records_it_and_goes_on_without_it(bases, picture_folder, lora_run, tmp_path):
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(lora_run().kohya.read_bytes())
    settings = {"data": str(picture_folder), "from_": str(parent), "steps": 1, "lr_schedule": "constant"}
    run = train(bases["sd15"], tmp_path / "run", **settings, learning_rate=1e-9)
    assert_same_change(read_lora(run.kohya), read_lora(parent), atol=1e-4)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["parent"]
    assert recorded.keys() == {"from", "weights"} and recorded["from"] == str(parent)
    parent.unlink()
    train(bases["sd15"], tmp_path / "run", **{**settings, "steps": 2}, learning_rate=1e-9)
    with pytest.raises(InputError, match="parent"):
        train(bases["sd15"], tmp_path / "run", **{**settings, "steps": 2, "from_": ""}, learning_rate=1e-9)
