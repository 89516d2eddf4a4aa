"""Each script learns a tiny set, saves what Diffusers and Transformers load, and starts from an existing model."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from sd_ext.errors import InputError, ModelError
from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.data.order import Pass
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.model.pipeline import folder_size, save_pipeline
from sd_ext.training.model.text_encoders import tokenize
from sd_ext.training.train_autoencoder import latent_std, reconstruct
from sd_ext.training.train_autoencoder import run as run_autoencoder
from sd_ext.training.train_text_encoder import run as run_text_encoder
from sd_ext.training.train_text_to_image import TextToImageTask
from sd_ext.training.train_text_to_image import run as run_text_to_image

from .conftest import TINY, TINY_AUTOENCODER, TINY_TEXT, TWO_SIZES, image_settings


def mean(metrics, name, where):
    values = [m[name] for m in metrics[where]]
    return sum(values) / len(values)


def same_unet(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_autoencoder_learns_and_saves(picture_folder, tmp_path, metrics):
    settings = {**TINY_AUTOENCODER, "validate_every": 40}
    config = AutoencoderConfig.of(data=str(picture_folder), out=str(tmp_path / "run"), steps=80, **settings)
    folder = run_autoencoder(config)
    assert mean(metrics, "mse", slice(-5, None)) < 0.3 * mean(metrics, "mse", slice(0, 5))
    vae, pictures = AutoencoderKL.from_pretrained(folder), Pictures(picture_folder, 16)
    assert vae.config.scaling_factor == pytest.approx(1 / latent_std(vae, pictures), rel=1e-4)
    pixels = torch.stack([pictures.pixels(i) for i in range(12)])
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
    assert reconstruct(vae, pixels).shape == pixels.shape
    assert [p.name for p in sorted((tmp_path / "run" / "previews").iterdir())] == [
        "step-00000040.png",
        "step-00000080.png",
    ]


def test_a_decoder_alone_learns_and_latents_stay(picture_folder, tmp_path, metrics):
    settings = {**TINY_AUTOENCODER, "data": str(picture_folder)}
    first = run_autoencoder(AutoencoderConfig.of(out=str(tmp_path / "first"), steps=20, **settings))
    settings |= {"decoder_only": True, "model": str(first)}
    second = run_autoencoder(AutoencoderConfig.of(out=str(tmp_path / "second"), steps=40, **settings))
    assert mean(metrics, "mse", slice(-5, None)) < 0.8 * mean(metrics, "mse", slice(0, 5))
    one, other = (AutoencoderKL.from_pretrained(folder) for folder in (first, second))
    assert one.config.scaling_factor == other.config.scaling_factor
    assert same_unet(one.encoder.state_dict(), other.encoder.state_dict())
    assert not same_unet(one.decoder.state_dict(), other.decoder.state_dict())
    with pytest.raises(InputError, match="decoder_only needs model"):
        AutoencoderConfig.of(out=str(tmp_path / "third"), **{**settings, "model": ""})


def test_text_encoder_learns_and_saves(picture_folder, tmp_path, metrics):
    config = TextEncoderConfig.of(data=str(picture_folder), out=str(tmp_path / "run"), steps=60, **TINY_TEXT)
    folder = run_text_encoder(config)
    assert mean(metrics, "loss", slice(-5, None)) < 0.6 * mean(metrics, "loss", slice(0, 5))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.model_max_length == 8
    tokens = tokenize(tokenizer, ["red circle", "Zyzzyva 日本 !", "", "a b c d e f g h i j"])
    assert tokens.shape == (4, 8)
    assert tokens.max() < len(tokenizer) <= 600
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert (tokens == tokenizer.eos_token_id).any(1).all()
    text_encoder, info = CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    states = text_encoder(tokens).last_hidden_state
    assert states.shape == (4, 8, 32)
    assert (states[0] - states[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "prediction", ["epsilon", *(pytest.param(other, marks=pytest.mark.slow) for other in ("v_prediction", "sample"))]
)
def test_text_to_image_learns(picture_folder, tiny_parts, tmp_path, metrics, prediction):
    """What each is trained on is proven beside Diffusers' own targets."""
    settings = image_settings(picture_folder, tiny_parts, prediction_type=prediction, batch_size=11)
    run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "run"), steps=60))
    assert mean(metrics, "loss", slice(-20, None)) < 0.85 * mean(metrics, "loss", slice(0, 5))


def test_text_to_image_saves_a_pipeline_that_can_be_trained_on(picture_folder, tiny_parts, tmp_path):
    settings = image_settings(
        picture_folder,
        tiny_parts,
        steps=2,
        validate_every=2,
        prediction_type="v_prediction",
        gradient_checkpointing=True,
        preview_steps=2,
    )
    folder = run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "run")))
    assert (tmp_path / "run" / "previews" / "step-00000002.png").exists()
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert type(pipe.scheduler).__module__.startswith("diffusers")
    images = pipe(["red circle", "a word it never saw"], num_inference_steps=2, height=16, width=16).images
    assert [image.size for image in images] == [(16, 16)] * 2

    half = save_pipeline(pipe, tmp_path / "half", torch.float16)
    assert folder_size(half) < 0.75 * folder_size(folder)
    again = StableDiffusionPipeline.from_pretrained(half)
    assert again.unet.dtype == again.vae.dtype == again.text_encoder.dtype == torch.float32
    again("red circle", num_inference_steps=2, height=16, width=16)
    assert "_name_or_path" not in (half / "model_index.json").read_text()

    on = {**settings, "autoencoder": "", "text_encoder": "", "model": str(folder), "prediction_type": "auto"}
    task = TextToImageTask(TextToImageConfig.of(**on, out=str(tmp_path / "on")))
    task.begin(Accelerator(cpu=True))
    assert same_unet(
        dict(task.unet.state_dict()), dict(StableDiffusionPipeline.from_pretrained(folder).unet.state_dict())
    )
    assert task.levels.prediction == "v_prediction"  # as the model's scheduler says


def test_sdxl_learns_and_saves_a_pipeline_that_loads(two_sizes_folder, tiny_sdxl_dir, tmp_path, metrics):
    """All of SDXL's U-Net, on buckets of two sizes, with both text encoders' states and pooled ones."""
    settings = {
        **TINY, **TWO_SIZES, "bucket_step": 16, "resolution": 32, "bucket_ratio": 2.0, "batch_size": 6, "ema": 0.9,
        "learning_rate": 2e-3, "model": str(tiny_sdxl_dir), "preview_steps": 2, "preview_guidance": 2.0,
        "data": str(two_sizes_folder), "steps": 45, "validate_every": 45, "prompts": ("red bar",),
    }  # fmt: skip
    folder = run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "run")))
    assert mean(metrics, "loss", slice(-15, None)) < 0.85 * mean(metrics, "loss", slice(0, 5))
    pipe, base = (StableDiffusionXLPipeline.from_pretrained(p) for p in (folder, tiny_sdxl_dir))
    assert not same_unet(dict(pipe.unet.state_dict()), dict(base.unet.state_dict()))
    for part in ("text_encoder", "text_encoder_2", "vae"):  # these stay as they were
        ours, theirs = (getattr(p, part).state_dict() for p in (pipe, base))
        assert same_unet(dict(ours), dict(theirs)), part
    pipe.set_progress_bar_config(disable=True)
    assert pipe("red circle", num_inference_steps=2, height=32, width=32).images[0].size == (32, 32)
    assert (tmp_path / "run" / "previews" / "step-00000045.png").exists()
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"


def test_dropped_captions_become_the_empty_one(picture_folder, tiny_parts, tmp_path):
    """All of them, none of them; the loss is told the states of what was drawn."""
    for share in (0.0, 1.0):
        settings = image_settings(picture_folder, tiny_parts, text_dropout=share, out=str(tmp_path / str(share)))
        task = TextToImageTask(TextToImageConfig.of(**settings))
        task.begin(Accelerator(cpu=True))
        each = Pass(0, (0, 1), (0, 1), 2)
        conditions = task.batch(each, task.read(each), torch.device("cpu"))[5]
        wanted = ["", ""] if share else task.pictures.captions[:2]
        assert torch.equal(conditions["states"], task.encoded.states(wanted)["states"])
    assert (task.encoded.states([""])["states"] - task.encoded.states(["red circle"])["states"]).abs().max() > 0.1


def test_what_cannot_work_is_refused(picture_folder, tiny_parts, tiny_pipeline_dir, tmp_path):
    settings = image_settings(picture_folder, tiny_parts)

    def refused(kind, match, **values):
        with pytest.raises(kind, match=match):
            TextToImageTask(TextToImageConfig.of(**{**settings, "out": str(tmp_path / "run"), **values}))

    refused(InputError, "give --autoencoder and --text-encoder", autoencoder="")
    refused(ModelError, "no model folder at", autoencoder=str(tmp_path / "nowhere"))
    refused(ModelError, "holds no vae", autoencoder=str(tmp_path))
    refused(InputError, "bucket_step is 5; it must be a multiple of 2", buckets=True, bucket_step=5)
    refused(InputError, "squares of 17 pixels are not a multiple of 2", resolution=17)
    refused(InputError, "within 0..1000", timestep_max=2000, timestep_min=1500)
    refused(InputError, "epsilon cannot be predicted there", zero_snr=True)
    captionless = tmp_path / "captionless"
    captionless.mkdir()
    (captionless / "a.png").write_bytes((picture_folder / "red_bar.png").read_bytes())
    with pytest.raises(InputError, match="has no captions"):
        run_text_encoder(TextEncoderConfig.of(data=str(captionless), out=str(tmp_path / "t"), **TINY_TEXT))
    refused(InputError, "none of 1 pictures .*no caption", data=str(captionless))
    whole = {**TINY, "model": str(tiny_pipeline_dir), "data": str(picture_folder), "out": str(tmp_path / "blocks")}
    task = TextToImageTask(
        TextToImageConfig.of(**whole, gradient_checkpointing=True, checkpoint_blocks=("no_such_block",))
    )
    with pytest.raises(InputError, match=r"no_such_block is no block of the U-Net; it has down_blocks\.0"):
        task.begin(Accelerator(cpu=True))


def test_a_unet_and_encoders_that_do_not_fit_are_refused(picture_folder, tiny_parts, tiny_sdxl_dir, tmp_path):
    """SDXL's U-Net wants wider states than the text encoder that is put in their place gives."""
    settings = {**TINY, "model": str(tiny_sdxl_dir), "data": str(picture_folder), "out": str(tmp_path / "run")}
    task = TextToImageTask(TextToImageConfig.of(**settings))
    del task.files.owners["text_encoder_2"]
    with pytest.raises(InputError, match="48 text features, the encoders give 4 and 16"):
        task.begin(Accelerator(cpu=True))


@pytest.mark.slow
def test_gradient_checkpointing_of_all_or_some_blocks_changes_memory_only(picture_folder, tiny_pipeline_dir, tmp_path):
    def losses(name, **values):
        settings = {**TINY, "model": str(tiny_pipeline_dir), "data": str(picture_folder), "steps": 3, "log_every": 1}
        run_text_to_image(TextToImageConfig.of(**settings, **values, ema=0.0, out=str(tmp_path / name)))
        return [json.loads(line)["loss"] for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]

    off = losses("off")
    for name, blocks in (("all", ()), ("some", ("down_blocks",))):
        assert losses(name, gradient_checkpointing=True, checkpoint_blocks=blocks) == pytest.approx(off, rel=1e-4)
