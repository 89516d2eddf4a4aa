"""What a diffusion step is trained on, beside Diffusers' own scheduler; and how a model is measured."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from PIL import Image

from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.data.images import covering
from sd_ext.training.data.order import Pass
from sd_ext.training.train_text_to_image import TextToImageTask
from sd_ext.training.train_text_to_image import run as run_text_to_image

from ..conftest import TINY, TWO_SIZES, image_settings

CPU = torch.device("cpu")


def begin(out, settings: dict, **more) -> TextToImageTask:
    task = TextToImageTask(TextToImageConfig.of(**{**settings, "out": str(out), **more}))
    task.begin(Accelerator(cpu=True))
    return task


@pytest.fixture
def settings(picture_folder, tiny_parts, tmp_path) -> dict:
    return image_settings(picture_folder, tiny_parts, cache_dir=str(tmp_path / "cache"), flip=True)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_input_and_target_are_those_of_diffusers(settings, tmp_path, zero_snr):
    """The same draws whatever is predicted: x0 is the target of one task, noise of another, v of a third."""
    kinds = ["sample", "v_prediction", *([] if zero_snr else ["epsilon"])]
    each, batches = Pass(4, tuple(range(11)), tuple(range(11)), 11), {}
    for kind in kinds:
        task = begin(tmp_path / kind, settings, prediction_type=kind, zero_snr=zero_snr)
        batches[kind] = task.batch(each, task.read(each), CPU)
    x, t, x0 = batches["sample"][:3]
    assert all(torch.equal(batch[0], x) and torch.equal(batch[1], t) for batch in batches.values())
    reference = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_snr
    )
    alpha = reference.alphas_cumprod[t].sqrt()[:, None, None, None]
    eps = (x - alpha * x0) / (1 - alpha.square()).sqrt()
    torch.testing.assert_close(x, reference.add_noise(x0, eps, t))
    torch.testing.assert_close(batches["v_prediction"][2], reference.get_velocity(x0, eps, t), rtol=1e-3, atol=1e-4)
    if not zero_snr:
        torch.testing.assert_close(batches["epsilon"][2], eps, rtol=1e-3, atol=1e-4)


def test_what_is_drawn_for_a_sample_does_not_depend_on_the_pass(settings, tmp_path):
    """Cut in any way: a step's noise, timesteps, captions and mirror images are the same."""
    task = begin(
        tmp_path / "run", settings, shuffle_tags=True, tag_separator=" ", offset_noise=0.1, pyramid_iterations=2,
        input_perturbation=0.1,
    )  # fmt: skip
    samples = (3, 1, 4, 7, 5, 9, 2, 6)
    whole = task.batch(each := Pass(6, samples, tuple(range(8)), 8), task.read(each), CPU)
    for cuts in ([1, 3, 4], [2, 2, 2, 2], [8]):
        first, found = 0, []
        for n in cuts:
            positions = tuple(range(first, first + n))
            each = Pass(6, tuple(samples[p] for p in positions), positions, 8)
            found.append(task.batch(each, task.read(each), CPU))
            first += n
        for place in (0, 1, 2, 3, 4):
            assert torch.equal(torch.cat([batch[place] for batch in found]), whole[place])
        assert torch.equal(torch.cat([batch[5]["states"] for batch in found]), whole[5]["states"])
    again = task.batch(each := Pass(7, samples, tuple(range(8)), 8), task.read(each), CPU)
    assert not torch.equal(again[0], whole[0])


def test_timesteps_are_one_of_each_stratum_of_the_step(settings, tmp_path):
    task = begin(tmp_path / "run", settings, timestep_min=100, timestep_max=900)
    for step in range(20):
        t = torch.cat(
            [task.timesteps(Pass(step, (0,) * 4, positions, 8)) for positions in ((0, 2, 4, 6), (1, 3, 5, 7))]
        )
        assert ((t - 100) // 100).sort().values.tolist() == list(range(8))


def test_half_of_the_pictures_are_mirrored(settings, tmp_path):
    task = begin(tmp_path / "run", settings)
    flips = [f for step in range(100) for f in task.read(Pass(step, (0, 1, 2), (0, 1, 2), 3)).flips]
    assert sum(flips) / len(flips) == pytest.approx(0.5, abs=0.1)
    assert not any(begin(tmp_path / "off", settings, flip=False).read(Pass(0, (0, 1, 2), (0, 1, 2), 3)).flips)


def test_sdxl_is_told_the_size_and_the_crop_that_is_seen(two_sizes_folder, tiny_sdxl_dir, tmp_path):
    """With random crops and mirroring: cut from the (mirrored) picture there, the pixels are those trained on."""
    settings = {**TINY, "model": str(tiny_sdxl_dir), "data": str(two_sizes_folder), "resolution": 16}
    task = begin(tmp_path / "run", settings, cache=False, crop="random", flip=True)  # squares of wide pictures
    corners = set()
    for step in range(12):
        for sample, size in enumerate(task.sizes):
            each = Pass(step, (sample,), (0,), 1)
            drawn = task.read(each)
            [told] = task.batch(each, drawn, CPU)[5]["time_ids"].int().tolist()
            item = task.pictures.samples[sample].item
            with Image.open(two_sizes_folder / item.name) as picture:
                seen = covering(picture.convert("RGB"), size).float() / 127.5 - 1
                assert told[:2] == [picture.height, picture.width]
            seen = seen.flip(-1) if drawn.flips[0] else seen
            top, left = told[2:4]
            assert torch.equal(drawn.pixels[0], seen[:, top : top + size[0], left : left + size[1]])
            assert told[4:] == list(size)
            corners.add((top, left, drawn.flips[0]))
    assert len(corners) > 4
    centred = begin(tmp_path / "centred", settings)
    wide = next(i for i, s in enumerate(centred.pictures.samples) if s.original == (32, 52))
    each = Pass(0, (wide,), (0,), 1)
    assert centred.batch(each, centred.read(each), CPU)[5]["time_ids"].tolist() == [[32, 52, 0, 5, 16, 16]]


def test_masks_that_do_not_act_are_said(tiny_parts, tmp_path, caplog):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, mode in (("a.png", "RGB"), ("a.mask.png", "L")):
        Image.new(mode, (16, 16)).save(folder / name)
    (folder / "a.txt").write_text("a")
    for acts in (False, True):
        caplog.clear()
        begin(tmp_path / f"run-{acts}", image_settings(folder, tiny_parts, masked_loss=acts))
        assert ("there are masks, which act only with masked_loss" in caplog.text) != acts


def test_a_mask_is_that_of_the_sample(tiny_parts, tmp_path):
    """The opacity of pictures as their masks: mirrored with them, as coarse as latents, never below the floor."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = []
    for name, box in (("left", (0, 0, 8, 16)), ("right", (8, 0, 16, 16)), ("top", (0, 0, 16, 8))):
        picture = Image.new("RGBA", (16, 16), (200, 10, 10, 0))
        picture.paste((10, 10, 200, 255), box)
        picture.save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": name}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    task = begin(tmp_path / "run", image_settings(folder, tiny_parts, flip=True, masked_loss=True, mask_floor=0.25))
    half = torch.full((8, 8), 0.25)
    half[:, :4] = 1
    wanted = {"left": half, "right": half.flip(-1), "top": half.T}
    for step in range(6):
        each = Pass(step, (0, 1, 2), (0, 1, 2), 3)
        drawn = task.read(each)
        mask = task.batch(each, drawn, CPU)[6]
        for i, name in enumerate(("left", "right", "top")):
            assert torch.equal(mask[i, 0], wanted[name].flip(-1) if drawn.flips[i] else wanted[name])


def test_validation_is_the_same_each_time(two_sizes_folder, tiny_parts, tmp_path):
    """Twice, between steps, with other seeds and batch sizes, in training mode or not: a function of the weights."""
    settings = image_settings(two_sizes_folder, tiny_parts, **TWO_SIZES, validation_split="held_out")
    task = begin(tmp_path / "run", settings)
    weights = {name: value.clone() for name, value in task.model.state_dict().items()}
    with torch.no_grad():
        [loss] = task.validate().values()
        torch.manual_seed(99)
        torch.rand(7)
        assert task.validate() == {"validation_loss": loss}
        for more in ({"batch_size": 1}, {"batch_size": 11, "seed": 3, "flip": True, "offset_noise": 0.3}):
            other = begin(tmp_path / str(more["batch_size"]), settings, **more)
            other.model.load_state_dict(weights)
            assert other.validate()["validation_loss"] == pytest.approx(loss, rel=1e-6)
        finer = begin(tmp_path / "finer", settings, validation_times=16)
        finer.model.load_state_dict(weights)
        assert finer.validate()["validation_loss"] == pytest.approx(loss, rel=0.2)
        assert finer.validate()["validation_loss"] != loss
    assert begin(tmp_path / "none", {**settings, "validation_split": ""}).validate() == {}


def test_validation_loss_falls_when_what_is_learnt_is_more_than_the_pictures(picture_folder, tiny_parts, tmp_path):
    settings = image_settings(
        picture_folder, tiny_parts, validation_share=0.2, batch_size=9, steps=60, validate_every=20, preview_steps=1,
        prompts=("red bar",), validation_times=8,
    )  # fmt: skip
    run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "run")))
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    losses = [entry["validation_loss"] for entry in history if "validation_loss" in entry]
    assert len(losses) == 3
    assert losses[2] < losses[0] < 1.1
    assert losses[2] < 0.85
