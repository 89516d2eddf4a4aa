"""Every kind that LyCORIS trains: its file means here what its forward computes, in any form it can be given.

LyCORIS 4.1.3's own merging applies alpha / rank twice for LoHa and LoKr, so the forward is the oracle.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import logging
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from sd_ext.errors import InputError
from sd_ext.lora import Lora, ModuleName, apply_lora, merge, read_lora, resize, save_lora

from . import models
from .adapters import kohya_name

lycoris = pytest.importorskip("lycoris.modules")
PLACES = {
    "linear": ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"),
    "conv": ("unet", "mid_block.resnets.0.conv1"),
    "point": ("unet", "up_blocks.0.resnets.0.conv_shortcut"),  # a 1 x 1 convolution
    "proj": ("unet", "mid_block.attentions.0.proj_in"),  # that or a linear layer, by the family
    "norm": ("unet", "mid_block.resnets.0.norm1"),
    "text": ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
    "text 2": ("text_encoder_2", "encoder.layers.1.mlp.fc2"),
    "text norm": ("text_encoder", "encoder.layers.0.layer_norm1"),
}
TEXTS = "text", "text 2"
ALL = "linear", "conv", "point", "proj", *TEXTS


class Case(NamedTuple):
    kind: Any
    options: dict[str, Any]
    layers: tuple[str, ...] = ALL
    atol: float = 1e-4


def cases():
    made = {}
    decomposed = {"": {}, "dora": {"weight_decompose": True}, "dora in": {"weight_decompose": True, "wd_on_out": False}}
    forms = itertools.product(("LoConModule", "LohaModule", "LokrModule"), decomposed, (False, True), (False, True))
    for kind, dora, tucker, stable in forms:
        if tucker and (stable or dora == "dora in"):
            continue
        name = f"{kind}{' ' * bool(dora)}{dora}{' tucker' * tucker}{' rs' * stable}"
        made[name] = Case(
            kind, {"lora_dim": 2, "alpha": 3, "use_tucker": tucker, "rs_lora": stable, **decomposed[dora]}
        )
    return made | {
        "LoKr, both in two": Case("LokrModule", {"lora_dim": 1, "alpha": 2, "decompose_both": True}),
        "LoKr, whole": Case("LokrModule", {"lora_dim": 9, "alpha": 2, "full_matrix": True}),
        "scalar": Case("LoConModule", {"lora_dim": 2, "use_scalar": True}),
        "(IA)^3": Case("IA3Module", {}),
        "(IA)^3 of inputs": Case("IA3Module", {"train_on_input": True}),
        "GLoRA": Case("GLoRAModule", {"lora_dim": 2, "alpha": 3}),
        "GLoRA rs": Case("GLoRAModule", {"lora_dim": 2, "alpha": 3, "rs_lora": True}),
        "Diag-OFT": Case("DiagOFTModule", {"lora_dim": 4}),
        "Diag-OFT, limited": Case("DiagOFTModule", {"lora_dim": 4, "constraint": 0.02, "rescaled": True}),
        "BOFT": Case("ButterflyOFTModule", {"lora_dim": 4}),
        "BOFT, limited": Case("ButterflyOFTModule", {"lora_dim": 4, "constraint": 0.02, "rescaled": True}),
        "T-LoRA": Case("TLoraModule", {"lora_dim": 2, "alpha": 3}, ("linear", "point", "proj", *TEXTS)),
        "full": Case("FullModule", {}),
        "norm": Case("NormModule", {}, ("norm", "text norm")),
    }


CASES = cases()


def shake(adapter):
    """Random values, as large as a strong adapter's."""
    for name, parameter in adapter.named_parameters():
        draw = torch.rand_like(parameter) if name in ("dora_scale", "rescale") else torch.randn_like(parameter)
        scaled = {"dora_scale": parameter.data * (1 + 0.2 * draw), "rescale": 1 + 0.2 * draw, "scalar": 1 + 0.2 * draw}
        whole = parameter.data if isinstance(adapter, lycoris.FullModule) else 0
        parameter.data = scaled.get(name, whole + 0.4 * draw)


def layers_of(shape):
    """Module -> layer of the tiny models of this shape."""
    return {
        ModuleName(part, path.removeprefix("text_model.")): layer
        for part, model in models.tiny_models(shape).items()
        for path, layer in model.named_modules()
    }


@functools.cache
def trained(name, shape):
    """(LyCORIS's file, its header, its adapters by module, base models without them). Shared: only to be read."""
    case, made, tensors, layers = CASES[name], {}, {}, layers_of(shape)
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for place in (ModuleName(*PLACES[layer]) for layer in case.layers):
            if place not in layers:
                continue  # the second text encoder of other families
            flat = kohya_name(shape, *place)
            adapter = getattr(lycoris, case.kind)(flat, copy.deepcopy(layers[place]), 1.0, **case.options).eval()
            if case.kind == "FullModule":
                adapter.apply_to()
            shake(adapter)
            made[place] = adapter
            tensors |= {f"{flat}.{key}": tensor.detach().clone() for key, tensor in adapter.state_dict().items()}
    rs = {"rs_lora": "True"} if case.options.get("rs_lora") else {}
    return tensors, {"ss_network_args": json.dumps({"algo": adapter.name, **rs})}, made, models.tiny_models(shape)


def inputs(module):
    draw = torch.Generator().manual_seed(4)
    if isinstance(module, nn.Linear):
        return torch.randn(3, module.in_features, generator=draw)
    if isinstance(module, nn.LayerNorm):
        return torch.randn(3, *module.normalized_shape, generator=draw)
    return torch.randn(2, getattr(module, "in_channels", None) or module.num_channels, 6, 6, generator=draw)


@torch.no_grad()
def check(name, shape, lora: Lora, strength=1.0):
    """That the layers with the LoRA compute what LyCORIS's do, within 1e-4 of what they change."""
    _, _, made, base = trained(name, shape)
    layers = layers_of(shape)
    given = {place: inputs(layers[place]) for place in made}
    before = {place: layers[place](x) for place, x in given.items()}
    with apply_lora(base, lora, strength):
        after = {place: layers[place](x) for place, x in given.items()}
    assert {ModuleName(m.part, m.path.removesuffix(".bias")) for m in lora.adapters} == made.keys()
    for place, adapter in made.items():
        change = adapter(given[place]) - before[place]
        assert change.norm() > 0.005 * before[place].norm()
        assert (after[place] - (before[place] + strength * change)).norm() <= 1e-4 * change.norm(), place


def read(name, shape) -> Lora:
    tensors, header, *_ = trained(name, shape)
    return read_lora(tensors, header)


@pytest.mark.parametrize(("name", "shape"), models.on_shapes(CASES))
def test_a_file_means_what_lycoris_computes(name, shape, tmp_path):
    lora = read(name, shape)
    check(name, shape, lora)
    check(name, shape, lora, strength=-0.5)
    save_lora(lora, tmp_path / "a.safetensors", "kohya", base=shape)
    check(name, shape, read_lora(tmp_path / "a.safetensors"))
    if all(adapter.rules.in_diffusers for adapter in lora) and "dora in" not in name:
        save_lora(lora, tmp_path / "b.safetensors", "diffusers")
        check(name, shape, read_lora(tmp_path / "b.safetensors"))


KINDS = [name for name in CASES if " rs" not in name and "tucker" not in name]


@pytest.mark.parametrize(("name", "shape"), models.on_shapes(KINDS))
def test_a_merge_and_a_plain_lora_are_the_same_and_say_their_error(name, shape, tmp_path):
    lora, base = read(name, shape), trained(name, shape)[3]
    for made in (resize(lora, energy=1.0, base=base), merge([(lora, 0.75), (lora, 0.25)], energy=1.0, base=base)):
        check(name, shape, made)
        assert max(made.errors.values()) < 1e-4
        whole = {module for module, adapter in made.adapters.items() if not adapter.plain}
        assert all(module.path.endswith((".bias", "norm1")) for module in whole)
    if not whole:
        save_lora(made, tmp_path / "a.safetensors", "diffusers")
        check(name, shape, read_lora(tmp_path / "a.safetensors"))
    if whole != set(lora.adapters):
        plain = resize(lora, rank=1, base=base, plain=True)
        assert plain.plain and max(plain.errors.values()) > 0
        save_lora(plain, tmp_path / "b.safetensors", "diffusers")
    if not next(iter(lora)).rules.in_diffusers:
        with pytest.raises(InputError, match="which Diffusers' loader cannot read"):
            save_lora(lora, tmp_path / "c.safetensors", "diffusers")


@pytest.mark.parametrize("name", ["(IA)^3", "GLoRA", "Diag-OFT", "T-LoRA"])
def test_what_depends_on_the_base_is_refused_without_it(name):
    lora = read(name, "sd15")
    for attempt in (
        lambda: resize(lora, rank=1),
        lambda: merge([(lora, 1.0)], rank=1),
        lambda: lora.delta(next(iter(lora.adapters))),
    ):
        with pytest.raises(InputError, match=r"depends on the base's weight; give the base \(--base-model MODEL"):
            attempt()


def test_dylora_is_a_lora():
    layer = nn.Conv2d(8, 16, 3, padding=1)
    adapter = lycoris.DyLoraModule("x", layer, 1.0, lora_dim=4, alpha=2, block_size=2)
    shake(adapter)
    tensors = {f"lora_unet_mid_block_resnets_0_conv1.{key}": tensor for key, tensor in adapter.state_dict().items()}
    up, down = torch.cat(list(adapter.up_list), 1), torch.cat(list(adapter.down_list))
    (made,) = read_lora(tensors)
    torch.testing.assert_close(made.delta(layer.weight), ((up @ down) * 2 / 4).reshape(layer.weight.shape).detach())


def test_single_weights_beside_the_factors_are_added():
    """`bias_*`, which LyCORIS's extraction writes: the largest entries of what the factors do not hold."""
    draw = torch.Generator().manual_seed(0)
    down, up, rest = (torch.randn(s, generator=draw) for s in ((2, 8, 3, 3), (16, 2, 1, 1), (16, 72)))
    rest *= rest.abs() > 1.5
    sparse = rest.to_sparse().coalesce()
    name = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0),
        f"{name}.bias_indices": sparse.indices().short(), f"{name}.bias_values": sparse.values(),
        f"{name}.bias_size": torch.tensor(rest.shape).short(),
    }  # fmt: skip
    lora = read_lora(tensors)
    expected = (up.flatten(1) @ down.flatten(1) + rest).reshape(16, 8, 3, 3)
    torch.testing.assert_close(lora.delta(("unet", "mid_block.resnets.0.conv1")), expected)
    again = read_lora(
        {f"{name}.{key}": value for key, value in next(iter(lora)).rules.for_kohya(next(iter(lora)).tensors).items()}
    )
    torch.testing.assert_close(again.delta(("unet", "mid_block.resnets.0.conv1")), expected)
    with pytest.raises(InputError, match="are no places in a matrix"):
        read_lora({**tensors, f"{name}.bias_size": torch.tensor([4, 4]).short()})


def test_a_weight_that_is_set_is_what_it_becomes():
    """ComfyUI's `set_weight`."""
    base = {"unet": copy.deepcopy(models.tiny_models("sd15")["unet"])}
    weight = torch.randn_like(base["unet"].conv_in.weight)
    lora = read_lora({"diffusion_model.input_blocks.0.0.set_weight": weight})
    assert list(lora.adapters) == [ModuleName("unet", "conv_in")]
    apply_lora(base, lora)
    torch.testing.assert_close(base["unet"].conv_in.weight, weight)
