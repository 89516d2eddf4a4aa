"""Every kind of adapter: its delta is what peft adds, and it survives kohya's file."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Lora, ModuleName, apply_lora, describe, from_peft, merge, read_lora, resize, save_lora
from sd_ext.lora.weights import ModelWeights

from . import adapters, models

TARGETS = ["to_q", "to_out.0", "conv1", "proj_in", "conv_shortcut"]
CONFIGS = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS),
    "dora": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True),
    "rslora": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_rslora=True),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=TARGETS),
    "loha, cores": LoHaConfig(r=3, alpha=5, target_modules=TARGETS, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=2, alpha=5, target_modules=TARGETS),
    "lokr, cores": LoKrConfig(r=1, alpha=5, target_modules=TARGETS, use_effective_conv2d=True, decompose_both=True),
    "lokr, whole": LoKrConfig(r=30, alpha=5, target_modules=TARGETS, decompose_factor=2),
}


@functools.cache
def trained_as(kind: str, shape: str) -> tuple[Lora, dict[ModuleName, tuple[torch.Tensor, torch.Tensor]]]:
    """A LoRA of this kind, and of each of its modules the base's weight and what peft's own merging makes of it."""
    model = copy.deepcopy(models.tiny_models(shape)["unet"])
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        inject_adapter_in_model(copy.deepcopy(CONFIGS[kind]), model)
        adapters.shake(model)
    lora = from_peft({"unet": model}, base=shape)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    merged = ModelWeights({"unet": model})
    return lora, {module: (base[f"{module.path}.weight"], merged.weight(module)) for module in lora.adapters}


@pytest.fixture
def trained(kind, shape):
    """The kind, the shape, the LoRA, and the weights before and after. Shared by all tests: only to be read."""
    return kind, shape, *trained_as(kind, shape)


each_kind = pytest.mark.parametrize(("kind", "shape"), models.on_shapes(CONFIGS))


@each_kind
def test_delta_is_what_peft_adds(trained):
    _, _, lora, weights = trained
    assert len(weights) > 30
    for module, (before, after) in weights.items():
        torch.testing.assert_close(before + lora.delta(module, before), after, rtol=1e-4, atol=1e-5)


@each_kind
def test_kohyas_file_keeps_it(trained, tmp_path):
    kind, _, lora, weights = trained
    save_lora(lora, tmp_path / "a.safetensors", "kohya")
    again = read_lora(tmp_path / "a.safetensors")
    for module, (before, _) in weights.items():
        torch.testing.assert_close(again.delta(module, before), lora.delta(module, before), rtol=1e-5, atol=1e-6)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        module = file.metadata()["ss_network_module"]
    assert module == ("networks.lora" if kind in ("lora", "rslora") else "lycoris.kohya")


@each_kind
def test_as_plain_lora_it_is_the_same_and_says_so(trained, tmp_path):
    kind, shape, lora, weights = trained
    base = models.tiny_models(shape)
    plain = resize(lora, energy=1.0, base=base if kind == "dora" else None)
    assert plain.plain
    assert max(plain.errors.values()) < 1e-5
    for module, (before, _) in weights.items():
        torch.testing.assert_close(plain.delta(module, before), lora.delta(module, before), rtol=1e-3, atol=1e-5)
    save_lora(plain, tmp_path / "a.safetensors", "diffusers")


@each_kind
def test_diffusers_format_refuses_what_diffusers_cannot_read(trained, tmp_path):
    kind, _, lora, _ = trained
    if (kind.startswith("lo") and "," in kind) or kind in ("loha", "lokr"):
        with pytest.raises(InputError, match=r"unet\..* is a lo(ha|kr), .* plain LoRA"):
            save_lora(lora, tmp_path / "a.safetensors", "diffusers")
        assert not list(tmp_path.iterdir())
    else:
        save_lora(lora, tmp_path / "a.safetensors", "diffusers")
        again = read_lora(tmp_path / "a.safetensors")
        assert all(
            again.adapters[module].scale == pytest.approx(adapter.scale) for module, adapter in lora.adapters.items()
        )


def test_dora_over_inputs_as_old_lycoris_wrote_it():
    draw = torch.Generator().manual_seed(0)
    weight, down, up = (torch.randn(s, generator=draw) for s in ((6, 4), (2, 4), (6, 2)))
    magnitude = torch.rand(1, 4, generator=draw) + 0.5
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": magnitude}
    lora = read_lora(tensors)
    (module,) = lora.adapters
    after = weight + lora.delta(module, weight)
    torch.testing.assert_close(after.norm(dim=0), magnitude[0])
    direction = torch.nn.functional.cosine_similarity(after, weight + up @ down, dim=0)
    torch.testing.assert_close(direction, torch.ones(4))
    with pytest.raises(InputError, match="over its inputs"):
        save_lora(lora, "a.safetensors", "diffusers")


def test_oft_as_kohyas_trainer_writes_and_merges_it(tmp_path):
    """Restated from its format: Q = B - B^T, its norm at most alpha times the outputs, R^T W by blocks of outputs."""
    draw = torch.Generator().manual_seed(0)
    base = models.tiny_models("sd15")["unet"]
    tensors, expected = {}, {}
    for path in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"):
        weight, blocks = base.get_submodule(path).weight, 0.3 * torch.randn(4, 4, 4, generator=draw)
        name = f"oft_unet_{path.replace('.', '_')}"
        tensors |= {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(0.05)}
        skew = blocks - blocks.transpose(1, 2)
        assert skew.norm() > 0.05 * len(weight)
        skew = skew * (0.05 * len(weight) / skew.norm())
        turn = (torch.eye(4) + skew) @ torch.linalg.inv(torch.eye(4) - skew)
        expected[path] = torch.einsum("knm,knp->kmp", turn, weight.reshape(4, 4, -1)).reshape(weight.shape)
    save_file(tensors, tmp_path / "a.safetensors")
    save_lora(read_lora(tmp_path / "a.safetensors"), tmp_path / "k.safetensors", "kohya", base="sd15")
    for name, reads in (("a", False), ("k", True)):
        lora = read_lora(tmp_path / f"{name}.safetensors")
        for path, after in expected.items():
            before = base.get_submodule(path).weight
            torch.testing.assert_close(before + lora.delta(("unet", path), before), after, rtol=1e-5, atol=1e-6)
        told = {reader.program: reader.how for reader in describe(tmp_path / f"{name}.safetensors").readers}
        assert told["A1111"] == "yes" and (told["ComfyUI"] == "yes") == reads


def test_dora_needs_the_base():
    tensors = {"down": torch.ones(1, 4), "up": torch.ones(6, 1), "dora": torch.ones(6, 1)}
    lora = Lora({ModuleName("unet", "conv_in"): Adapter("lora", tensors, 1.0)})
    for attempt in (lambda: lora.delta(("unet", "conv_in")), lambda: resize(lora, rank=1)):
        with pytest.raises(InputError, match=r"unet.conv_in: what DoRA adds depends .* give the base"):
            attempt()


def test_dora_on_some_modules_only_goes_to_kohya():
    tensors = {"down": torch.ones(1, 4), "up": torch.ones(6, 1)}
    dora = Adapter("lora", {**tensors, "dora": torch.ones(6, 1)}, 1.0)
    made = {ModuleName("unet", "conv_in"): dora, ModuleName("unet", "conv_out"): Adapter("lora", tensors, 1.0)}
    with pytest.raises(InputError, match="on some modules only"):
        save_lora(Lora(made), "a.safetensors", "diffusers")


def test_pissa_is_taken_out_by_merging():
    """A base altered by the initialisation: after minus before is what the original base needs."""
    original = copy.deepcopy(models.tiny_models("sd15")["unet"])
    model = copy.deepcopy(original)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights="pissa"), model)
    before = copy.deepcopy(from_peft({"unet": model}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter += 0.1
    change = merge([(from_peft({"unet": model}), 1.0), (before, -1.0)])
    apply_lora({"unet": original}, change)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    trained, fused = ModelWeights({"unet": model}), ModelWeights({"unet": original})
    for module in change.adapters:
        torch.testing.assert_close(fused.weight(module), trained.weight(module), rtol=1e-4, atol=1e-5)
