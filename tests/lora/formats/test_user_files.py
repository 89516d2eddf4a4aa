"""Two hundred files as people have them, made by chance: read as other programs read them, or refused in one sentence.

They differ in family, names, kinds, ranks, alphas, dtypes, headers and in which blocks they change; some are broken.
"""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import nn

from sd_ext.errors import InputError
from sd_ext.lora import read_lora, save_lora
from sd_ext.lora.weights import ModelWeights

from .. import comfyui, models

SOME, REST = range(50), range(50, 200)
HEADERS = [{}, {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}, {"ss_v2": "True"},
           {"ss_network_args": "not json"}, {"format": "pt", "note": "ünïcode"}]  # fmt: skip


class Maker:
    """One file, made by chance."""

    def __init__(self, seed: int):
        self.chance, self.draw = random.Random(seed), torch.Generator().manual_seed(seed)
        self.shape = self.chance.choice(models.SHAPES)
        self.models = models.tiny_models(self.shape)
        self.style = self.chance.randrange(10)
        self.dtype = self.chance.choice([torch.float32, torch.float16, torch.bfloat16])
        self.alpha = self.chance.choice(["none", "float", "int", "negative", "half", "zero"])
        self.header = self.chance.choice(HEADERS)
        self.tensors: dict[str, torch.Tensor] = {}
        blocks = self.chance.choice(["", "down_blocks", "mid_block", "up_blocks.1", "encoder", "attn2", "conv"])
        kinds = self.chance.choice([["lora"], ["lora", "conv"], ["loha"], ["lokr", "lokr2"], ["diff", "norm"]])
        for part, path, module in comfyui.listed(self.shape):
            if blocks in path and self.chance.random() < 0.1:
                self.add(part, path, module, self.chance.choice(kinds))
        if not self.tensors:
            self.add("unet", "mid_block.resnets.0.conv1", self.models["unet"].mid_block.resnets[0].conv1, "lora")
        if self.chance.random() < 0.2:
            self.tensors["bundle_emb.word.string_to_param.*"] = self.random(2, 16)

    def random(self, *size: int) -> torch.Tensor:
        return (0.2 * torch.randn(*size, generator=self.draw)).to(self.dtype)

    def add(self, part: str, path: str, module: nn.Module, kind: str) -> None:
        known = comfyui.names(self.shape, part, path)
        name = known[self.style % len(known)]
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and kind in ("norm", "diff"):
            fields = {"w_norm": self.random(*module.weight.shape), "b_norm": self.random(*module.bias.shape)}
        elif isinstance(module, (nn.Linear, nn.Conv2d)) and kind != "norm":
            fields = getattr(self, f"_{kind}")(module)
        else:
            return
        if kind not in ("diff", "norm"):
            fields |= self._alpha()
        self.tensors |= {f"{name}.{field}": tensor for field, tensor in fields.items()}

    def _alpha(self) -> dict[str, torch.Tensor]:
        value = {"float": 1.5, "int": 2, "negative": -3.0, "half": 2.0, "zero": 0.0}.get(self.alpha)
        dtype = {"int": torch.int64, "half": torch.float16}.get(self.alpha)
        return {} if value is None else {"alpha": torch.tensor(value, dtype=dtype)}

    def _lora(self, module):
        rank, (out, inside, *kernel) = self.chance.choice([1, 2, 5]), module.weight.shape
        ones = [1] * len(kernel)
        up, down = self.random(out, rank, *ones), self.random(rank, inside, *kernel)
        pair = comfyui.PAIRS[0] if self.style % 2 else self.chance.choice(comfyui.PAIRS)
        return {pair[0]: up, pair[1]: down}

    def _conv(self, module):
        out, inside, *kernel = module.weight.shape
        if not kernel:
            return self._lora(module)
        return {"lora_down.weight": self.random(2, inside, 1, 1), "lora_mid.weight": self.random(2, 2, *kernel),
                "lora_up.weight": self.random(out, 2, 1, 1)}  # fmt: skip

    def _loha(self, module):
        out, inside = module.weight.flatten(1).shape
        sides = {"w1_a": (out, 2), "w1_b": (2, inside), "w2_a": (out, 2), "w2_b": (2, inside)}
        return {f"hada_{name}": self.random(*size) for name, size in sides.items()}

    def _lokr(self, module):
        out, inside, *kernel = module.weight.shape
        first = (2, 2) if out % 2 == inside % 2 == 0 else (1, 1)
        return {"lokr_w1": self.random(*first), "lokr_w2": self.random(out // first[0], inside // first[1], *kernel)}

    def _lokr2(self, module):
        out, inside = module.weight.flatten(1).shape
        return {"lokr_w1": self.random(1, 1), "lokr_w2_a": self.random(out, 3), "lokr_w2_b": self.random(3, inside)}

    def _diff(self, module):
        made = {"diff": self.random(*module.weight.shape)}
        return made if module.bias is None else {**made, "diff_b": self.random(*module.bias.shape)}


@functools.cache
def weights(shape: str) -> ModelWeights:
    return ModelWeights(models.tiny_models(shape))


def changed(maker: Maker, lora) -> dict[str, torch.Tensor]:
    """The parameters that the LoRA as read changes."""
    base = weights(maker.shape)
    made = {}
    for module, adapter in lora.adapters.items():
        weight = base.weight(module)
        name = f"{module}" if module.path.endswith(".bias") else f"{module}.weight"
        made[name] = weight + adapter.delta(weight)
    return made


def assert_same(one, other, seed, rounding=0.0):
    assert one.keys() == other.keys(), seed
    for name, tensor in one.items():
        wrong = (tensor - other[name]).abs().max()
        assert wrong <= 1e-4 * (1 + other[name].abs().max()) + rounding * other[name].abs().max(), (seed, name)


@pytest.mark.parametrize("seeds", [SOME, pytest.param(REST, marks=pytest.mark.slow)], ids=["some", "rest"])
def test_each_is_read_as_comfyui_reads_it(seeds, tmp_path):
    styles = set()
    for seed in seeds:
        maker = Maker(seed)
        lora = read_lora(maker.tensors, maker.header)
        expected = comfyui.weights(maker.shape, maker.tensors)
        assert_same(changed(maker, lora), expected, seed)
        assert bool(lora.bundled) == any(key.startswith("bundle") for key in maker.tensors)
        styles.add((maker.shape, maker.style))
        if seed % 10 == 0:  # and so it is after it has been written
            save_lora(lora, tmp_path / "a.safetensors", "kohya", base=maker.shape)
            again = read_lora(tmp_path / "a.safetensors")  # each part has one alpha there, which rounds the factors
            assert_same(changed(maker, again), expected, seed, 4 * torch.finfo(maker.dtype).eps)
    assert len(styles) > 20


BREAKS = "lost", "nan", "shape", "unknown", "whole", "other", "twice"


def broken(maker: Maker, how: str) -> dict[str, torch.Tensor]:
    """The file, damaged."""
    tensors = dict(maker.tensors)
    key = maker.chance.choice([k for k in tensors if not k.endswith("alpha") and not k.startswith("bundle")])
    if how == "lost":
        name = next(
            k for k in tensors if k.endswith(("down.weight", "A.weight", "w1_b", "lokr_w1", "A.default.weight"))
        )
        del tensors[name]
    elif how == "nan":
        tensors[key] = tensors[key].clone().fill_(float("nan"))
    elif how == "shape":
        tensors[key] = tensors[key].repeat(*[3] * tensors[key].ndim)
    elif how == "unknown":
        tensors[f"{key.rpartition('.')[0]}.gradient"] = tensors[key]
    elif how == "whole":
        tensors = {"model.diffusion_model.input_blocks.0.0.weight": tensors[key]}
    elif how == "other":
        tensors["lora_unet_single_blocks_3_linear1.lora_up.weight"] = tensors[key]
    else:
        name = next(k for k in tensors if k.startswith("lora_unet_") and not k.endswith("alpha"))
        tensors[f"lycoris_{name.removeprefix('lora_unet_')}"] = tensors[name]
    return tensors


@pytest.mark.parametrize("how", BREAKS)
def test_each_that_is_broken_is_refused_in_one_sentence(how):
    refused = 0
    for seed in range(24):
        maker = Maker(seed)
        try:
            tensors = broken(maker, how)
        except StopIteration:
            continue  # it has none of what is damaged
        with pytest.raises(InputError) as error:
            lora = read_lora(tensors, maker.header)
            changed(maker, lora)
        refused += 1
        text = str(error.value)
        assert "\n" not in text and 10 < len(text) < 700, text
    assert refused > 3


def test_unknown_tensors_are_left_out_on_request_and_listed(caplog):
    maker = Maker(3)
    strange = {"lora_unet_single_blocks_3_linear1.lora_up.weight": torch.ones(2, 2), "something.else": torch.ones(1)}
    lora = read_lora({**maker.tensors, **strange}, maker.header, skip_unknown=True)
    assert lora.skipped == tuple(sorted(strange))
    assert all(key in caplog.text for key in strange)
    assert_same(changed(maker, lora), comfyui.weights(maker.shape, maker.tensors), 3)
    with pytest.raises(InputError, match=r"FLUX|no LoRA"):
        read_lora({key: strange[key] for key in list(strange)[:1]}, skip_unknown=True)
