"""What peft trains besides LoRA, LoHa and LoKr: its folders mean here what its own layers compute."""

from __future__ import annotations

import copy
import functools
import json

import peft
import pytest
import torch
from peft.tuners.boft import layer as boft_layer
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError
from sd_ext.lora import apply_lora, describe, from_peft, merge, read_lora, resize, save_lora

from . import models

LINEAR = ["to_q", "to_out.0", "ff.net.2"]
TARGETS = [*LINEAR, "proj_in"]
KERNELS = [*TARGETS, "resnets.0.conv1", "conv_shortcut"]
CASES = {
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, init_weights=False),
    "OFT, few terms": peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=2, target_modules=TARGETS),
    "OFT, four terms": peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=4, target_modules=TARGETS),
    "OFT, nine terms": peft.OFTConfig(oft_block_size=4, num_cayley_neumann_terms=9, target_modules=TARGETS),
    "OFT, exact": peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=TARGETS),
    "OFT, shared": peft.OFTConfig(oft_block_size=4, block_share=True, target_modules=TARGETS),
    "OFT, constrained": peft.OFTConfig(oft_block_size=4, coft=True, eps=0.3, target_modules=TARGETS),
    "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=KERNELS, init_weights=False),
    "BOFT, stages": peft.BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=3, target_modules=KERNELS),
    "(IA)^3": peft.IA3Config(target_modules=KERNELS, feedforward_modules=["to_q", "resnets.0.conv1"]),
    "LoRA with biases": peft.LoraConfig(
        r=2, lora_alpha=3, lora_bias=True, target_modules=["to_out.0", "ff.net.2", "proj_in", "conv1"]
    ),
}


REFUSED = {
    "OFT": r"only peft's own folders have names.*resize",
    "BOFT": r"only peft's own folders have names.*resize",
    "(IA)": r"no names; turn it|cannot read; write kohya's format, or turn",
    "LoRA": r"is a diff, which Diffusers' loader cannot read",
}


class Kernel:
    """What peft's kernel for GPUs computes, so that stages beyond the first are there on a CPU too."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@functools.cache
def trained(name: str, shape: str):
    """peft's model with random adapters, and the model without. Shared: only to be read."""
    base = copy.deepcopy(models.tiny_models(shape)["unet"])
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(boft_layer, "get_fbd_cuda", lambda: "stages" in name)
        patch.setattr(boft_layer, "FastBlockDiag", Kernel)
        torch.manual_seed(1)
        model = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(CASES[name])).eval()
        for key, parameter in model.named_parameters():
            if any(mark in key for mark in ("oft_R", "oft_s", "ia3_l", "lora_A", "lora_B")):
                whole = parameter.data if any(mark in key for mark in ("oft_s", "ia3_l")) else 0
                parameter.data = whole + 0.2 * torch.randn_like(parameter)
        expected = models.outputs({"unet": model, **others(shape)})["unet"]
    return model, base, expected


def others(shape: str):
    return {part: model for part, model in models.tiny_models(shape).items() if part != "unet"}


WITNESSES = ("OFT", "BOFT", "(IA)^3", "LoRA with biases")
"""One of each of peft's methods; the others differ in what is computed from its settings."""


@pytest.mark.parametrize(("name", "shape"), models.on_shapes(CASES, WITNESSES))
@torch.no_grad()
def test_a_folder_means_what_peft_computes(name, shape, tmp_path):
    model, base, expected = trained(name, shape)
    model.save_pretrained(tmp_path / "unet")
    lora = read_lora(tmp_path / "unet")
    plain, rest = models.outputs({"unet": base, **others(shape)})["unet"], {"unet": base}
    assert len(lora) > 10 and (expected - plain).norm() > 0.01 * plain.norm()

    def check(used, tolerance=1e-4):
        with apply_lora(rest, used):
            got = models.outputs({"unet": base, **others(shape)})["unet"]
        assert (got - expected).norm() <= tolerance * (expected - plain).norm()

    check(lora)
    if "," in name:
        return  # only what is computed from the settings differs
    made = resize(lora, energy=1.0, base=rest)
    check(made, 1e-3)
    check(merge([(lora, 0.5), (lora, 0.5)], energy=1.0, base=rest), 1e-3)
    save_lora(made, tmp_path / "plain.safetensors", "kohya", base=shape)
    check(read_lora(tmp_path / "plain.safetensors"), 1e-3)
    for format in ("kohya", "diffusers"):
        if name.startswith("LoRA") and format == "kohya":
            save_lora(lora, tmp_path / "k.safetensors", format, base=shape)
            check(read_lora(tmp_path / "k.safetensors"))
        else:
            with pytest.raises(InputError, match=REFUSED[name[:4].strip(",")]):
                save_lora(lora, tmp_path / "no.safetensors", format, base=shape)


def test_biases_of_models_in_memory():
    model, base, expected = trained("LoRA with biases", "sd15")
    lora = from_peft({"unet": model})
    assert any(module.path.endswith(".bias") for module in lora.adapters)
    with apply_lora({"unet": base}, lora):
        got = models.outputs({"unet": base, **others("sd15")})["unet"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def folder(name: str, path, **settings):
    """A folder as peft saves it, with some settings changed; None leaves one out."""
    trained(name, "sd15")[0].save_pretrained(path)
    told = json.loads((path / "adapter_config.json").read_text())
    told = {key: value for key, value in {**told, **settings}.items() if value is not None}
    (path / "adapter_config.json").write_text(json.dumps(told))
    return path / "adapter_model.safetensors"


def test_what_only_the_settings_tell_is_needed(tmp_path):
    file = folder("OFT", tmp_path / "unet")
    assert describe(file).kinds == {"oft-inputs": len(read_lora(file))}
    assert all(reader.how.startswith("no, since it does not know oft-inputs") for reader in describe(file).readers)
    with pytest.raises(InputError, match=r"cannot be computed without its adapter_config\.json"):
        read_lora(load_file(file))
    for version in (None, "0.17.1"):
        with pytest.raises(InputError, match=r"trained with peft before 0\.18"):
            read_lora(folder("OFT", tmp_path / "unet", peft_version=version))
    read_lora(folder("OFT, exact", tmp_path / "unet", peft_version=None))
    file = folder("(IA)^3", tmp_path / "unet")
    with pytest.raises(InputError, match=r"of a convolution needs its adapter_config\.json"):
        read_lora(load_file(file))
    by_pattern = read_lora(folder("(IA)^3", tmp_path / "unet", feedforward_modules=r".*(to_q|resnets\.0\.conv1)"))
    assert by_pattern.adapters.keys() == read_lora(folder("(IA)^3", tmp_path / "unet")).adapters.keys()
    with pytest.raises(InputError, match="read the folder that peft saves it in"):
        from_peft({"unet": trained("BOFT", "sd15")[0]})


def test_what_cannot_be_is_said(tmp_path):
    file = folder("OFT", tmp_path / "unet")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("oft_R.weight"))
    save_file({**tensors, key: tensors[key][:, :-1].contiguous()}, file)
    with pytest.raises(InputError, match="not above the diagonal of square blocks"):
        read_lora(file)
    save_file({key.replace("oft_R.weight", "oft_r"): tensors[key]}, file)
    with pytest.raises(InputError, match="it is a LoRA of a kind that is not known here"):
        read_lora(file)
    model = {"unet": models.tiny_models("sd15")["unet"]}
    kernel = "base_model.model.mid_block.resnets.0.conv1.oft_R.weight"
    save_file({kernel: torch.zeros(36, 6)}, file)
    with pytest.raises(InputError, match=r"OFT of a convolution of \(16, 16, 3, 3\) turns patches"):
        apply_lora(model, read_lora(file))
    folder("BOFT", tmp_path / "unet")
    for blocks, complaint in ((torch.zeros(2, 3, 4, 4), "stages cannot mix"), (torch.zeros(3, 4, 4), "blocks are"),
                              (torch.zeros(1, 3, 4, 4), "made for a weight of 12 inputs")):  # fmt: skip
        save_file({kernel.replace("oft_R.weight", "boft_R"): blocks}, file)
        with pytest.raises(InputError, match=complaint):
            apply_lora(model, read_lora(file))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)}
    with pytest.raises(InputError, match="adds to the bias, which this layer does not have"):
        read_lora({**pair, f"{name}.lora_B.bias": torch.ones(16)})


def test_comfyuis_wider_weights_are_named(caplog):
    name = "diffusion_model.input_blocks.0.0"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 9, 3, 3), f"{name}.lora_up.weight": torch.ones(8, 2, 1, 1)}
    lora = read_lora({**tensors, f"{name}.reshape_weight": torch.tensor([8, 9, 3, 3])})
    assert "ComfyUI widens the base's weight with zeros" in caplog.text and "unet.conv_in" in caplog.text
    torch.testing.assert_close(lora.delta(("unet", "conv_in")), torch.full((8, 9, 3, 3), 2.0))
    with pytest.raises(InputError, match=r"made for a weight of \(8, 9, 3, 3\), and the base has \(8, 4, 3, 3\)"):
        apply_lora({"unet": models.tiny_models("sd15")["unet"]}, lora)
    with pytest.raises(InputError, match="reshape_weight widens to"):
        read_lora({**tensors, f"{name}.reshape_weight": torch.tensor([8, 4, 3, 3])})


@torch.no_grad()
def test_what_was_trained_on_changed_weights_is_refused_and_what_to_do_helps(tmp_path):
    base = models.tiny_models("sd15")["unet"]
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["to_q"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings, init_lora_weights="pissa")).eval()
        model.peft_config["default"].init_lora_weights = True  # as peft's documentation has it
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = "pissa"
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data += 0.2 * torch.randn_like(parameter)
    expected = models.outputs({"unet": model, **others("sd15")})["unet"]
    model.save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match=r"init_lora_weights = 'pissa'.*path_initial_model_for_weight_conversion"):
        read_lora(tmp_path / "unet")
    model.save_pretrained(tmp_path / "made", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    lora, made = read_lora(tmp_path / "made"), {"unet": base}
    plain = models.outputs({"unet": base, **others("sd15")})["unet"]
    with apply_lora(made, lora):
        got = models.outputs({"unet": base, **others("sd15")})["unet"]
    assert (got - expected).norm() <= 1e-4 * (expected - plain).norm()


def test_settings_that_make_something_else_of_the_tensors_are_refused(tmp_path):
    for setting in ("use_qalora", "alora_invocation_tokens", "layer_replication"):
        with pytest.raises(InputError, match=f"its settings have {setting}, with which peft computes otherwise"):
            read_lora(folder("LoRA with biases", tmp_path / "unet", **{setting: [[1]]}))
