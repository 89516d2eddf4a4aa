"""Pictures, masks, ControlNets, enlarging and refiners in `sd-ext generate`, beside Diffusers' own pipelines."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sd_ext
from sd_ext.cli import prepare
from sd_ext.cli.pictures import read_record
from sd_ext.cli.request.inputs import Control, parse_control

from ..few import few

SIZE = {"width": 64, "height": 64}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawing(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture of soft colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def draw(run, tiny_pipeline_dir):
    def draw(*arguments, model=tiny_pipeline_dir, steps=4):
        return run("generate", "red apple", "--model", model, "--steps", steps, "--guidance", 3, *arguments)

    return draw


@pytest.fixture(autouse=True)
def files(tmp_path) -> None:
    """photo.png, mask.png (a square is white) and edges.png in the working folder."""
    drawing().save(tmp_path / "photo.png")
    drawing(seed=1).save(tmp_path / "edges.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 40, 48))
    mask.save(tmp_path / "mask.png")


def loaded(kind: str, folder, sampler: str = "dpm++ 2m", **parts):
    """A pipeline of Diffusers' with our sampler."""
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(folder, **parts)
    pipe.scheduler = sd_ext.make_scheduler(sampler, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def controlnets(tiny_pipeline_dir, tiny_sdxl_dir, tmp_path_factory) -> dict[str, Path]:
    """ControlNets for both tiny models, whose last layers are not zero as those of new ones."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    made = {}
    for name, model in (("one", tiny_pipeline_dir), ("two", tiny_pipeline_dir), ("xl", tiny_sdxl_dir)):
        torch.manual_seed(len(made))
        network = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(model / "unet"))
        for layer in [network.controlnet_mid_block, *network.controlnet_down_blocks]:
            torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight, std=0.3)
        made[name] = tmp_path_factory.mktemp("controlnets") / name
        network.save_pretrained(made[name])
    return made


# ---- beside Diffusers' pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "sampler"),
    few(product(["", "XL"], ["dpm++ 2m", "euler a", "auto"]), {("", "euler a"), ("XL", "auto")}.__contains__),
)
def test_a_picture_to_start_from(draw, tiny_pipeline_dir, tiny_sdxl_dir, sampler, family):
    folder = tiny_sdxl_dir if family else tiny_pipeline_dir
    path = draw("--image", "photo.png", "--strength", 0.6, "--sampler", sampler, model=folder).paths[0]
    pipe = loaded(f"StableDiffusion{family}Img2ImgPipeline", folder, sampler)
    image = Image.open("photo.png").convert("RGB")
    theirs = pipe("red apple", image=image, strength=0.6, num_inference_steps=4, guidance_scale=3, generator=seeded())
    assert (pixels(path) == np.asarray(theirs.images[0])).all()


@pytest.mark.parametrize("family", ["", "XL"])
def test_a_mask_with_an_ordinary_model(draw, tiny_pipeline_dir, tiny_sdxl_dir, family):
    folder = tiny_sdxl_dir if family else tiny_pipeline_dir
    command = "--image", "photo.png", "--mask", "mask.png", "--sampler", "dpm++ 2m"
    path = draw(*command, model=folder).paths[0]
    check_masked(path, loaded(f"StableDiffusion{family}InpaintPipeline", folder))


def check_masked(path, pipe) -> None:
    mask, image = Image.open("mask.png"), Image.open("photo.png").convert("RGB")
    given = {"image": image, "mask_image": mask, "strength": 1.0, "num_inference_steps": 4, "guidance_scale": 3}
    theirs = np.asarray(pipe("red apple", generator=seeded(), **given, **SIZE).images[0])
    white = np.asarray(mask) > 0
    assert (pixels(path)[white] == theirs[white]).all()
    assert (pixels(path)[~white] == np.asarray(image)[~white]).all()
    assert (theirs[~white] != np.asarray(image)[~white]).any()  # the autoencoder alone gives back nothing to the bit
    assert (pixels(path)[white] != np.asarray(image)[white]).any()


@pytest.fixture
def inpainting_dir(tiny_pipeline_dir, tmp_path_factory) -> Path:
    """The tiny model with a U-Net of nine channels."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}).eval()
    folder = tmp_path_factory.mktemp("inpainting") / "model"
    parts = {**pipe.components, "unet": unet}
    StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def test_a_mask_with_a_model_for_inpainting(draw, inpainting_dir):
    command = "--image", "photo.png", "--mask", "mask.png", "--sampler", "dpm++ 2m"
    path = draw(*command, model=inpainting_dir).paths[0]
    check_masked(path, loaded("StableDiffusionInpaintPipeline", inpainting_dir))
    for refused in (draw(model=inpainting_dir), draw("--image", "photo.png", model=inpainting_dir)):
        assert (refused.code, "give --image and --mask" in refused.err) == (2, True)


def test_one_controlnet_and_two(draw, tiny_pipeline_dir, controlnets):
    from diffusers import ControlNetModel

    networks = [ControlNetModel.from_pretrained(controlnets[name]) for name in ("one", "two")]
    edges, image = Image.open("edges.png").convert("RGB"), Image.open("photo.png").convert("RGB")
    common = {"num_inference_steps": 4, "guidance_scale": 3}
    first = f"{controlnets['one']}:edges.png:0.5"
    path = draw("--control", first, "--sampler", "dpm++ 2m").paths[0]
    pipe = loaded("StableDiffusionControlNetPipeline", tiny_pipeline_dir, controlnet=networks[0])
    theirs = pipe("red apple", image=edges, controlnet_conditioning_scale=0.5, generator=seeded(), **common, **SIZE)
    assert (pixels(path) == np.asarray(theirs.images[0])).all()
    assert (pixels(path) != pixels(draw("--sampler", "dpm++ 2m").paths[0])).any()

    second = f"{controlnets['two']}:photo.png"
    command = "--control", first, "--control", second, "--image", "photo.png", "--strength", 0.5
    path = draw(*command, "--sampler", "dpm++ 2m").paths[0]
    pipe = loaded("StableDiffusionControlNetImg2ImgPipeline", tiny_pipeline_dir, controlnet=networks)
    scales = {"controlnet_conditioning_scale": [0.5, 1.0], "strength": 0.5}
    theirs = pipe("red apple", image=image, control_image=[edges, image], generator=seeded(), **scales, **common)
    assert (pixels(path) == np.asarray(theirs.images[0])).all()


def test_a_controlnet_of_sdxl_within_a_mask(draw, tiny_sdxl_dir, controlnets):
    from diffusers import ControlNetModel

    command = "--control", f"{controlnets['xl']}:edges.png", "--image", "photo.png", "--mask", "mask.png"
    path = draw(*command, "--sampler", "dpm++ 2m", model=tiny_sdxl_dir).paths[0]
    pipe = loaded(
        "StableDiffusionXLControlNetInpaintPipeline",
        tiny_sdxl_dir,
        controlnet=ControlNetModel.from_pretrained(controlnets["xl"]),
    )
    check_masked(path, lambda *words, **given: pipe(*words, control_image=Image.open("edges.png"), **given))


def test_a_drawn_picture_is_enlarged_and_drawn_over(draw, tiny_pipeline_dir):
    command = "--upscale", 1.5, "--upscale-steps", 3, "--denoise", 0.7, "--sampler", "dpm++ 2m"
    path = draw(*command).paths[0]
    generator = seeded()
    words = loaded("StableDiffusionPipeline", tiny_pipeline_dir)
    small = words("red apple", num_inference_steps=4, guidance_scale=3, generator=generator, **SIZE).images[0]
    large = small.resize((96, 96), Image.Resampling.LANCZOS)
    over = loaded("StableDiffusionImg2ImgPipeline", tiny_pipeline_dir)
    given = {"image": large, "strength": 0.7, "num_inference_steps": 3, "guidance_scale": 3}
    theirs = over("red apple", generator=generator, **given).images[0]
    assert theirs.size == (96, 96)
    assert (pixels(path) == np.asarray(theirs)).all()
    tall = draw("--upscale", 2, "--size", "64x96", "--unet", "highres").paths[0]
    assert Image.open(tall).size == (128, 192)


@pytest.fixture
def refiner_dir(tiny_sdxl_dir, tmp_path_factory) -> Path:
    """A refiner beside the tiny SDXL: the second text encoder only, and a score among the sizes."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_dir)
    torch.manual_seed(4)
    changed = {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 5 * 8 + 24}
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, **changed}).eval()
    parts = {**pipe.components, "unet": unet, "text_encoder": None, "tokenizer": None}
    folder = tmp_path_factory.mktemp("refiner") / "refiner"
    StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True).save_pretrained(folder)
    return folder


def test_a_refiner_draws_the_last_steps(draw, tiny_sdxl_dir, refiner_dir):
    command = "--refiner", refiner_dir, "--refiner-at", 0.5, "--sampler", "dpm++ 2m"
    path = draw(*command, model=tiny_sdxl_dir).paths[0]
    generator, common = seeded(), {"num_inference_steps": 4, "guidance_scale": 3}
    base = loaded("StableDiffusionXLPipeline", tiny_sdxl_dir)
    half = {"denoising_end": 0.5, "output_type": "latent"}
    latents = base("red apple", generator=generator, **half, **common, **SIZE).images
    refiner = loaded("StableDiffusionXLImg2ImgPipeline", refiner_dir)
    theirs = refiner("red apple", image=latents, denoising_start=0.5, generator=generator, **common).images[0]
    assert (pixels(path) == np.asarray(theirs)).all()


# ---- what is kept and what is said ---------------------------------------------------------------------------------


def test_what_it_was_made_from_is_kept_and_missed(draw, run, tmp_path, controlnets):
    command = "--image", "photo.png", "--mask", "mask.png", "--control", f"{controlnets['one']}:edges.png:0.5"
    path = draw(*command).paths[0]
    kept = read_record(path).recipe
    assert (kept.image, kept.mask) == ("photo.png", "mask.png")
    assert [entry.partition(" ")[2] for entry in kept.digests] == ["photo.png", "mask.png", "edges.png"]
    again = run("generate", "--again", path)
    assert again.paths[0].read_bytes() == path.read_bytes()

    drawing(seed=5).save(tmp_path / "photo.png")
    changed = run("generate", "--again", path)
    assert (changed.code, changed.out) == (2, "") and "photo.png has changed since" in changed.err
    assert run("generate", "--from", path).code == 2
    other = run("generate", "--from", path, "--image", "photo.png").paths[0]
    assert (pixels(other) != pixels(path)).any()
    assert run("generate", "--again", other).paths[0].read_bytes() == other.read_bytes()

    (tmp_path / "edges.png").unlink()
    missing = run("generate", "--again", path)
    assert (missing.code, missing.out) == (2, "")
    drawing().save(tmp_path / "photo.png")
    missing = run("generate", "--again", path)
    digest = kept.digests[2].partition(" ")[0]
    assert f"--control edges.png: no such file; its SHA-256 began with {digest}" in missing.err


def test_pictures_are_turned_put_on_white_and_fitted_which_is_said(draw, tmp_path):
    """A picture lying on its side, with a transparent half, twice as wide as high."""
    flat = drawing(64, 64)
    upright = Image.new("RGBA", (64, 128))
    upright.paste(flat, (0, 0))
    white = Image.new("RGB", (64, 128), "white")
    white.paste(flat, (0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    white.save(tmp_path / "plain.png")
    one, other = draw("--image", "turned.png"), draw("--image", "plain.png")
    assert (pixels(one.paths[0]) == pixels(other.paths[0])).all()
    assert read_record(one.paths[0]).recipe.size == "48x88"  # its shape, with the pixels of 64 x 64
    assert "turned.png is 64x128 and is resized to 48x88; 4 pixels of its width are cut off" not in one.err
    assert "turned.png is 64x128 and is resized to 48x88; 8 pixels of its height are cut off." in one.err
    exact = draw("--image", "turned.png", "--size", "64x128")
    assert "turned.png" not in exact.err


def test_a_grey_mask_is_said(draw, tmp_path):
    Image.linear_gradient("L").resize((64, 64)).save(tmp_path / "mask.png")
    done = draw("--image", "photo.png", "--mask", "mask.png")
    assert done.code == 0 and "has greys" in done.err


def test_batches_of_pictures_made_from_a_picture(draw):
    command = "--image", "photo.png", "--mask", "mask.png", "--num", 3
    together = draw(*command, "--batch", 3, "--out", "together").paths[:3]
    for one, other in zip(together, draw(*command, "--out", "apart").paths[:3], strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("owner/canny:edges.png", Control("owner/canny", "edges.png", 1.0)),
        ("owner/canny:edges.png:0.5", Control("owner/canny", "edges.png", 0.5)),
        (r"C:\nets\canny:D:\pictures\edges.png:0.5", Control(r"C:\nets\canny", r"D:\pictures\edges.png", 0.5)),
        (r"c:/nets/canny:edges.png", Control("c:/nets/canny", "edges.png", 1.0)),
        ("a:b", Control("a", "b", 1.0)),
        ("a:b:2", Control("a", "b", 2.0)),
    ],
)
def test_drives_of_windows_divide_nothing(text, control):
    assert parse_control(text) == control


# ---- what is refused -----------------------------------------------------------------------------------------------

PHOTO, MASK = ["--image", "photo.png"], ["--mask", "mask.png"]
BAD = {
    "strength alone": (["--strength", "0.5"], "--strength needs --image"),
    "mask alone": (MASK, "--mask needs --image"),
    "upscale's steps alone": (["--upscale-steps", "3"], "--upscale-steps needs --upscale"),
    "denoise alone": (["--denoise", "0.5"], "--denoise needs --upscale"),
    "refiner's place alone": (["--refiner-at", "0.5"], "--refiner-at needs --refiner"),
    "no strength": ([*PHOTO, "--strength", "0"], "--strength 0 cannot work"),
    "much strength": ([*PHOTO, "--strength", "1.5"], "--strength 1.5 cannot work"),
    "no number": ([*PHOTO, "--strength", "nan"], "--strength nan cannot work"),
    "no step": ([*PHOTO, "--strength", "0.1"], "is no step at all"),
    "no step of upscale": (["--upscale", "2", "--denoise", "0.1"], "is no step at all"),
    "upscale": (["--upscale", "1"], "--upscale 1 cannot work"),
    "a huge upscale": (["--upscale", "100"], "--upscale 100 cannot work"),
    "upscale's steps": (["--upscale", "2", "--upscale-steps", "0"], "--upscale-steps 0 cannot work"),
    "denoise": (["--upscale", "2", "--denoise", "2"], "--denoise 2 cannot work"),
    "refiner's place": (["--refiner", "{model}", "--refiner-at", "1"], "--refiner-at 1 cannot work"),
    "mask and upscale": ([*PHOTO, *MASK, "--upscale", "2"], "--mask and --upscale do not go together"),
    "mask and refiner": ([*PHOTO, *MASK, "--refiner", "{model}"], "--mask and --refiner do not go together"),
    "all at once": (
        [*PHOTO, "--control", "{one}:edges.png", "--refiner", "{model}"],
        "--image and --refiner do not go together",
    ),
    "weak before refiner": ([*PHOTO, "--strength", "0.25", "--refiner", "{model}", "--refiner-at", "0.5"], "raise one"),
    "refiner for another": (["--refiner", "{refiner}"], "is for Stable Diffusion XL"),
    "no refiner": (["--refiner", "{model}"], "not a refiner of Stable Diffusion XL"),
    "refiner nowhere": (["--refiner", "no/such/folder"], "no such model"),
    "no picture": (["--image", "nothing.png"], "--image nothing.png: no such file"),
    "folder for a picture": (["--image", "."], "is a folder"),
    "text for a picture": (["--image", "words.txt"], "words.txt cannot be read as a picture"),
    "no mask": ([*PHOTO, "--mask", "nothing.png"], "--mask nothing.png: no such file"),
    "mask of another size": ([*PHOTO, "--mask", "wide.png"], "draw the mask on it"),
    "black mask": ([*PHOTO, "--mask", "black.png"], "nothing in it is white"),
    "control without a picture": (["--control", "{one}"], "write ID_OR_FOLDER:FILE"),
    "control with no scale": (["--control", "{one}:edges.png:much"], "write ID_OR_FOLDER:FILE"),
    "control with too much": (["--control", "{one}:edges.png:1:2"], "write ID_OR_FOLDER:FILE"),
    "control's scale": (["--control", "{one}:edges.png:-1"], "a scale of -1 cannot work"),
    "control nowhere": (["--control", "no/such/folder:edges.png"], "no such folder"),
    "control in a file": (["--control", "photo.png:edges.png"], "is a file; a ControlNet is a folder"),
    "control's picture": (["--control", "{one}:nothing.png"], "--control nothing.png: no such file"),
    "control of another family": (["--control", "{xl}:edges.png"], "is for another family"),
    "no control": (["--control", "{model}:edges.png"], "holds no controlnet"),
    "another network": (["--control", "{unet}:edges.png"], "not a ControlNetModel"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_one_sentence_before_a_model_is_loaded(
    draw, tiny_pipeline_dir, tiny_sdxl_dir, controlnets, tmp_path, monkeypatch, arguments, message
):
    def too_late(*arguments):
        raise AssertionError("the model was loaded before its arguments were checked")

    monkeypatch.setattr(prepare, "load_pipeline", too_late)
    (tmp_path / "words.txt").write_text("words")
    Image.new("L", (64, 32), 255).save(tmp_path / "wide.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "black.png")
    refiner = tmp_path / "refiner"
    shutil.copytree(tiny_sdxl_dir, refiner)
    index = refiner / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"))
    before = sorted(tmp_path.iterdir())
    places = {"model": tiny_pipeline_dir, "unet": tiny_pipeline_dir / "unet", "refiner": refiner, **controlnets}
    refused = draw(*(argument.format(**places) for argument in arguments))
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert message in refused.err and refused.err.startswith("sd-ext: ")
    assert sorted(tmp_path.iterdir()) == before


def test_a_pipeline_that_cannot_start_from_pictures(draw, tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "load_pipeline", None)
    other = tmp_path / "other"
    shutil.copytree(tiny_pipeline_dir, other)
    index = other / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"LatentConsistencyModelPipeline"'))
    refused = draw("--image", "photo.png", model=other)
    assert (refused.code, "--image: a LatentConsistencyModelPipeline cannot" in refused.err) == (2, True)


def test_sides_too_large(draw):
    refused = draw("--upscale", 8, "--size", "1024x64")
    assert (refused.code, "--upscale 8192x512 cannot work" in refused.err) == (2, True)


# ---- regions ---------------------------------------------------------------------------------------------------------


def test_regions_are_drawn_with_words_of_their_own_and_made_again(draw, run, tiny_pipeline):
    import sd_ext

    plain = pixels(draw().paths[0])
    done = draw("--region", "0,0,0.5,1=blue cup", "--region", "mask.png=cat", "--region-base", 0.25)
    assert read_record(done.paths[0]).recipe.region == ("0,0,0.5,1=blue cup", "mask.png=cat")
    assert (pixels(done.paths[0]) != plain).any()
    assert (pixels(run("generate", "--again", done.paths[0]).paths[0]) == pixels(done.paths[0])).all()
    recipe = read_record(done.paths[0]).recipe
    regions = [((0, 0, 0.5, 1), "blue cup"), (Image.open("mask.png"), "cat")]
    with sd_ext.regional(tiny_pipeline, regions, base=0.25):
        picture = tiny_pipeline("red apple", num_inference_steps=4, guidance_scale=3.0,
                                generator=torch.Generator().manual_seed(recipe.seed)).images[0]  # fmt: skip
    assert (np.asarray(picture) == pixels(done.paths[0])).all()
    Path("mask.png").write_bytes(Path("edges.png").read_bytes())
    assert "--region mask.png has changed since" in run("generate", "--again", done.paths[0]).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--region", "red apple"], "write LEFT,TOP,RIGHT,BOTTOM=WORDS"),
        (["--region", "0.5,0,0.2,1=red apple"], "a box is LEFT,TOP,RIGHT,BOTTOM"),
        (["--region", "nowhere.png=red apple"], "--region nowhere.png: no such file"),
        (["--region-base", "0.5"], "give one, or leave it out"),
        (["--region", "0,0,1,1=red apple", "--region-base", "2"], "choose 0 to 1"),
    ],
)
def test_regions_that_cannot_be(draw, arguments, said):
    done = draw(*arguments)
    assert done.code == 2
    assert said in done.err
