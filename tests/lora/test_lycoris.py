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

lycoris = pytest.importorskip("lycoris.modules")
PATHS = {
    "linear": "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    "conv": "mid_block.resnets.0.conv1",
    "point": "mid_block.attentions.0.proj_in",
    "norm": "mid_block.resnets.0.norm1",
}
ALL = "linear", "conv", "point"


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
        "T-LoRA": Case("TLoraModule", {"lora_dim": 2, "alpha": 3}, ("linear", "point")),
        "full": Case("FullModule", {}),
        "norm": Case("NormModule", {}, ("norm",)),
    }


CASES = cases()


def shake(adapter):
    """Random values, as large as a strong adapter's."""
    for name, parameter in adapter.named_parameters():
        draw = torch.rand_like(parameter) if name in ("dora_scale", "rescale") else torch.randn_like(parameter)
        scaled = {"dora_scale": parameter.data * (1 + 0.2 * draw), "rescale": 1 + 0.2 * draw, "scalar": 1 + 0.2 * draw}
        whole = parameter.data if isinstance(adapter, lycoris.FullModule) else 0
        parameter.data = scaled.get(name, whole + 0.4 * draw)


@functools.cache
def trained(name, shape="sd15"):
    """(LyCORIS's file, header, its adapters by path, a base model without them). Shared: only to be read."""
    case, made, tensors = CASES[name], {}, {}
    base = copy.deepcopy(models.tiny_models(shape)["unet"])
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for layer in case.layers:
            path = PATHS[layer]
            module = copy.deepcopy(base.get_submodule(path))
            made[path] = adapter = getattr(lycoris, case.kind)(path, module, 1.0, **case.options).eval()
            if case.kind == "FullModule":
                adapter.apply_to()
            shake(adapter)
            flat = f"lora_unet_{path.replace('.', '_')}"
            tensors |= {f"{flat}.{key}": tensor.detach().clone() for key, tensor in adapter.state_dict().items()}
    rs = {"rs_lora": "True"} if case.options.get("rs_lora") else {}
    return tensors, {"ss_network_args": json.dumps({"algo": adapter.name, **rs})}, made, base


def inputs(module):
    draw = torch.Generator().manual_seed(4)
    if isinstance(module, nn.Linear):
        return torch.randn(3, module.in_features, generator=draw)
    return torch.randn(2, getattr(module, "in_channels", None) or module.num_channels, 6, 6, generator=draw)


@torch.no_grad()
def check(name, lora: Lora, tolerance=1e-4, strength=1.0):
    """That the layers with the LoRA compute what LyCORIS's do."""
    _, _, made, base = trained(name)
    with apply_lora({"unet": base}, lora, strength):
        after = {path: base.get_submodule(path)(inputs(base.get_submodule(path))) for path in made}
    for path, adapter in made.items():
        module = base.get_submodule(path)
        before, expected = module(inputs(module)), adapter(inputs(module))
        change = (expected - before).norm()
        assert change > 0.005 * before.norm()
        assert (after[path] - (before + strength * (expected - before))).norm() <= tolerance * change, path


def read(name) -> Lora:
    tensors, header, *_ = trained(name)
    return read_lora(tensors, header)


@pytest.mark.parametrize("name", CASES)
def test_a_file_means_what_lycoris_computes(name, tmp_path):
    lora = read(name)
    check(name, lora)
    check(name, lora, strength=-0.5)
    save_lora(lora, tmp_path / "a.safetensors", "kohya", base="sd15")
    check(name, read_lora(tmp_path / "a.safetensors"))


KINDS = [name for name in CASES if " rs" not in name and "tucker" not in name]


@pytest.mark.parametrize("name", KINDS)
def test_a_merge_and_a_plain_lora_are_the_same_and_say_their_error(name, tmp_path):
    lora, base = read(name), {"unet": trained(name)[3]}
    for made in (resize(lora, energy=1.0, base=base), merge([(lora, 0.75), (lora, 0.25)], energy=1.0, base=base)):
        check(name, made, 1e-3)
        assert max(made.errors.values()) < 1e-4
        whole = {module for module, adapter in made.adapters.items() if not adapter.plain}
        assert all(module.path.endswith((".bias", "norm1")) for module in whole)
    if whole != set(lora.adapters):
        plain = resize(lora, rank=1, base=base, plain=True)
        assert plain.plain and max(plain.errors.values()) > 0
        save_lora(plain, tmp_path / "a.safetensors", "diffusers")
    if not next(iter(lora)).rules.in_diffusers:
        with pytest.raises(InputError, match="which Diffusers' loader cannot read"):
            save_lora(lora, tmp_path / "b.safetensors", "diffusers")


@pytest.mark.parametrize("name", ["(IA)^3", "GLoRA", "Diag-OFT", "T-LoRA"])
def test_what_depends_on_the_base_is_refused_without_it(name):
    lora = read(name)
    for attempt in (
        lambda: resize(lora, rank=1),
        lambda: merge([(lora, 1.0)], rank=1),
        lambda: lora.delta(next(iter(lora.adapters))),
    ):
        with pytest.raises(InputError, match="depends on the base's weight; give the weight"):
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
