"""What frozen encoders made: made once, found by content, the same as the pipeline's own, drawn anew each step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError
from sd_ext.models import Folder
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.data.order import Pass
from sd_ext.training.encoding.encoded import settled
from sd_ext.training.train_text_to_image import TextToImageTask

from ..conftest import TINY


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The parts that are loaded."""
    seen, real = [], Folder.load

    def spy(self, part, *rest):
        seen.append(part)
        return real(self, part, *rest)

    monkeypatch.setattr(Folder, "load", spy)
    return seen


@pytest.fixture
def own(tiny_pipeline_dir, picture_folder, tmp_path) -> dict:
    """Settings with a model and pictures of one's own, and a cache beside the run."""
    model = shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    data = shutil.copytree(picture_folder, tmp_path / "set")
    return {**TINY, "model": str(model), "data": str(data), "resolution": 32, "out": str(tmp_path / "run"),
            "cache_dir": str(tmp_path / "cache"), "prompts": ("red bar",), "flip": True}  # fmt: skip


def begin(settings: dict, **more) -> TextToImageTask:
    task = TextToImageTask(TextToImageConfig.of(**{**settings, **more}))
    task.begin(Accelerator(cpu=True))
    return task


def entries(settings: dict) -> set[str]:
    return {path.name for path in Path(settings["cache_dir"]).rglob("*.safetensors")}


def nudge(path: Path) -> None:
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_a_second_run_loads_no_encoder(own, loaded, tmp_path):
    begin(own)
    assert set(loaded) == {"text_encoder", "tokenizer", "unet", "vae"}
    loaded.clear()
    begin({**own, "out": str(tmp_path / "second")}, batch_size=3, seed=7)
    assert loaded == ["unet"]
    shutil.move(own["data"], tmp_path / "elsewhere")
    loaded.clear()
    begin({**own, "data": str(tmp_path / "elsewhere"), "out": str(tmp_path / "third")})
    assert loaded == ["unet"]


def test_what_has_changed_and_nothing_else_is_encoded_anew(own, loaded):
    """11 pictures, each and its mirror image, 12 texts with the empty one, and the lengths of all texts."""
    begin(own)
    data, model, seen = Path(own["data"]), Path(own["model"]), entries(own)
    assert len(seen) == 2 * 11 + 12 + 1

    def new(parts: set[str]) -> int:
        loaded.clear()
        begin(own)
        assert set(loaded) == {"unet", *parts}
        now = entries(own)
        assert now >= seen
        count = len(now - seen)
        seen.update(now)
        return count

    picture = data / "red_bar.png"
    whole = picture.read_bytes()
    picture.write_bytes((data / "black_bar.png").read_bytes())
    assert new({"vae"}) == 2
    picture.write_bytes(whole)
    assert new(set()) == 0  # the old entry is still true
    metadata = data / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("blue bar", "azure bar"))
    assert new({"text_encoder", "tokenizer"}) == 1 + 1
    nudge(model / "vae" / "diffusion_pytorch_model.safetensors")
    assert new({"vae"}) == 22
    nudge(model / "text_encoder" / "model.safetensors")
    assert new({"text_encoder", "tokenizer"}) == 12
    config = model / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 20}))
    assert new({"text_encoder", "tokenizer"}) == 12 + 1


@pytest.mark.parametrize("cache_dtype", ["fp32", "fp16"])
@torch.no_grad()
def test_latents_are_the_autoencoders(own, cache_dtype):
    """Posterior mean and standard deviation, scaled, of each picture and its mirror image."""
    task = begin(own, cache_dtype=cache_dtype)
    vae = StableDiffusionPipeline.from_pretrained(own["model"]).vae
    close = {"rtol": 1e-3, "atol": 1e-3} if cache_dtype == "fp16" else {"rtol": 1e-4, "atol": 1e-5}
    for flipped in (False, True):
        moments = task.encoded.moments(task.pictures, range(11), [flipped] * 11)
        pixels = torch.stack([task.pictures.pixels(i, flipped) for i in range(11)])
        posterior = vae.encode(pixels).latent_dist
        torch.testing.assert_close(moments[:, 0], posterior.mean * vae.config.scaling_factor, **close)
        torch.testing.assert_close(moments[:, 1], posterior.std * vae.config.scaling_factor, **close)


@torch.no_grad()
def test_without_a_cache_the_latents_are_the_same(own):
    cached, fresh = begin(own, cache_dtype="fp32"), begin(own, cache=False)
    for flips in ([False, True], [True, False]):
        ours, theirs = (task.encoded.moments(task.pictures, [2, 5], flips) for task in (cached, fresh))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    each = Pass(0, (2, 5), (0, 1), 2)
    batches = [task.batch(each, task.read(each), torch.device("cpu")) for task in (cached, fresh)]
    for a, b in zip(*(batch[:3] for batch in batches), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@torch.no_grad()
def test_states_are_the_pipelines(own, family, tiny_sdxl_dir):
    model = str(tiny_sdxl_dir) if family == "sdxl" else own["model"]
    task = begin(own, model=model, cache_dtype="fp32")
    cls = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe, texts = cls.from_pretrained(model), ["red circle", "", "green square"]
    found = task.encoded.states(texts)
    if family == "sdxl":
        states, _, pooled, _ = pipe.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(found["pooled"], pooled, rtol=1e-4, atol=1e-5)
    else:
        states, _ = pipe.encode_prompt(texts, "cpu", 1, False)
    torch.testing.assert_close(found["states"], states, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clip_skip_is_an_encoder_with_fewer_layers(own, tiny_sdxl_dir):
    """The states are those of a pipeline whose text encoder lacks its last layer. The cache keeps both apart."""
    texts = ["red circle", "", "green square"]
    last = begin(own, cache_dtype="fp32").encoded.states(texts)["states"]
    skipped = begin(own, cache_dtype="fp32", clip_skip=2).encoded.states(texts)["states"]
    pipe = StableDiffusionPipeline.from_pretrained(own["model"])
    for found in (last, skipped):
        wanted, _ = pipe.encode_prompt(texts, "cpu", 1, False)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        (layers,) = (part for part in pipe.text_encoder.modules() if isinstance(part, torch.nn.ModuleList))
        del layers[-1]
    assert not torch.allclose(last, skipped, atol=0.01)
    with pytest.raises(InputError, match=r"clip_skip is 3; the text encoder of .* has 1 to 2"):
        TextToImageTask(TextToImageConfig.of(**own, clip_skip=3))
    with pytest.raises(InputError, match="SDXL always reads the last layer but one"):
        TextToImageTask(TextToImageConfig.of(**{**own, "model": str(tiny_sdxl_dir)}, clip_skip=2))


def test_every_step_draws_a_fresh_sample_of_the_posterior(own):
    """Not one frozen sample (sd-scripts #1709): over steps a latent has the posterior's mean and deviation."""
    task = begin(own, prediction_type="sample", cache_dtype="fp32", flip=False)  # the target is the latent
    passes = [Pass(step, (3,), (0,), 1) for step in range(400)]
    drawn = torch.cat([task.batch(each, task.read(each), torch.device("cpu"))[2] for each in passes])
    mean, std = task.encoded.moments(task.pictures, [3], [False])[0]
    normal = (drawn - mean) / std
    assert float(normal.mean(0).abs().max()) < 5 / 400**0.5
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    assert len({float(value) for value in drawn[:, 0, 0, 0]}) == 400


def test_the_autoencoder_computes_in_float32(own):
    """In float16 SDXL's overflows (diffusers #4820), and float16 is only what is kept."""
    task = begin(own, mixed_precision="bf16")
    assert task.encoded.vae().dtype == torch.float32
    assert task.encoded.moments(task.pictures, [0], [False]).dtype == torch.float32


def test_of_a_wide_posterior_the_mean_is_taken(own, caplog):
    moments = torch.rand(2, 2, 4, 3, 3) * 0.4
    moments[1, 1, 2, 1, 1] = 0.6
    got = settled(moments)
    assert torch.equal(got[:, 0], moments[:, 0])
    assert torch.equal(got[0, 1], moments[0, 1])
    assert not got[1, 1].any()
    task = begin(own, cache=False)
    task.encoded.vae().quant_conv.bias.data[4:] += 20  # log-variances far above 0
    each = Pass(0, (2, 5), (0, 1), 2)
    for _ in range(2):
        task.batch(each, task.read(each), torch.device("cpu"))
    said = [record.message for record in caplog.records if "the mean of the latent is taken" in record.message]
    assert len(said) == 1
    assert all(task.pictures.samples[i].item.name in said[0] for i in each.samples)
