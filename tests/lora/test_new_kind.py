"""A further kind is one registration: nothing else has to know it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.hub.agreement import check_agreement
from sd_ext.lora import Adapter, Lora, ModuleName, apply_lora, extract, from_peft, merge, read_lora, resize, save_lora
from sd_ext.lora.formats.file_names import PEFT_FILE, PEFT_SETTINGS
from sd_ext.lora.kinds import KINDS, find_kind, kind_of, register
from sd_ext.lora.kinds.kind import Kind

from . import models

PATH = "down_blocks.0.attentions.0.proj_in"
MODULE, KOHYA = ModuleName("unet", PATH), f"lora_unet_{PATH.replace('.', '_')}"
SPELLINGS = {"outer_a": "a", "outer_b": "b"}


class Outer(Kind):
    """delta = alpha / 2 * a b^T: a kind that adds the same to every weight."""

    name = "outer"
    factors = (frozenset({"a", "b"}),)
    kohya = dotted = SPELLINGS
    peft_type = "OUTER"
    options = frozenset({"init"})

    def product(self, tensors):
        return torch.outer(tensors["a"], tensors["b"])

    def rank(self, tensors):
        return 2

    def two_factors(self, tensors):
        return tensors["a"][:, None].float(), tensors["b"][None].float()


class Gain(Kind):
    """W' = W (1 + alpha g), a gain for each output: a kind whose change depends on the weight, of whatever width."""

    name = "gain"
    factors = (frozenset({"g"}),)
    kohya = dotted = {"gain_g": "g"}  # noqa: RUF012

    def scale(self, tensors, alpha):
        return alpha

    def delta(self, tensors, scale, weight):
        if weight is None:
            return self.product(tensors)
        return weight.float() * scale * tensors["g"].float().reshape(-1, *[1] * (weight.ndim - 1))

    def decisive(self, tensors, scale):
        return [tensors["g"].float() * scale]

    def shape(self, tensors):
        return None

    def check_weight(self, tensors, shape):
        if shape[0] != len(tensors["g"]):
            raise InputError(f"{len(tensors['g'])} gains for {shape[0]} outputs")


@pytest.fixture
def kinds():
    """The two are known, for one test."""
    for kind in (Outer(), Gain()):
        register(kind)
    yield
    for name in ("outer", "gain"):
        del KINDS[name]


@pytest.fixture
def base():
    return copy.deepcopy(models.tiny_models("sd15"))


def weight_of(base):
    return base["unet"].get_submodule(PATH).weight.detach().clone()


@pytest.fixture
def outer(base):
    draw = torch.Generator().manual_seed(0)
    out, inside = weight_of(base).shape[:2]
    return {"a": torch.randn(out, generator=draw), "b": torch.randn(inside, generator=draw)}


def test_it_is_read_applied_written_and_merged(kinds, base, outer, tmp_path):
    file = {f"{KOHYA}.outer_a": outer["a"], f"{KOHYA}.outer_b": outer["b"], f"{KOHYA}.alpha": torch.tensor(3.0)}
    before, change = weight_of(base), 1.5 * torch.outer(outer["a"], outer["b"])
    lora = read_lora(file)
    assert repr(lora) == "Lora(1 outer; ranks 2; unet)"
    dotted = read_lora({f"unet.{PATH}.{spelling}": outer[name] for spelling, name in SPELLINGS.items()})
    torch.testing.assert_close(dotted.delta(MODULE), torch.outer(outer["a"], outer["b"]))
    with apply_lora(base, lora, 2.0):
        torch.testing.assert_close(weight_of(base).flatten(1), before.flatten(1) + 2 * change)
    save_lora(lora, tmp_path / "a.safetensors", "kohya")
    again = read_lora(tmp_path / "a.safetensors")
    assert torch.equal(again.delta(MODULE), lora.delta(MODULE))
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert set(opened.keys()) == set(file)
        assert opened.metadata()["ss_network_args"] == '{"algo": "outer"}'
    check_agreement(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    merged = merge([(lora, 1.0), (lora, -0.25)])
    assert merged.plain
    torch.testing.assert_close(merged.delta(MODULE), 0.75 * change)
    with pytest.raises(InputError, match=r"proj_in is an outer, which Diffusers' loader cannot read"):
        save_lora(lora, tmp_path / "b.safetensors", "diffusers")


def test_dora_lies_beside_it_too(kinds, base, outer, tmp_path):
    before = weight_of(base)
    magnitudes = torch.rand(before.shape[0], *[1] * (before.ndim - 1)) + 0.5
    lora = Lora({MODULE: Adapter("outer", {**outer, "dora": magnitudes}, 2.0)}, base="sd15")
    save_lora(lora, tmp_path / "a.safetensors", "kohya")
    after = before + read_lora(tmp_path / "a.safetensors").delta(MODULE, before)
    torch.testing.assert_close(after.flatten(1).norm(dim=1), magnitudes.flatten())
    assert repr(lora) == "Lora(1 outer+dora; ranks 2; unet)"


def test_one_that_depends_on_the_weight(kinds, base, tmp_path):
    before = weight_of(base)
    gains = torch.linspace(-0.5, 0.5, len(before))
    lora = Lora({MODULE: Adapter("gain", {"g": gains}, 2.0)}, base="sd15")
    save_lora(lora, tmp_path / "a.safetensors", "kohya")
    lora = read_lora(tmp_path / "a.safetensors")
    expected = before * (1 + 2 * gains).reshape(-1, *[1] * (before.ndim - 1))
    plain = resize(lora, energy=1.0, base=base)
    assert plain.plain
    tuned = copy.deepcopy(base)
    apply_lora(tuned, lora)
    torch.testing.assert_close(weight_of(tuned), expected)
    for found in (plain, extract(base, tuned, energy=1.0)):
        torch.testing.assert_close(before + found.delta(MODULE, before), expected, rtol=1e-4, atol=1e-5)
    check_agreement(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    save_lora(Lora({MODULE: Adapter("gain", {"g": gains}, 2.1)}, base="sd15"), tmp_path / "b.safetensors", "kohya")
    with pytest.raises(InputError, match="they differ"):
        check_agreement(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for attempt in (lambda: lora.delta(MODULE), lambda: resize(lora, rank=1), lambda: merge([(lora, 1.0)])):
        with pytest.raises(InputError, match=r"depends on the base's weight; give the base|no exact sum"):
            attempt()
    with pytest.raises(InputError, match=r"conv_out: 8 gains for 4 outputs"):
        apply_lora(base, Lora({ModuleName("unet", "conv_out"): Adapter("gain", {"g": torch.ones(8)}, 1.0)}))


class Layer(torch.nn.Module):
    """What peft would put around a module for such a kind."""

    def __init__(self, tensors):
        super().__init__()
        self.scaling, self.alpha, self.r = {"default": 1.0}, {"default": 3}, {"default": 4}
        for spelling, name in SPELLINGS.items():
            setattr(self, spelling, torch.nn.ParameterDict({"default": torch.nn.Parameter(tensors[name])}))

    def get_base_layer(self):
        return self


def test_it_is_found_in_models_that_carry_it(kinds, base, outer):
    base["unet"].set_submodule(PATH, Layer(outer))
    lora = from_peft(base)
    torch.testing.assert_close(lora.delta(MODULE), 0.75 * torch.outer(outer["a"], outer["b"]))


def test_its_folders_from_peft_are_read(kinds, outer, tmp_path):
    save_file({f"base_model.model.{PATH}.{key}": outer[name] for key, name in SPELLINGS.items()}, tmp_path / PEFT_FILE)
    (tmp_path / PEFT_SETTINGS).write_text(json.dumps({"peft_type": "OUTER", "alpha": 5}))
    torch.testing.assert_close(read_lora(tmp_path).delta(MODULE), 2.5 * torch.outer(outer["a"], outer["b"]))


def test_names_are_taken_once(kinds):
    with pytest.raises(InputError, match="called outer already"):
        register(Outer())
    other = Outer()
    other.name = "other"
    with pytest.raises(InputError, match="outer_a is how files call a tensor of outer; other needs another"):
        register(other)


def test_what_is_not_registered_is_unknown(outer):
    with pytest.raises(UnknownNameError, match="kind of adapter 'outer'"):
        Adapter("outer", outer, 1.0)
    with pytest.raises(UnknownNameError, match="outer_a"):
        read_lora({f"{KOHYA}.outer_a": outer["a"]})
    assert find_kind("dora") is not kind_of("lora", {"down", "up", "dora"})
    with pytest.raises(InputError, match="a dora cannot be made of down, up"):
        Adapter("dora", {"down": torch.ones(1, 4), "up": torch.ones(6, 1)}, 1.0)
