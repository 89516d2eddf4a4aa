"""Each script learns a tiny set, saves what Diffusers and Transformers load, and starts from an existing model."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from sd_ext.errors import InputError, ModelError
from sd_ext.training import loop
from sd_ext.training.assemble import folder_size, save_pipeline
from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.data import Pictures
from sd_ext.training.train_autoencoder import latent_std, reconstruct
from sd_ext.training.train_autoencoder import run as run_autoencoder
from sd_ext.training.train_text_encoder import run as run_text_encoder
from sd_ext.training.train_text_encoder import tokenize
from sd_ext.training.train_text_to_image import TextToImageTask
from sd_ext.training.train_text_to_image import run as run_text_to_image

from .conftest import TINY_AUTOENCODER, TINY_IMAGE, TINY_TEXT


@pytest.fixture
def metrics(monkeypatch):
    """Every metric the loop yields."""
    seen, real = [], loop.train

    def spy(run):
        for values in real(run):
            seen.append(values)
            yield values

    monkeypatch.setattr("sd_ext.training.run.train", spy)
    return seen


def mean(metrics, name, where):
    values = [m[name] for m in metrics[where]]
    return sum(values) / len(values)


def image_settings(picture_folder, tiny_parts, **settings):
    parts = {"autoencoder": tiny_parts[0], "text_encoder": tiny_parts[1]}
    return {**TINY_IMAGE, "data": str(picture_folder), **parts, **settings}


def test_autoencoder_learns_and_saves(picture_folder, tmp_path, metrics):
    settings = {**TINY_AUTOENCODER, "validate_every": 40}
    config = AutoencoderConfig(data=str(picture_folder), out=str(tmp_path / "run"), steps=80, **settings)
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


def test_text_encoder_learns_and_saves(picture_folder, tmp_path, metrics):
    config = TextEncoderConfig(data=str(picture_folder), out=str(tmp_path / "run"), steps=60, **TINY_TEXT)
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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_text_to_image_learns(picture_folder, tiny_parts, tmp_path, metrics, prediction):
    settings = image_settings(picture_folder, tiny_parts, prediction_type=prediction, batch_size=11)
    run_text_to_image(TextToImageConfig(**settings, out=str(tmp_path / "run"), steps=100))
    assert mean(metrics, "loss", slice(-20, None)) < 0.85 * mean(metrics, "loss", slice(0, 5))


def test_text_to_image_saves_a_pipeline_that_can_be_trained_on(picture_folder, tiny_parts, tmp_path):
    settings = image_settings(
        picture_folder,
        tiny_parts,
        steps=2,
        validate_every=2,
        prediction_type="v_prediction",
        gradient_checkpointing=True,
    )
    folder = run_text_to_image(TextToImageConfig(**settings, out=str(tmp_path / "run")))
    assert (tmp_path / "run" / "previews" / "step-00000002.png").exists()
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert type(pipe.scheduler).__module__ == "sd_ext"
    images = pipe(["red circle", "a word it never saw"], num_inference_steps=2, height=16, width=16).images
    assert [image.size for image in images] == [(16, 16)] * 2

    half = save_pipeline(pipe, tmp_path / "half", torch.float16)
    assert folder_size(half) < 0.75 * folder_size(folder)
    again = StableDiffusionPipeline.from_pretrained(half)
    assert again.unet.dtype == again.vae.dtype == again.text_encoder.dtype == torch.float32
    again("red circle", num_inference_steps=2, height=16, width=16)
    assert "_name_or_path" not in (half / "model_index.json").read_text()

    on = {**settings, "autoencoder": "", "text_encoder": "", "model": str(folder), "validate_every": 0}
    task = TextToImageTask(TextToImageConfig(**on, out=str(tmp_path / "on")))
    ours, theirs = task.unet.state_dict(), StableDiffusionPipeline.from_pretrained(folder).unet.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_dropped_captions_become_the_empty_one(picture_folder, tiny_parts):
    task = TextToImageTask(TextToImageConfig(**image_settings(picture_folder, tiny_parts, text_dropout=1.0)))
    task.encoders.fill(task.pictures, torch.device("cpu"))
    device, indices = torch.device("cpu"), torch.tensor([0, 1])
    states = task.encoders.states(indices, torch.tensor([True, False]), device)
    empty = task.encoders.encode_tokens(tokenize(task.encoders.tokenizer, [""]))[0]
    torch.testing.assert_close(states[0], empty)
    assert (states[1] - empty).abs().max() > 0.1


def test_cached_and_fresh_states_and_latents_agree(picture_folder, tiny_parts):
    task = TextToImageTask(TextToImageConfig(**image_settings(picture_folder, tiny_parts)))
    device, indices, kept = torch.device("cpu"), torch.tensor([2, 5]), torch.tensor([False, False])
    fresh_states = task.encoders.states(indices, kept, device)
    fresh = task.encoders.moments(torch.stack([task.pictures.pixels(i) for i in (2, 5)]))
    task.encoders.fill(task.pictures, device)
    torch.testing.assert_close(task.encoders.states(indices, kept, device), fresh_states, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(task.encoders.cached_moments[indices], fresh, atol=1e-5, rtol=1e-4)


def test_what_cannot_work_is_refused(picture_folder, tiny_parts, tmp_path):
    settings = image_settings(picture_folder, tiny_parts)
    with pytest.raises(InputError, match="give --autoencoder and --text-encoder"):
        TextToImageTask(TextToImageConfig(**{**settings, "autoencoder": ""}))
    with pytest.raises(InputError, match="cache false"):
        TextToImageTask(TextToImageConfig(**settings, flip=True))
    with pytest.raises(ModelError, match="no model folder at"):
        TextToImageTask(TextToImageConfig(**{**settings, "autoencoder": str(tmp_path / "nowhere")}))
    with pytest.raises(ModelError, match="holds no vae"):
        TextToImageTask(TextToImageConfig(**{**settings, "autoencoder": str(tmp_path)}))
    captionless = tmp_path / "captionless"
    captionless.mkdir()
    (captionless / "a.png").write_bytes((picture_folder / "red_bar.png").read_bytes())
    with pytest.raises(InputError, match="has no captions"):
        run_text_encoder(TextEncoderConfig(data=str(captionless), out=str(tmp_path / "t"), **TINY_TEXT))
