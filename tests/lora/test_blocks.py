"""Block weights: the blocks that other programs number, and what each module gets, worked out by hand."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Lora, ModuleName, Strength, apply_lora, at_strength, extract, merge
from sd_ext.lora.blocks import CONVENTIONS, PRESETS, block_of, block_weights, weight_of
from sd_ext.lora.strength import unnamed
from sd_ext.lora.weights import ModelWeights

from . import models

LONG, SHORT = {"sd15": 26, "sd21": 26, "sdxl": 20}, {"sd15": 17, "sd21": 17, "sdxl": 12}
PUBLISHED = {  # LoRA Block Weight's presets for 17 numbers
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}


def walked(unet: nn.Module) -> dict[str, str]:
    """Path -> block, by counting the original U-Net's blocks in the order in which data pass through the model."""
    places, number = {"conv_in": "IN00", "time_embedding": "IN00", "add_embedding": "IN00"}, 0
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            number += 1
            places |= {f"down_blocks.{level}.{what}.{layer}": f"IN{number:02}" for what in ("resnets", "attentions")}
        if block.downsamplers is not None:
            number += 1
            places[f"down_blocks.{level}.downsamplers"] = f"IN{number:02}"
    number = -1
    for level, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            number += 1
            places |= {f"up_blocks.{level}.{what}.{layer}": f"OUT{number:02}" for what in ("resnets", "attentions")}
        places[f"up_blocks.{level}.upsamplers"] = f"OUT{number:02}"
    places |= {"mid_block": "MID", "conv_out": f"OUT{number:02}"}
    made = {}
    for path, module in unet.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            made[path] = next(name for place, name in places.items() if f"{path}.".startswith(f"{place}."))
    return made


@pytest.mark.parametrize("shape", models.SHAPES)
def test_every_module_of_the_published_models_is_in_its_block(shape):
    full = models.full_models(shape)
    expected, count = walked(full["unet"]), LONG[shape]
    assert sorted(set(expected.values())) == sorted(set(CONVENTIONS[count]) - {"BASE"})
    numbers = {name: 1 + i / 4 for i, name in enumerate(CONVENTIONS[count])}
    weights = block_weights(",".join(f"{number:g}" for number in numbers.values()), shape)
    for path, block in expected.items():
        assert weight_of(weights, ModuleName("unet", path)) == numbers[block], path
    for part in full.keys() - {"unet"}:
        assert weight_of(weights, ModuleName(part, "encoder.layers.0.mlp.fc1")) == numbers["BASE"]
    with_attention = {block for path, block in expected.items() if ".attentions." in path}
    assert CONVENTIONS[SHORT[shape]] == tuple(
        name for name in CONVENTIONS[count] if name == "BASE" or name in with_attention
    )


def test_presets_are_the_published_ones():
    assert PUBLISHED.keys() == PRESETS.keys()
    for name, listed in PUBLISHED.items():
        weights = block_weights(name.lower(), "sd15")
        assert [weights[block] for block in CONVENTIONS[17]] == [float(number) for number in listed.split(",")], name
        assert len(block_weights(name, "sdxl")) == 20
    whole = {name: block_weights(name, "sdxl") for name in PRESETS}
    for side in ("IN", "OUT"):
        parts = [whole[f"{side}{end}"] for end in ("S", "D", "ALL")]
        for block in CONVENTIONS[20]:
            if block.startswith(side):
                assert parts[0][block] + parts[1][block] == parts[2][block] == 1


def by_hand(module: ModuleName, numbers: list[float]) -> float:
    """The number of a module of SD 1.x among 26."""
    if module.part != "unet":
        return numbers[0]
    if module.path.startswith("mid_block"):
        return numbers[13]
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)", module.path)
    if not found:
        return numbers[25] if module.path == "conv_out" else numbers[1]
    place = 3 * int(found[2]) + (2 if "samplers" in found[3] else int(found[4]))
    return numbers[2 + place] if found[1] == "down" else numbers[14 + place]


@pytest.mark.parametrize("dora", [False, True])
def test_each_module_gets_its_strength(sd15, dora):
    base = copy.deepcopy(models.tiny_models("sd15"))
    weights = ModelWeights(base)
    before = {name: weights.weight(name).clone() for name in sd15.lora.adapters}
    lora = sd15.lora
    if dora:
        lora = Lora({m: _as_dora(a, before[m]) for m, a in lora.adapters.items()}, base="sd15")
    numbers = [round(0.1 * i - 1, 1) for i in range(26)]  # 0 for one of them
    strength = Strength(0.8, 0.5, ",".join(map(str, numbers)))
    with apply_lora(base, lora, strength):
        for module, weight in before.items():
            factor = (0.8 if module.part == "unet" else 0.5) * by_hand(module, numbers)
            expected = weight + factor * lora.delta(module, weight)
            torch.testing.assert_close(weights.weight(module), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(weights.weight(module), weight) for module, weight in before.items())


def _as_dora(adapter: Adapter, weight: torch.Tensor) -> Adapter:
    norms = weight.flatten(1).norm(dim=1) * 1.1
    return Adapter("lora", {**adapter.tensors, "dora": norms.reshape(-1, *[1] * (weight.ndim - 1))}, adapter.alpha)


def test_merging_and_weakening_are_the_same_by_hand(sd15):
    numbers = [0.0, *(round(0.2 * i, 1) for i in range(25))]
    strength = Strength(0.5, blocks=",".join(map(str, numbers)))
    merged, weaker = merge([(sd15.lora, strength), (sd15.lora, 1.0)]), at_strength(sd15.lora, strength)
    assert not any(module.part == "text_encoder" for module in weaker.adapters)
    for module in sd15.lora.adapters:
        delta, factor = sd15.lora.delta(module), 0.5 * by_hand(module, numbers)
        torch.testing.assert_close(merged.delta(module), (1 + factor) * delta, rtol=1e-4, atol=1e-5)
        if factor:
            torch.testing.assert_close(weaker.delta(module), factor * delta, rtol=1e-4, atol=1e-5)
        else:
            assert module not in weaker.adapters


def test_extracting_then_weakening_leaves_out_blocks():
    base = models.tiny_models("sd15")
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    for block in (tuned["unet"].mid_block, tuned["unet"].up_blocks[1]):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.data += 0.1 * torch.randn(module.weight.shape, generator=generator)
    found = extract(base, tuned, energy=1.0)
    assert {block_of(module) for module in found.adapters} > {"MID"}
    middle = at_strength(Lora(found.adapters, base="sd15"), Strength(blocks="MIDD"))
    assert all(block_of(module) == "MID" or block_of(module) <= "OUT06" for module in middle.adapters)
    assert {"MID", "OUT03"} <= {block_of(module) for module in middle.adapters}


def test_modules_that_short_lists_do_not_name_are_told():
    tensors = {"down": torch.ones(1, 4), "up": torch.ones(4, 1)}
    paths = "conv_in", "down_blocks.0.downsamplers.0.conv", "down_blocks.0.attentions.0.proj_in", "conv_out"
    lora = Lora({ModuleName("unet", path): Adapter("lora", tensors, 1.0) for path in paths}, base="sd15")
    strength = Strength(blocks=",".join(["0"] * 17))
    assert unnamed(lora, strength) == (
        "17 block weights do not name the blocks of 3 of its 4 modules, which keep their strength: IN00, IN03, OUT"
    )
    assert len(merge([(lora, strength)])) == 3
    assert unnamed(lora, Strength(blocks=",".join(["1"] * 26))) == unnamed(lora, 1.0) == ""


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        ("1,2,3", "give 12, 17, 20, 26 numbers or one of NONE"),
        ("1" + ",x" * 16, "cannot be read"),
        (",".join(["nan"] * 17), "a block weight of nan cannot work"),
        (",".join(["1000"] * 17), "a block weight of 1000 cannot work"),
        ("OUTT", "unknown preset of block weights 'OUTT'; did you mean"),
        (",", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(blocks, complaint):
    with pytest.raises(InputError, match=complaint):
        Strength(blocks=blocks)


def test_weights_of_another_model_and_of_none(sd15):
    with pytest.raises(InputError, match="12 block weights are not for this model; give 17 or 26"):
        merge([(sd15.lora, Strength(blocks=",".join(["1"] * 12)))])
    with pytest.raises(InputError, match="nothing is left"):
        merge([(sd15.lora, Strength(blocks="NONE"))])
    with pytest.raises(InputError, match="depends on the model"):
        block_weights("OUTD", None)
    for wrong in (float("nan"), float("inf"), "1"):
        with pytest.raises(InputError, match="finite numbers"):
            Strength(wrong)
