"""LoRA files, samplers, U-Nets and pipelines: what is published of each, and that strangers can load it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

import sd_ext
from sd_ext.errors import InputError
from sd_ext.hub import Content, stage_content
from sd_ext.hub.kinds import lora_file, pipeline, sampler, unet
from sd_ext.hub.stranger import run_alone

from ..conftest import build_tiny_pipeline
from .conftest import tiny_lora

REPO, BASE = "alice/thing", "someone/base"
TOKEN = "hf_" + "aB3" * 11


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_a_stranger_has_neither_this_package_nor_a_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "mine.py").write_text("")
    code = """
import os, sys
assert sys.dont_write_bytecode
assert not any("TOKEN" in name for name in os.environ) and os.environ["HF_HUB_OFFLINE"] == "1"
for name in ("sd_ext", "mine"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " is there")
raise SystemExit("as it should be in " + sys.argv[1])
"""
    assert run_alone(code, tmp_path) == (1, f"as it should be in {tmp_path}\n")


def test_what_reading_back_leaves_in_the_folder_is_not_sent(tmp_path, monkeypatch):
    def leaves(code, folder):
        (folder / "left.pyc").write_text("")
        return 0, ""

    def write(new):
        (new / "README.md").write_text("---\nlicense: mit\n---\n")
        return {"README.md"}

    monkeypatch.setattr("sd_ext.hub.stranger.run_alone", leaves)
    with pytest.raises(InputError, match=r"left\.pyc"):
        stage_content(Content("a thing", write, stranger="pass"), tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


# ---- LoRA files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(_tiny_components, tmp_path_factory):
    """A kohya file of somebody else, whose header names folders and a token."""
    from safetensors.torch import load_file, save_file

    from sd_ext.lora import save_lora

    path = tmp_path_factory.mktemp("theirs") / "ink wash.safetensors"
    save_lora(tiny_lora(SimpleNamespace(**_tiny_components)), path, format="kohya")
    header = {"ss_dataset_dirs": '{"/home/bob/pictures": 1}', "note": TOKEN, "ss_network_module": "networks.lora"}
    save_file(load_file(path), path, {**header, "ss_base_model_version": "sd_v1-5"})
    return path


def test_any_lora_file_goes_in_both_formats_without_its_header(theirs, strangers, tmp_path):
    from sd_ext.hub.agreement import check_agreement

    content = lora_file(theirs, REPO, base_model=BASE, words="ink \u202ewash", licence="mit")
    staged = stage_content(content, tmp_path / "staged")
    kohya, diffusers = staged / "ink wash_kohya.safetensors", staged / "pytorch_lora_weights.safetensors"
    assert files_in(staged) == {kohya.name, diffusers.name, "README.md"}
    check_agreement(theirs, kohya)
    check_agreement(theirs, diffusers)
    for path in staged.iterdir():
        assert TOKEN.encode() not in path.read_bytes() and b"/home/bob" not in path.read_bytes()
    assert len(strangers) == 1 and "lora_state_dict" in strangers[0]
    data = card_of(staged).data
    assert (data.base_model, data.license, data.instance_prompt) == (BASE, "mit", "ink \\u202ewash")


# ---- samplers --------------------------------------------------------------------------------------------------------


def test_a_sampler_by_its_name_draws_the_same_where_nothing_is_installed(
    strangers, fresh, tiny_pipeline_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("sd_ext.schedulers.export.COUNTS", range(5, 8))
    staged = stage_content(sampler("dpm++ 2m karras", REPO, model=str(tiny_pipeline_dir)), tmp_path / "staged")
    assert files_in(staged) == {
        "README.md", "exported_scheduler.py", "scheduler_config.json", "sd_ext/scheduler_config.json"
    }  # fmt: skip
    assert len(strangers) == 1 and card_of(staged).data.license == "apache-2.0"
    ours = sd_ext.DPMSolverMultistepScheduler.from_pretrained(staged / "sd_ext")
    code = """
import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True
import torch
from exported_scheduler import ExportedScheduler
scheduler = ExportedScheduler.from_pretrained(sys.argv[1])
scheduler.set_timesteps(7)
x = torch.linspace(-2, 2, 256).reshape(1, 4, 8, 8) * scheduler.init_noise_sigma
for t in scheduler.timesteps:
    x = scheduler.step(0.3 * torch.sin(scheduler.scale_model_input(x, t)), t, x).prev_sample
print(x.double().flatten().tolist())
"""
    theirs = torch.tensor(json.loads(fresh(code, staged).stdout))
    ours.set_timesteps(7)
    x = torch.linspace(-2, 2, 256).reshape(1, 4, 8, 8) * ours.init_noise_sigma
    for t in ours.timesteps:
        x = ours.step(0.3 * torch.sin(ours.scale_model_input(x, t)), t, x).prev_sample
    assert torch.equal(theirs.float(), x.flatten())


# ---- U-Nets and pipelines --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _ours(tmp_path_factory):
    """A pipeline with a sampler and a U-Net of this package, and things beside it that are nobody's business."""
    pipe, folder = build_tiny_pipeline(), tmp_path_factory.mktemp("ours") / "mine"
    pipe.scheduler = sd_ext.make_scheduler("euler", pipe.scheduler.config)
    pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet, pag_scale=2.0)
    pipe.save_pretrained(folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/alice/mine"}))
    (folder / "unet" / "optimizer.pt").write_text(TOKEN)
    (folder / ".env").write_text(TOKEN)
    return folder


@pytest.fixture
def ours(_ours, tmp_path):
    """A copy of it."""
    return shutil.copytree(_ours, tmp_path / "mine")


def test_a_pipeline_of_ours_loads_and_draws_without_us(ours, strangers, fresh, tmp_path):
    content = pipeline(ours, REPO, licence="openrail")
    staged = stage_content(content, tmp_path / "staged")
    assert set(content.left_out) == {".env", "unet/optimizer.pt"} and not {".env", "unet/optimizer.pt"} & files_in(
        staged
    )
    index = json.loads((staged / "model_index.json").read_text())
    assert index["scheduler"] == ["exported_scheduler", "ExportedScheduler"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and len(strangers) == 1
    config = json.loads((staged / "unet" / "config.json").read_text())
    assert "_name_or_path" not in config and config["pag_scale"] == 2.0
    again = sd_ext.VariantUNet2DConditionModel.from_pretrained(staged, subfolder="unet")
    assert again.config.pag_scale == 2.0
    assert "trust_remote_code=True" in card_of(staged).text


@pytest.mark.parametrize("kind", ["CachedUNet2DConditionModel", "HighResUNet2DConditionModel"])
def test_every_unet_of_ours_goes_as_diffusers_own(ours, strangers, tmp_path, kind):
    config = json.loads((ours / "unet" / "config.json").read_text())
    (ours / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": kind}))
    index = json.loads((ours / "model_index.json").read_text())
    (ours / "model_index.json").write_text(json.dumps({**index, "unet": ["sd_ext", kind]}))
    staged = stage_content(pipeline(ours, REPO, licence="openrail"), tmp_path / "staged")
    assert json.loads((staged / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert stage_content(unet(ours, REPO, base_model=BASE, weights=False, licence="mit"), tmp_path / "alone").is_dir()


def test_a_sampler_that_weighs_the_halves_is_attached_in_the_cards_code(ours, strangers, tmp_path):
    for name, attached in (("dpm++ 2m", False), ("euler cfg++", True)):
        config = json.loads((ours / "scheduler" / "scheduler_config.json").read_text())
        scheduler = sd_ext.make_scheduler(name, config)
        scheduler.save_pretrained(ours / "scheduler")
        index = json.loads((ours / "model_index.json").read_text())
        index["scheduler"] = ["sd_ext", type(scheduler).__name__]
        (ours / "model_index.json").write_text(json.dumps(index))
        staged = stage_content(pipeline(ours, REPO, licence="openrail"), tmp_path / name)
        assert ("pipe.scheduler.attach(pipe)" in card_of(staged).text) == attached


@pytest.mark.parametrize("weights", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_unet_with_its_weights_and_as_options_alone(ours, strangers, tmp_path, weights):
    content = unet(ours, REPO, base_model=BASE, weights=weights, licence="mit")
    staged = stage_content(content, tmp_path / "staged")
    expected = {"README.md", "config.json", *(["diffusion_pytorch_model.safetensors"] if weights else [])}
    assert files_in(staged) == expected and len(strangers) == 1
    assert "| `pag_scale` | 2.0 |" in card_of(staged).text
    assert ("from_unet(pipe.unet, pag_scale=2.0)" in card_of(staged).text) == (not weights)


def test_what_does_not_load_elsewhere_is_not_published(ours, strangers, tmp_path):
    config = json.loads((ours / "unet" / "config.json").read_text())
    (ours / "unet" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 64}))
    with pytest.raises(InputError, match="does not load where sd_ext is not installed"):
        stage_content(pipeline(ours, REPO, licence="mit"), tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def _link(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.move(weights, folder / "elsewhere")
    weights.symlink_to(folder / "elsewhere")


def _pickle(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def _foreign(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["my_code", "Mine"]}))


def _mail(folder):
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "author": "bob@example.org"}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_link, "is a link"), (_pickle, "is a pickle"), (_foreign, "'my_code'"), (_mail, r"a mail address \(bob\*\*\*\)")],
)
def test_what_must_not_go_stays(ours, tmp_path, spoil, says):
    spoil(ours)
    with pytest.raises(InputError, match=says):
        stage_content(pipeline(ours, REPO, licence="mit"), tmp_path / "staged")
    assert not (tmp_path / "staged").exists()
    if spoil is _mail:
        assert stage_content(pipeline(ours, REPO, licence="mit"), tmp_path / "staged", mail=True).is_dir()


def test_what_is_missing_or_malformed_is_one_sentence(theirs, tiny_pipeline_dir, tmp_path):
    for call, says in (
        (lambda: lora_file(theirs, REPO), "without its base model"),
        (lambda: lora_file(theirs, REPO, base_model="base"), "write OWNER/NAME"),
        (lambda: lora_file(theirs, REPO, base_model="a b/c"), "--base-model"),
        (lambda: lora_file(theirs, REPO, base_model=BASE, licence="aperche-2.0"), "apache-2.0"),
        (lambda: lora_file(theirs, REPO, base_model=BASE, licence="other"), "needs --license-link"),
        (lambda: lora_file(theirs, REPO, base_model=BASE, licence_link="https://x.org"), "needs --license too"),
        (lambda: lora_file(tiny_pipeline_dir / "unet/diffusion_pytorch_model.safetensors", REPO, base_model=BASE), ""),
        (lambda: sampler("euler", REPO), "say with --model"),
        (lambda: sampler(str(tiny_pipeline_dir / "vae"), REPO), "scheduler_config.json"),
        (lambda: unet(tiny_pipeline_dir, REPO), "without its base model"),
        (lambda: unet(tiny_pipeline_dir, REPO, base_model=BASE), "Give --license"),
        (lambda: unet(tiny_pipeline_dir / "vae", REPO, base_model=BASE, licence="mit"), "AutoencoderKL"),
        (lambda: pipeline(tiny_pipeline_dir, REPO), "Give --license"),
        (lambda: pipeline(tmp_path, REPO, licence="mit"), "model_index.json"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert says in str(caught.value) and "\n" not in str(caught.value)
