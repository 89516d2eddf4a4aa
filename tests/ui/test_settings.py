"""From fields to recipes and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sd_ext.cli.pictures import Record, Told
from sd_ext.cli.request import Recipe
from sd_ext.errors import InputError
from sd_ext.ui.limits import OWN, SHARED
from sd_ext.ui.offer import Offer
from sd_ext.ui.settings import Settings, on_page, recipe_of, restored

MODELS = Offer("model", {"embedded": "embedded", "mine": "/models/mine"})
LORAS = Offer("LoRA", {"a": "/loras/a.safetensors", "b": "/loras/b.safetensors"})

FULL = Settings(
    prompt="a (red:1.2) cat", negative="dog", model="mine", sampler="dpm++ 2m", grid="karras", steps=8, guidance="4.5",
    seed="9007199254740993", size="64x72", unet="fast", unet_options="pag_scale=3\n\nseg_scale=1\n", lora_1="a",
    strength_1=0.5, lora_2="b", strength_2=-1, guidance_schedule="cosine", like="a1111", clip_skip=2,
)  # fmt: skip


def told(recipe: Recipe) -> Told:
    return Told("sd_ext", {}, recipe.as_json(), (), Record(recipe))


def test_every_field_reaches_the_recipe():
    recipe = recipe_of(FULL, MODELS, LORAS)
    assert recipe == Recipe(
        prompt="a (red:1.2) cat", negative="dog", model="/models/mine", sampler="dpm++ 2m", grid="karras", steps=8,
        guidance=4.5, seed=2**53 + 1, size="64x72", unet="fast", unet_option=("pag_scale=3", "seg_scale=1"),
        lora=("/loras/a.safetensors:0.5", "/loras/b.safetensors:-1"), guidance_schedule="cosine", like="a1111",
        clip_skip=2,
    )  # fmt: skip


def test_a_picture_brings_the_fields_back():
    found, lost = restored(told(recipe_of(FULL, MODELS, LORAS)), Settings(), MODELS, LORAS)
    assert not lost
    assert found == replace(FULL, unet_options="pag_scale=3\nseg_scale=1")
    assert recipe_of(found, MODELS, LORAS) == recipe_of(FULL, MODELS, LORAS)


def test_empty_fields_leave_it_to_the_model_and_come_back_empty():
    plain = Settings(prompt="cat", sampler="", seed="")
    recipe = recipe_of(plain, MODELS, LORAS)
    assert recipe == Recipe(prompt="cat")
    assert restored(told(recipe), Settings(), MODELS, LORAS)[0] == replace(plain, seed="0")


def test_a_seed_is_drawn():
    seeds = {recipe_of(Settings(prompt="cat", seed="-1"), MODELS, LORAS).seed for _ in range(4)}
    assert len(seeds) > 1 and min(seeds) >= 0


def test_what_the_fields_cannot_say_is_named():
    recipe = Recipe(
        prompt="cat", model="/elsewhere/dreamer.safetensors", image="in.png", strength=0.5, vae="vae.safetensors",
        lora=("/loras/a.safetensors:0.5:0.25", "/other/c.safetensors"), lora_blocks=("OUTD",), device="cuda",
    )  # fmt: skip
    found, lost = restored(told(recipe), Settings(model="mine"), MODELS, LORAS)
    assert (found.model, found.lora_1, found.strength_1, found.lora_2) == ("mine", "a", 0.5, "")
    assert lost == [
        "model dreamer.safetensors, which is not offered here",
        "its own strength 0.25 of LoRA a.safetensors in text encoders",
        "LoRA c.safetensors, which is not offered here",
        "strengths of LoRAs by block (OUTD)",
        "vae vae.safetensors",
        "image in.png",
        "strength 0.5",
    ]


def test_a_picture_of_another_program():
    settings = {"prompt": "a cat", "steps": 30, "seed": 3, "sampler": "euler a"}
    theirs = Told("AUTOMATIC1111", {}, settings, ("Model dreamer",))
    found, lost = restored(theirs, Settings(model="mine"), MODELS, LORAS)
    assert (found.prompt, found.steps, found.seed, found.sampler, found.model) == ("a cat", 30, "3", "euler a", "mine")
    assert lost == ["Model dreamer"]
    with pytest.raises(InputError, match="it has no prompt"):
        restored(Told("AUTOMATIC1111", {}, {"steps": 3}), Settings(), MODELS, LORAS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"steps": 0}, "steps 0 cannot work"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": "many"}, "Steps: a number is expected"),
        ({"guidance": "much"}, "guidance 'much' cannot be read"),
        ({"guidance": "nan"}, "guidance nan cannot work"),
        ({"seed": "1e9"}, "seed '1e9' cannot be read"),
        ({"seed": "-7"}, "seed -7 cannot work"),
        ({"size": "64"}, "size '64' cannot be read"),
        ({"prompt": ["cat"]}, "Prompt: text is expected"),
        ({"model": "/etc"}, "unknown model on this page"),
        ({"lora_1": "../a"}, "unknown LoRA on this page"),
        ({"lora_1": "a", "lora_3": "a"}, "chosen twice"),
        ({"lora_1": "a", "strength_1": float("nan")}, "strength"),
        ({"unet_options": "pag_scale"}, "unet-option 'pag_scale' cannot be read"),
        ({"prompt": "\udcff"}, "not valid UTF-8"),
    ],
)
def test_bad_input_is_one_sentence(changes, sentence):
    values = {**vars(Settings(prompt="cat")), **changes}
    with pytest.raises(InputError, match=sentence):
        recipe_of(Settings.of(list(values.values())), MODELS, LORAS).check()
        from sd_ext.cli.additions import loras_of

        loras_of(recipe_of(Settings.of(list(values.values())), MODELS, LORAS))


def test_a_page_of_another_version():
    with pytest.raises(InputError, match="load it anew"):
        Settings.of(["cat"])


def test_sentences_name_the_fields():
    assert on_page("--steps 0 cannot work; choose 1 to 1000") == "Steps 0 cannot work; choose 1 to 1000"
    assert on_page("--unet-option x; --guidance-schedule") == "U-Net options x; Guidance over time"
    assert on_page("--trust-remote-code stays") == "--trust-remote-code stays"


@pytest.mark.parametrize("changes", [{"steps": 101}, {"size": "2048x64"}])
def test_strangers_may_ask_for_less(changes):
    recipe = Recipe(prompt="cat", **changes)
    OWN.check(recipe)
    with pytest.raises(InputError, match="here; choose at most"):
        SHARED.check(recipe)
