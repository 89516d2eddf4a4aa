"""A single file is read as the folder of the same model would be."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError, ModelError
from sd_ext.lora import extract
from sd_ext.models import SingleFile, find_model, find_part
from sd_ext.models.building import check_complete
from sd_ext.models.pipeline import load_pipeline
from sd_ext.models.written import write_model
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.trainable import find_trainable
from tests.lora.models import FULL_TEXT_ENCODERS, FULL_UNETS
from tests.models import original_layout as original
from tests.models.original_layout import EPSILON, FAMILIES

from ..few import few

CPU = torch.device("cpu")


def by_diffusers(tensors, model):
    """Part -> its tensors under Diffusers' names, by Diffusers' own functions."""
    from diffusers.loaders import single_file_utils as theirs

    made = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(tensors), model.config("unet")),
        "vae": theirs.convert_ldm_vae_checkpoint(dict(tensors), model.config("vae")),
    }
    for part, encoder in model.layout.text.items():
        start = encoder.beginnings[0]
        if encoder.style == "clip":
            made[part] = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
        else:
            found = theirs.convert_open_clip_checkpoint(model.without_weights(part), dict(tensors), start)
            made[part] = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
    return made


@pytest.mark.parametrize(
    "name", ["sd21", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd15", "sdxl", "sdxl-refiner"))]
)
def test_every_tensor_is_where_diffusers_puts_it(name, tiny_file):
    tensors, model = load_file(tiny_file(name)), find_model(tiny_file(name))
    assert isinstance(model, SingleFile)
    assert model.layout.name == name
    for part, expected in by_diffusers(tensors, model).items():
        loaded = model.load(part, torch.float16).state_dict()
        assert loaded
        for key, value in loaded.items():
            key = key.removeprefix("text_model.")
            assert value.dtype == torch.float16
            assert torch.equal(value, expected[key].reshape(value.shape)), (part, key)


# As in the config files of the models on the Hub.
FULL_REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 4,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
PIPELINES = {
    "sd15": "StableDiffusionPipeline", "sd21": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}  # fmt: skip


@pytest.fixture(params=few(FAMILIES, 2))
def full(request, tmp_path):
    """(name of a family, its tensors, a file of full size)."""
    listed = original.shapes(request.param, tiny=False)
    path = original.write_sparse(tmp_path / "full.safetensors", listed, metadata=EPSILON)
    return request.param, listed, find_model(path)


def test_a_file_of_full_size_has_the_published_configs(full):
    name, listed, model = full
    model.check()
    published = {**FULL_UNETS, "sdxl-refiner": FULL_REFINER}[name]
    unet = model.config("unet")
    assert {key: unet[key] for key in published} == published
    assert (unet["layers_per_block"], unet["in_channels"], unet["out_channels"]) == (2, 4, 4)
    texts = FULL_TEXT_ENCODERS.get(name, FULL_TEXT_ENCODERS["sdxl"][1:])
    for part, expected in zip(model.text_parts, texts, strict=True):
        config = model.config(part)
        assert {key: config[key] for key in expected} == expected
        assert config["hidden_act"] == ("quick_gelu" if expected["hidden_size"] == 768 else "gelu")
    vae = model.config("vae")
    assert (vae["block_out_channels"], vae["layers_per_block"]) == ([128, 256, 512, 512], 2)
    assert vae["scaling_factor"] == (0.18215 if name in ("sd15", "sd21") else 0.13025)
    assert (model.pipeline_class, model.pixels_per_latent) == (PIPELINES[name], 8)
    used = {stored.key for part in model.networks for stored in model.tensors(part).values()}
    assert used | set(model.extras) == set(listed)
    last = {key for key in listed if ".resblocks.23." in key or key.endswith(".text_projection")}
    unread = {"sd15": set(), "sd21": last}.get(name, set())
    assert set(model.extras) == unread | {key for key in listed if key.endswith("logit_scale")}


@pytest.mark.slow
def test_a_file_of_full_size_has_every_tensor_of_the_networks(full):
    _, _, model = full
    for part, config in model.networks.items():
        check_complete(model, part, config)


def answers(pipe):
    """What the networks of a pipeline make of the same numbers, without a picture."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    picture = torch.randn(1, 3, 32, 32, generator=generator)
    made = [pipe.vae.encode(picture).latent_dist.mean, pipe.vae.decode(latents).sample]
    ids = pipe.tokenizer("a photo of a cat", padding="max_length", return_tensors="pt").input_ids
    states = pipe.text_encoder(ids)[0]
    return [*made, pipe.unet(latents, 500, states).sample]


@torch.no_grad()
def test_a_pipeline_from_a_file_gives_what_the_folder_gives(tiny_file, tmp_path, said):
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    model = find_model(tiny_file("sd15"))
    pipe = load_pipeline(model, CPU, torch.float32)
    assert "predicts epsilon (its header says so)" in "\n".join(said)
    ours = answers(pipe)
    expected = {key: value.float() for key, value in load_file(tiny_file("sd15")).items()}
    theirs = by_diffusers(expected, model)
    # Numbers written down here, not those that were read from the file.
    networks = {
        "unet": UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=8, cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        "vae": AutoencoderKL(
            block_out_channels=(32, 32, 32, 32), layers_per_block=1, scaling_factor=0.18215,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text_encoder": CLIPTextModel(CLIPTextConfig(
            hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1, vocab_size=49408,
        )),
    }  # fmt: skip
    for part, network in networks.items():
        prefix = "text_model." if any(key.startswith("text_model.") for key in network.state_dict()) else ""
        network.load_state_dict({f"{prefix}{key}": value for key, value in theirs[part].items()})
    saved = StableDiffusionPipeline(
        **{part: network.eval() for part, network in networks.items()}, tokenizer=pipe.tokenizer,
        scheduler=pipe.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for ours_, theirs_ in zip(ours, answers(saved), strict=True):
        assert torch.equal(ours_, theirs_)
    saved.save_pretrained(tmp_path / "folder")
    folder = load_pipeline(find_model(tmp_path / "folder"), CPU, torch.float32)
    for ours_, theirs_ in zip(ours, answers(folder), strict=True):
        assert torch.equal(ours_, theirs_)
    write_model(find_model(tmp_path / "folder"), tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], value) for key, value in expected.items())


def test_a_file_of_2_without_the_layer_that_is_not_used(tmp_path):
    listed = original.shapes("sd21", tiny=False)
    cut = {key: shape for key, shape in listed.items() if ".resblocks.23." not in key}
    model = find_model(original.write_sparse(tmp_path / "a.safetensors", cut, metadata=EPSILON))
    assert model.config("text_encoder")["num_hidden_layers"] == 23
    assert {key.rpartition(".")[2] for key in model.extras} == {"logit_scale", "text_projection"}


def test_tensors_without_a_place_are_named(tmp_path):
    stray = {"model.diffusion_model.adapter.0.weight": (2, 2), "first_stage_model.loss.logvar": ()}
    model = find_model(original.write_sparse(tmp_path / "a.safetensors", {**original.shapes("sd15"), **stray}))
    assert model.notes == [
        "no network here has a place for 2 of its tensors, such as model.diffusion_model.adapter.0.weight"
    ]


def changed(path, new, metadata=EPSILON, without=(), **added):
    """Write a copy of a file without the tensors whose names begin so, with others added."""
    kept = {key: value for key, value in load_file(path).items() if not key.startswith(tuple(without))}
    save_file({**kept, **added}, new, metadata)
    return new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_number_formats_and_averaged_copies(dtype, tiny_file, tmp_path, said):
    tensors = {key: value.to(dtype) for key, value in load_file(tiny_file("sd15")).items()}
    copy = {"model_ema.diffusion_modelinput_blocks00weight": torch.zeros(2), "model_ema.decay": torch.zeros(())}
    others = {
        "alphas_cumprod": torch.ones(1000),
        f"{original.CLIP_OF_1}embeddings.position_ids": torch.arange(77)[None],
    }
    save_file({**tensors, **copy, **others}, tmp_path / "a.safetensors", EPSILON)
    model = find_model(tmp_path / "a.safetensors")
    unet = model.load("unet", torch.float32)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(unet.conv_in.weight, tensors[key].float())
    assert set(model.extras) == set(others)
    assert model.notes == ["averaged copies of weights (model_ema.*, 2 tensors) are left out"]


def test_old_files_name_the_text_encoder_without_text_model(tiny_file, tmp_path):
    old = {key.replace(".text_model.", "."): value for key, value in load_file(tiny_file("sd15")).items()}
    save_file(old, tmp_path / "old.safetensors", EPSILON)
    now, before = (find_model(path).load("text_encoder").state_dict() for path in (tmp_path / "old.safetensors",
                                                                                   tiny_file("sd15")))  # fmt: skip
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], before[key]) for key in now)


@pytest.mark.parametrize(
    ("name", "channels", "pipeline"),
    [
        ("sd15", 9, "StableDiffusionInpaintPipeline"),
        ("sd15", 8, "StableDiffusionInstructPix2PixPipeline"),
        ("sd21", 9, "StableDiffusionInpaintPipeline"),
        ("sdxl", 9, "StableDiffusionXLInpaintPipeline"),
        ("sdxl", 8, "StableDiffusionXLInstructPix2PixPipeline"),
    ],
)
def test_inpainting_and_instruct_models(name, channels, pipeline, tmp_path):
    listed = original.shapes(name, True, channels)
    model = find_model(original.write_sparse(tmp_path / "a.safetensors", listed, metadata=EPSILON))
    assert (model.pipeline_class, model.config("unet")["in_channels"]) == (pipeline, channels)
    with pytest.raises(InputError, match=f"takes {channels} channels"):
        find_trainable(str(model.name))


@pytest.mark.parametrize(
    ("part", "start", "title"),
    [
        ("vae", "first_stage_model.", "autoencoder"),
        ("text_encoder", "conditioner.embedders.0.", "text encoder"),
        ("text_encoder_2", "conditioner.embedders.1.", "second text encoder"),
    ],
)
def test_a_part_that_is_missing_is_named_and_can_be_given(part, start, title, tmp_path):
    listed = original.shapes("sdxl", tiny=False)
    lacking = {key: shape for key, shape in listed.items() if not key.startswith(start)}
    path = original.write_sparse(tmp_path / "a.safetensors", lacking)
    whole = original.write_sparse(tmp_path / "whole.safetensors", listed)
    model = find_model(path)
    assert part not in model.parts
    option = "--vae" if part == "vae" else "--text-encoder"
    sentence = rf"a\.safetensors holds no {title} \({part}\); make .* checkpoint FILE DIR {option} MODEL"
    for use in (model.check, lambda: model.load(part), lambda: model.check((part,)), lambda: model.tensors(part)):
        with pytest.raises(ModelError, match=sentence):
            use()
    model.check(("unet",))
    given = find_model(path, others={part: find_part(str(whole), part)})
    given.check()
    assert len(given.tensors(part)) == len(find_model(whole).tensors(part))
    if part != "text_encoder_2":  # without it, training takes the model for one of another kind
        with pytest.raises(ModelError, match=sentence):
            find_trainable(str(path))


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    path = original.write_sparse(tmp_path / "a.safetensors", original.shapes("sd15"))
    other = original.write_sparse(tmp_path / "b.safetensors", original.shapes("sd15", tiny=False))
    with pytest.raises(ModelError, match="attends to texts 64 wide, and its text encoders give 768"):
        find_model(path, others={"text_encoder": find_part(str(other), "text_encoder")})


def test_an_autoencoder_alone_is_scaled_for_its_model(tmp_path, said):
    path = original.write_sparse(tmp_path / "vae.safetensors", dict(original.vae(32, (1, 1, 1, 1), 1)))
    listed = {key: shape for key, shape in original.shapes("sdxl").items() if not key.startswith("first_stage")}
    file = original.write_sparse(tmp_path / "a.safetensors", listed)
    alone = find_part(str(path), "vae")
    assert find_model(file, others={"vae": alone}).config("vae")["scaling_factor"] == 0.13025
    assert not said
    assert alone.config("vae")["scaling_factor"] == 0.18215
    assert "does not say the scale of its latents; that of Stable Diffusion 1.x is taken" in "\n".join(said)
    assert alone.load("vae").decoder.conv_in.weight.shape == (32, 4, 3, 3)
    with pytest.raises(ModelError, match="is an autoencoder"):
        find_model(path)


def test_a_file_that_was_cut_or_altered_is_refused(tiny_file, tmp_path):
    path, new = tiny_file("sd15"), tmp_path / "a.safetensors"
    unet = "model.diffusion_model."
    model = find_model(changed(path, new, without=[f"{unet}output_blocks.1.0.emb_layers.1.bias"]))
    with pytest.raises(ModelError, match=r"lacks the tensor up_blocks\.0\.resnets\.1\.time_emb_proj\.bias; it is cut"):
        model.load("unet")
    key = f"{unet}out.0.weight"
    with pytest.raises(ModelError, match=r"has an unusual tensor conv_norm_out\.weight"):
        find_model(changed(path, new, **{key: torch.ones(33)})).load("unet")
    with pytest.raises(ModelError, match=r"has an unknown tensor mid_block\.resnets\.0\.conv1\.extra"):
        find_model(changed(path, new, **{f"{unet}middle_block.0.in_layers.2.extra": torch.ones(3)})).load("unet")
    with pytest.raises(ModelError, match=r"attends to texts 64 wide, and its text encoders give 32"):
        other = original.shapes("sd15") | {f"{original.CLIP_OF_1}{k}": s for k, s in original.clip(32, 2)}
        find_model(original.write_sparse(new, other))
    with pytest.raises(ModelError, match="lacks the tensor"):
        find_model(changed(path, new, without=[f"{unet}out.2."]))
    with pytest.raises(ModelError, match="with 5 input channels; of that family the models with 4 or 8 or 9"):
        find_model(original.write_sparse(new, original.shapes("sd15", True, 5)))
    with pytest.raises(ModelError, match="attends to texts 64 wide, which is none of Stable Diffusion"):
        find_model(changed(path, new, without=["cond_stage_model."]))
    with pytest.raises(ModelError, match="factors of their own"):
        find_model(changed(path, new, scaled_fp8=torch.zeros(0)))
    with pytest.raises(ModelError, match="weights of the type I64"):
        find_model(changed(path, new, **{key: torch.ones(32, dtype=torch.int64)}))


def test_a_lora_is_found_between_a_file_and_its_folder(tiny_file, tmp_path):
    other = {key: value + 0.01 * (key.endswith("attn1.to_q.weight")) for key, value in
             load_file(tiny_file("sd15")).items()}  # fmt: skip
    save_file(other, tmp_path / "tuned.safetensors")
    found = extract(str(tiny_file("sd15")), str(tmp_path / "tuned.safetensors"), energy=1.0)
    assert {module.path.rpartition(".")[2] for module in found.adapters} == {"to_q"}


def test_training_takes_a_file(tiny_file, tmp_path):
    files = find_trainable(str(tiny_file("sd21")))
    towers = TextTowers.load(files)
    assert towers(towers.tokenize(["a red apple"]))["states"].shape == (1, 77, 64)
    other = changed(tiny_file("sd21"), tmp_path / "a.safetensors", alphas_cumprod=torch.ones(3))
    key = "model.diffusion_model.out.2.bias"
    third = changed(tiny_file("sd21"), tmp_path / "b.safetensors", **{key: torch.ones(4)})
    digests = [find_trainable(str(path)).digest("unet", "scheduler") for path in (other, third)]
    assert digests[0] == files.digest("unet", "scheduler") != digests[1]


def test_options_that_do_not_go_with_a_model(tiny_file, tiny_pipeline_dir):
    for name, options, sentence in (
        (tiny_file("sd15"), {"variant": "fp16"}, "single file, which has no variant fp16"),
        (tiny_file("sd15"), {"revision": "main"}, "only the Hub has revisions"),
        (tiny_pipeline_dir, {"prediction_type": "epsilon"}, "is no single file: what it predicts is in"),
        (tiny_file("sd15"), {"prediction_type": "v"}, "unknown prediction type 'v'"),
        ("owner/name@main", {"revision": "other"}, "names a revision, and other is given too"),
        ("owner/name@", {}, "no such model"),
    ):
        with pytest.raises(InputError, match=sentence):
            find_model(name, **options)
    for model in (find_model("owner/name@v1", "fp16"), find_model("owner/name", "fp16", revision="v1")):
        assert (model.id, model.revision, model.variant, model.name) == ("owner/name", "v1", "fp16", "owner/name@v1")


def test_what_a_hub_id_is_downloaded_with(monkeypatch, tiny_pipeline_dir):
    from diffusers import DiffusionPipeline

    asked = []

    def answer(name, **options):
        asked.append((name, options["variant"], options["revision"]))
        return str(tiny_pipeline_dir)

    monkeypatch.setattr(DiffusionPipeline, "download", answer)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", answer)
    model = find_model("owner/name@v1", "fp16")
    model.folder, model.pipeline()
    assert asked == [("owner/name", "fp16", "v1")] * 2
