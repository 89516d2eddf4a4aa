"""Each method trains what it should and nothing else; the settings reach peft and the optimizer."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from sd_ext.errors import DamagedError, InputError, UnknownNameError
from sd_ext.seams.accelerate import inner_optimizer
from sd_ext.training.lora.adapters import KINDS, target_modules
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.start import keep_start
from sd_ext.training.settings.config import every_setting

from ..lora_cases import untouched, weights

FACTORS = {
    "lora": {"lora_A", "lora_B"}, "dora": {"lora_A", "lora_B", "lora_magnitude_vector"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "lokr": {"lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
}  # fmt: skip
EVERYWHERE = {"lora": {"blocks": ()}, "dora": {}, "loha": {}, "lokr": {}}
ATTENTION = re.compile(r"unet\..*attn[12]\.(to_q|to_k|to_v|to_out\.0)\.")


def part(pattern: re.Pattern | str, name: str) -> re.Match:
    found = re.search(pattern, name)
    assert found, name
    return found


def frozen(trained) -> dict[str, torch.Tensor]:
    """The weights that are not trained, by the names they have in the base."""
    model = trained.task.model
    return {
        name.replace(".base_layer", "").replace("towers.encoders.", ""): p
        for name, p in model.named_parameters()
        if not p.requires_grad
    }


@pytest.mark.parametrize("method", FACTORS)
def test_only_factors_in_attention_are_trained_and_the_base_keeps_every_bit(lora_run, method):
    trained = lora_run(method=method, **EVERYWHERE[method])
    names = trained.changed()
    kinds = {part(r"(lora_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+)", name)[0] for name in names}
    assert kinds <= FACTORS[method]
    assert kinds == FACTORS[method] or method == "lokr"
    assert all(ATTENTION.match(name) for name in names)
    base = {name: w for name, w in weights(untouched(trained.base)).items() if name.startswith("unet.")}
    blocks = tuple(f"unet.{block}" for block in trained.config.adapters.blocks or [""])
    there = {name for name in base if ATTENTION.match(name) and name.startswith(blocks)}
    assert {part(ATTENTION, name)[0] for name in names} == {part(ATTENTION, name)[0] for name in there}
    left = frozen(trained)
    assert left.keys() == base.keys()
    assert all(torch.equal(left[name], base[name]) for name in base)


@pytest.mark.parametrize("method", FACTORS)
def test_every_trained_parameter_moves(lora_run, method):
    trained = lora_run(method=method)
    start = lora_run(method=method, steps=1, learning_rate=1e-9)
    before = dict(start.task.model.named_parameters())
    still = [n for n, p in trained.task.model.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    # The middle block sees a single latent here, and a softmax over one key leaves queries and keys no gradient.
    assert all(re.search(r"mid_block.*attn1\.to_[qk]", name) for name in still)


def test_text_encoders_change_both_of_sdxl_and_their_bases_do_not(lora_run):
    trained = lora_run("sdxl", text_encoder=True)
    for tower in ("text_encoder", "text_encoder_2"):
        names = {n for n in trained.changed() if n.startswith(f"towers.encoders.{tower}.")}
        assert {part(r"(\w+)\.lora_", n)[1] for n in names} == {
            "q_proj",
            "k_proj",
            "v_proj",
            "out_proj",
            "fc1",
            "fc2",
        }
        encoder = trained.task.towers.encoders[tower]
        moved = [p.abs().max() > 0 for n, p in encoder.named_parameters() if "lora_B" in n]
        # SDXL reads the last hidden state but one: the last layer of the first encoder reaches nothing.
        assert all(moved[: len(moved) // 2])
        assert all(moved) == (tower == "text_encoder_2")
    before, left = weights(untouched(trained.base)), frozen(trained)
    assert left.keys() == before.keys()
    assert all(torch.equal(left[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("attention",), r"attn\d\.to_"),
        (("cross_attention",), r"attn2\.to_"),
        (("feed_forward",), r"\.ff\.net\."),
        (("projection",), r"\.proj_(in|out)$"),
        (("resnet",), r"resnets\.\d\.(conv1|conv2|conv_shortcut|time_emb_proj)$"),
        (("sampler",), r"samplers\.0\.conv$"),
        (("all",), r"^(down_blocks|mid_block|up_blocks)\."),
        (("to_q", "conv_in"), r"(to_q|^conv_in)$"),
        (("attn1.to_out.0",), r"attn1\.to_out\.0$"),
    ],
)
@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_targets_mean_these_modules(bases, shape, targets, expected):
    unet = untouched(bases[shape]).unet
    able = [n for n, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert target_modules(unet, targets) == [name for name in able if re.search(expected, name)]
    if "conv_in" not in targets:
        inside = target_modules(unet, targets, ("up_blocks.1", "mid_block"))
        assert inside == [n for n in able if re.search(expected, n) and n.startswith(("up_blocks.1.", "mid_block."))]


def test_targets_that_mean_nothing_are_named_with_what_there_is(bases):
    unet = untouched(bases["sd15"]).unet
    with pytest.raises(UnknownNameError, match=r"'atention'.*'attention'"):
        target_modules(unet, ["atention"])
    with pytest.raises(InputError, match=r"starts with mid_blok; there are .*mid_block"):
        target_modules(unet, ["attention"], ["up_blocks", "mid_blok"])
    with pytest.raises(InputError, match=r"target sampler is in none of the blocks mid_block"):
        target_modules(unet, ["sampler"], ["mid_block"])


def test_named_groups_in_blocks_are_what_the_run_trains(lora_run):
    trained = lora_run(targets=("resnet", "sampler"), blocks=("up_blocks.0",), conv_rank=3, conv_alpha=1.5, rank=2)
    modules = dict(trained.task.unet.named_modules())
    adapted = {name.rpartition(".lora_A")[0] for name in trained.changed() if "lora_A" in name}
    assert adapted
    assert all(name.startswith("unet.up_blocks.0.") for name in adapted)
    kinds = set()
    for name in adapted:
        module = modules[name.removeprefix("unet.")]
        convolution = isinstance(module.get_base_layer(), torch.nn.Conv2d)
        assert module.r["default"] == (3 if convolution else 2)
        assert module.scaling["default"] == (0.5 if convolution else 1.0)
        kinds.add(convolution)
    assert kinds == {True, False}


def test_convolutions_share_the_ranks_strength_unless_told(lora_run):
    trained = lora_run(targets=("resnet",), blocks=("mid_block",), rank=4, alpha=2.0, conv_rank=2, steps=1)
    assert {m.scaling["default"] for m in trained.task.unet.modules() if hasattr(m, "lora_A")} == {0.5}


def test_rank_stabilised_strength(lora_run):
    trained = lora_run(rslora=True, rank=4, alpha=3.0)
    assert {m.scaling["default"] for m in trained.task.unet.modules() if hasattr(m, "lora_A")} == {3 / 4**0.5}


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_pissa_and_olora_start_as_the_base_in_its_own_directions(lora_run, init):
    trained = lora_run(init=init, steps=1, learning_rate=1e-12)
    module = trained.task.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    up, down = module.lora_B["default"].weight, module.lora_A["default"].weight
    original = (
        untouched(trained.base).unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q").weight
    )
    torch.testing.assert_close(module.get_base_layer().weight + up @ down, original, atol=1e-6, rtol=1e-5)
    if init == "pissa":  # the two largest singular values, with their vectors
        u, s, v = torch.linalg.svd(original)
        torch.testing.assert_close(up @ down, u[:, :2] * s[:2] @ v[:2], atol=1e-5, rtol=1e-4)
    else:  # the first columns of an orthogonal basis of the weight's columns
        torch.testing.assert_close(up.T @ up, torch.eye(2), atol=1e-5, rtol=1e-5)


def test_a_start_found_elsewhere_is_the_one_of_the_runs_first_machine(lora_run, tmp_path):
    trained = lora_run(init="pissa", steps=1, learning_rate=1e-12)
    accelerator, unet = Accelerator(cpu=True), copy.deepcopy(trained.task.unet)
    first = keep_start({"unet": unet}, tmp_path / "start.safetensors", accelerator)
    there = {name: p.detach().clone() for name, p in unet.named_parameters()}
    for module in unet.modules():  # another machine finds another part of the base
        if hasattr(module, "lora_A"):
            up, down = module.lora_B["default"].weight, module.lora_A["default"].weight
            module.get_base_layer().weight.data += up.data @ (0.5 * down.data)
            down.data *= 0.5
    again = keep_start({"unet": unet}, tmp_path / "start.safetensors", accelerator)
    for name, p in unet.named_parameters():
        torch.testing.assert_close(p, there[name], atol=1e-6, rtol=1e-5)
    assert all(torch.equal(again.adapters[m].up, first.adapters[m].up) for m in first.adapters)


def test_a_damaged_start_is_named(lora_run, tmp_path):
    trained = lora_run(init="pissa", steps=1, learning_rate=1e-12)
    path, accelerator = tmp_path / "start.safetensors", Accelerator(cpu=True)
    keep_start({"unet": copy.deepcopy(trained.task.unet)}, path, accelerator)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"start\.safetensors is damaged.*choose another --out"):
        keep_start({"unet": copy.deepcopy(trained.task.unet)}, path, accelerator)


def test_gaussian_start_is_noise_with_a_variance_of_one_over_the_rank_squared(lora_run):
    trained = lora_run(init="gaussian", rank=16, steps=1, learning_rate=1e-12)
    values = torch.cat([p.flatten() for n, p in trained.task.model.named_parameters() if "lora_A" in n])
    assert values.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert (values.abs() > 2 / 16).float().mean().item() == pytest.approx(0.0455, abs=0.005)  # uniform ones have none


def test_pissa_of_convolutions_is_refused_before_anything_is_trained(lora_run):
    with pytest.raises(InputError, match=r"init = pissa is for linear layers.*conv"):
        lora_run(init="pissa", targets=("resnet",))


def rates(trained) -> dict[str, float]:
    """Learning rates, beside the run's, by kind of parameter."""
    names = {id(p): name for name, p in trained.task.model.named_parameters()}
    found: dict[str, list[float]] = {}
    for group in inner_optimizer(trained.run.optimizer).param_groups:
        for p in group["params"]:
            where = "vectors" if ".vectors" in names[id(p)] else names[id(p)].partition(".")[0]
            kind = f"{where}.B" if "lora_B" in names[id(p)] else where
            found.setdefault(kind, []).append(group["ratio"])
    assert all(min(ratios) == max(ratios) for ratios in found.values())
    return {kind: ratios[0] for kind, ratios in found.items()}


def test_learning_rates_reach_the_optimizer(lora_run):
    trained = lora_run(
        text_encoder=True, text_encoder_learning_rate=0.005, lora_plus=4.0, tokens=("<w>",), token_learning_rate=0.08,
        prefix="<w>", learning_rate=0.02,
    )  # fmt: skip
    expected = {"unet": 1.0, "unet.B": 4.0, "towers": 0.25, "towers.B": 1.0, "vectors": 4.0}
    assert rates(trained) == pytest.approx(expected)


def test_without_ratios_all_have_the_same(lora_run):
    assert rates(lora_run("sdxl", text_encoder=True)) == dict.fromkeys(("unet", "unet.B", "towers", "towers.B"), 1.0)


def test_epochs_in_place_of_steps(lora_run):
    trained = lora_run(epochs=2, batch_size=4, rank=1)  # 11 pictures to train on
    assert trained.run.step == 2 * 3
    assert trained.config.loop.steps == 6


def test_the_average_is_what_is_saved(lora_run):
    from sd_ext.lora import read_lora

    trained = lora_run(ema=0.5)
    last = sorted((trained.folder.parent / "checkpoints").iterdir())[-1]
    average, now = load_file(last / "ema.safetensors"), load_file(last / "model.safetensors")
    saved = read_lora(trained.diffusers)
    moved = 0
    for module, adapter in saved.adapters.items():
        name = f"{module}.lora_B.default.weight"
        assert torch.equal(adapter.up, average[name])
        if now[name].any():  # attention to a single place has no gradient in its queries and keys
            moved += 1
            assert not torch.equal(adapter.up, now[name])
    assert moved >= len(saved.adapters) - 2


def test_names_of_kinds_are_documented():
    text = every_setting(LoraConfig)["targets"].help
    assert all(kind in text for kind in KINDS)
