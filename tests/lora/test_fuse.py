"""LoRAs in weights: in and out again, at any strength, in memory and in folders."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.lora import Lora, apply_lora, extract, merge, merge_into

from ..few import few
from . import models


def weights(made):
    return {f"{part}.{name}": w.clone() for part, model in made.items() for name, w in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def base(trained):
    return copy.deepcopy(models.tiny_models(trained.shape))


def test_applying_is_what_peft_computes_and_undoing_leaves_no_trace(trained, base):
    before = weights(base)
    with apply_lora(models.pipeline(trained.shape, base), trained.lora):
        for part, expected in trained.outputs.items():
            torch.testing.assert_close(models.outputs(base)[part], expected, rtol=1e-5, atol=1e-4)
    assert same(weights(base), before)


def test_strengths_interpolate(sd15):
    start = weights(models.tiny_models("sd15"))
    moved = {}
    for strength in (0.0, 0.5, 1.0):
        made = copy.deepcopy(models.tiny_models("sd15"))
        apply_lora(made, sd15.lora, strength)
        moved[strength] = weights(made)
    assert same(moved[0.0], start)
    for name in start:
        torch.testing.assert_close(moved[0.5][name], (start[name] + moved[1.0][name]) / 2, rtol=1e-5, atol=1e-6)


def test_a_module_the_base_lacks_is_named_and_nothing_changes(sd15, sdxl):
    made = copy.deepcopy(models.tiny_models("sd15"))
    before = weights(made)
    for lora in (sdxl.lora, Lora({m: a for m, a in sdxl.lora.adapters.items() if m.part == "unet"})):
        with pytest.raises(InputError, match=r"text_encoder_2|unet\."):
            apply_lora(made, lora)
    typo = {module: adapter for module, adapter in sd15.lora.adapters.items() if module.path == "conv_in"}
    with pytest.raises(UnknownNameError, match=r"unet\.conv_inn.*did you mean 'unet\.conv_in'"):
        apply_lora(made, Lora({("unet", "conv_inn"): next(iter(typo.values()))}))
    with pytest.raises(InputError, match=r"unet.conv_out: made for a weight of \(8, 4, 3, 3\)"):
        apply_lora(made, Lora({("unet", "conv_out"): next(iter(typo.values()))}))
    assert same(weights(made), before)


def test_an_overflow_is_named_and_nothing_changes(sd15):
    made = {"unet": copy.deepcopy(models.tiny_models("sd15")["unet"]).half()}
    before = weights(made)
    lora = Lora({m: a for m, a in sd15.lora.adapters.items() if m.part == "unet"})
    with pytest.raises(InputError, match=r"unet\..*float16; choose a smaller strength"):
        apply_lora(made, lora, 1e6)
    assert same(weights(made), before)


def test_models_that_carry_an_adapter_are_changed_underneath_it(sd15):
    made = copy.deepcopy(sd15.models)
    apply_lora(made, sd15.lora, -1.0)
    plain = models.outputs(models.tiny_models("sd15"))
    for part, output in models.outputs(made).items():
        torch.testing.assert_close(output, plain[part], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("thing", [3, {"unet": "model"}, {}])
def test_what_is_no_model(thing, sd15):
    with pytest.raises(InputError, match="neither a pipeline nor models"):
        apply_lora(thing, sd15.lora)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SDXL's parts as a pipeline folder, the U-Net's weights in several files."""
    root = tmp_path_factory.mktemp("base") / "pipeline"
    for part, model in models.tiny_models("sdxl").items():
        shard = "60KB" if part == "unet" else "1GB"
        model.save_pretrained(root / part, max_shard_size=shard)
    (root / "model_index.json").write_text("{}")
    (root / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    return root


def load(root):
    made = copy.deepcopy(models.tiny_models("sdxl"))
    return {part: type(model).from_pretrained(root / part, use_safetensors=True) for part, model in made.items()}


def test_merging_into_a_folder_makes_a_model_that_needs_no_lora(folder, sdxl, tmp_path):
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    seen = []
    merge_into(folder, [(sdxl.lora, 0.5), (sdxl.lora, 0.5)], tmp_path / "out", lambda *step: seen.append(step[:2]))
    assert seen == [(i, len(sdxl.lora)) for i in range(1, len(sdxl.lora) + 1)]
    got = models.outputs(load(tmp_path / "out"))
    for part, expected in sdxl.outputs.items():
        torch.testing.assert_close(got[part], expected, rtol=1e-5, atol=1e-4)
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert names == {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.suffix != ".bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = extract(folder, tmp_path / "out", energy=1.0)
    assert found.adapters.keys() == sdxl.lora.adapters.keys()
    for module in list(found.adapters)[::20]:
        torch.testing.assert_close(found.delta(module), sdxl.lora.delta(module), rtol=1e-3, atol=1e-4)


def test_in_memory_and_in_folders_are_the_same(folder, sdxl, tmp_path):
    merge_into(folder, [(sdxl.lora, 1.0)], tmp_path / "out")
    made = copy.deepcopy(models.tiny_models("sdxl"))
    merge_into(made, [(sdxl.lora, 1.0)])
    assert same(weights(load(tmp_path / "out")), weights(made))


def test_what_is_there_stays(folder, sdxl, sd15, tmp_path):
    (tmp_path / "out").mkdir()
    for out in (tmp_path / "out", folder / "inside"):
        with pytest.raises(InputError, match=r"exists|lies in"):
            merge_into(folder, [(sdxl.lora, 1.0)], out)
    with pytest.raises(InputError, match="exists"):  # a folder that is no pipeline is not replaced even when asked
        merge_into(folder, [(sdxl.lora, 1.0)], tmp_path / "out", overwrite=True)
    with pytest.raises(InputError, match=r"is for Stable Diffusion 1\.x, and the base is Stable Diffusion XL"):
        merge_into(folder, [(sd15.lora, 1.0)], tmp_path / "new")
    with pytest.raises(InputError, match="say where"):
        merge_into(folder, [(sdxl.lora, 1.0)])
    assert not (tmp_path / "new").exists()
    shutil.copytree(folder, tmp_path / "old")
    merge_into(folder, [(sdxl.lora, 1.0)], tmp_path / "old", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "out"]
    (part,) = (tmp_path / "old" / "text_encoder").glob("*.safetensors")
    assert not same(load_file(part), load_file(folder / "text_encoder" / part.name))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("at", "error"),
    few(
        [(at, error) for at in (2, 1) for error in (OSError(5, "Input/output error"), KeyboardInterrupt())],
        lambda case: (case[0] == 2) == isinstance(case[1], OSError),
    ),
    ids=lambda value: value if isinstance(value, int) else type(value).__name__,
)
def test_replacing_a_model_never_ends_with_neither(folder, sdxl, tmp_path, monkeypatch, error, at):
    """Whichever of the two renames fails, the model that was there is there, and nothing stays beside it."""
    merge_into(folder, [(sdxl.lora, 1.0)], tmp_path / "mine")
    before, rename, asked = contents(tmp_path / "mine"), os.rename, []

    def failing(source, target, **more):
        asked.append(target)
        if len(asked) == at:
            raise error
        rename(source, target, **more)

    with monkeypatch.context() as patched, pytest.raises((InputError, KeyboardInterrupt)):
        patched.setattr(os, "rename", failing)
        merge_into(folder, [(sdxl.lora, 0.5)], tmp_path / "mine", overwrite=True)
    assert len(asked) >= at and os.listdir(tmp_path) == ["mine"]
    assert contents(tmp_path / "mine") == before
    merge_into(folder, [(sdxl.lora, 0.5)], tmp_path / "mine", overwrite=True)
    assert contents(tmp_path / "mine") != before


def test_folders_that_cannot_be_a_base(tmp_path, sd15):
    with pytest.raises(InputError, match="no such model folder"):
        merge_into(tmp_path / "missing", [(sd15.lora, 1.0)], tmp_path / "out")
    with pytest.raises(InputError, match="no safetensors weights"):
        extract(tmp_path, tmp_path, rank=1)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is of a kind that is not known here"):
        extract(tmp_path / "model.safetensors", tmp_path, rank=1)
    (tmp_path / "unet").mkdir()
    for variant in ("fp16", "ema"):
        save_file({"conv_in.weight": torch.ones(2, 2)}, tmp_path / "unet" / f"model.{variant}.safetensors")
    with pytest.raises(InputError, match="several variants"):
        extract(tmp_path, tmp_path, rank=1)
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="is a text"):
        extract(tmp_path, tmp_path, rank=1)


def test_dora_merges_with_the_base_at_hand():
    from sd_ext.lora import from_peft

    from . import adapters

    made = adapters.trained("sd15", unet={"use_dora": True, "target_modules": ["to_q", "conv1"]}, text={"r": 1})
    lora, base = from_peft(made), models.tiny_models("sd15")
    plain = merge([(lora, 0.5)], energy=1.0, base=base)
    one, other = copy.deepcopy(base), copy.deepcopy(base)
    apply_lora(one, plain)
    apply_lora(other, lora, 0.5)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, weights(other)[name], rtol=1e-4, atol=1e-5)
