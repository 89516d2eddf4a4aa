"""What the samples of a run are: class pictures, masks, captions left out, mirrored pictures."""

from __future__ import annotations

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from sd_ext.training.data.items import Item
from sd_ext.training.data.order import StepOrder
from sd_ext.training.lora.class_pictures import missing, to_make, with_class_pictures
from sd_ext.training.lora.settings import ClassSettings
from sd_ext.training.model.pipeline import make_scheduler

from ..conftest import write_pictures
from ..lora_cases import a_task, pipeline


@pytest.fixture(scope="module")
def prior(lora_run, tmp_path_factory):
    """A run with class pictures, of which one was there and five are made."""
    folder = tmp_path_factory.mktemp("class") / "bars"
    folder.mkdir()
    Image.new("RGB", (64, 64), "gold").save(folder / "mine.png")
    settings = {"class_data": str(folder), "class_prompt": "a bar", "class_images": 6, "prior_weight": 0.25}
    return lora_run(**settings, prefix="new", steps=2), folder


def test_missing_class_pictures_are_drawn_by_the_base_model(prior, bases):
    trained, folder = prior
    files = sorted(path.name for path in folder.iterdir())
    assert [name[:4] for name in files] == ["0000", "0001", "0002", "0003", "0004", "mine"]
    pipe = pipeline(bases["sd15"], vae=True)
    pipe.scheduler = make_scheduler(trained.task.files.noise())
    expected = pipe(
        "a bar", num_inference_steps=2, guidance_scale=3.0, height=64, width=64,
        generator=torch.Generator().manual_seed(3), output_type="pil",
    ).images[0]  # fmt: skip
    made = Image.open(folder / files[3])
    difference = np.asarray(made).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1  # decoded one by one, rounded once


def test_class_pictures_have_their_own_caption_and_weight_and_are_as_many(prior):
    trained, _ = prior
    task, samples = trained.task, trained.task.pictures.samples
    ours, class_ = [[s for s in samples if s.item.prior is prior] for prior in (False, True)]
    assert len(ours) == len(class_) == 11
    assert len({s.digest for s in class_}) == 6
    assert {s.weight for s in class_} == {0.25}
    assert {s.weight for s in ours} == {1.0}
    said = {s.item.prior: set() for s in samples}
    for sample, numbers in zip(samples, task.choices, strict=True):
        said[sample.item.prior] |= {task.texts[n] for n in numbers}
    assert said[True] == {"a bar"}  # without the prefix: the class is not what is learnt
    assert all(text.startswith("new ") for text in said[False])
    assert all(prompt.startswith("new ") for prompt in task.prompts)
    facts = json.loads((trained.folder / "training.json").read_text())
    assert facts["pictures"] == 11


def test_all_of_more_class_pictures_than_samples_are_used(tmp_path):
    for n in range(7):
        Image.new("RGB", (64, 64), (n, n, n)).save(tmp_path / f"{n}.png")
    settings = ClassSettings(class_data=str(tmp_path), class_prompt="x", class_images=7)
    items = with_class_pictures(settings, [Item("a", bytes), Item("b", bytes, repeats=2)], 64)
    count = {prior: sum(item.repeats for item in items if item.prior is prior) for prior in (False, True)}
    assert count == {False: 9, True: 9}
    assert all(item.repeats >= 1 for item in items)
    assert len(items) == 9


def test_class_pictures_that_were_removed_are_made_again(tmp_path):
    settings = ClassSettings(class_data=str(tmp_path / "class"), class_prompt="x", class_images=4)
    assert (missing(settings), to_make(settings)) == (4, [0, 1, 2, 3])
    (tmp_path / "class").mkdir()
    for n in (0, 1, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / "class" / f"{n:04d}-abc.png")
    assert (missing(settings), to_make(settings)) == (1, [2])


def test_damaged_class_pictures_are_made_again_and_others_own_are_not_looked_into(tmp_path, caplog):
    settings = ClassSettings(class_data=str(tmp_path), class_prompt="x", class_images=3)
    for name in ("0000-0123456789ab", "0001-0123456789ab", "mine"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    assert missing(settings) == 0
    for name in ("0001-0123456789ab", "mine"):
        data = bytearray((tmp_path / f"{name}.png").read_bytes())
        data[-20] ^= 1
        (tmp_path / f"{name}.png").write_bytes(data)
        os.utime(tmp_path / f"{name}.png", (1, 1))
    assert (missing(settings), to_make(settings)) == (1, [1])
    assert [message.count("0001-0123456789ab.png is damaged") for message in caplog.messages] == [1]


def test_a_plan_counts_class_pictures_that_are_still_to_be_made(tmp_path, bases, picture_folder):
    given = {"class_data": str(tmp_path / "none"), "class_prompt": "x", "class_images": 3}
    task = a_task(tmp_path, bases["sd15"], picture_folder, **given)
    assert len(task.pictures) == 22
    assert not (tmp_path / "none").exists()


def test_nothing_is_learnt_from_latents_outside_the_mask(tmp_path, bases):
    data = write_pictures(tmp_path / "set", 64)
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    lines = []
    for path in sorted(data.glob("*.png"))[:2]:
        half.save(data / f"{path.stem}-mask.png")
        lines.append(json.dumps({"file_name": path.name, "text": "a", "mask_file_name": f"{path.stem}-mask.png"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    task = a_task(tmp_path, bases["sd15"], data, masked_loss=True, mask_floor=0.0)
    task.begin(Accelerator(cpu=True))
    (each,) = StepOrder(task.sizes, 2, 2, 0).passes(0)
    x, t, wanted, weight, delta, conditions, mask = task.batch(each, task.read(each), torch.device("cpu"))
    assert mask[..., :4].eq(1).all()
    assert mask[..., 4:].eq(0).all()
    seen = []
    task.unet.register_forward_hook(lambda module, args, output: seen.append(output.sample))
    task.model(x, t, wanted, weight, delta, conditions, mask)["loss"].backward(inputs=[hold(seen)])
    assert seen[0].grad[..., 4:].eq(0).all()
    assert seen[0].grad[..., :4].ne(0).any()


def hold(seen):
    seen[0].retain_grad()
    return seen[0]


def test_the_share_of_captions_left_out_and_of_mirrored_pictures(tmp_path, bases, picture_folder):
    task = a_task(tmp_path, bases["sd15"], picture_folder, text_dropout=0.3, flip=True, batch_size=4, cache=False)
    order, empty, mirrored, total = StepOrder(task.sizes, 4, 4, 0), 0, Counter(), 0
    task.pictures.pixels = lambda *place: torch.zeros(3, 64, 64)
    for step in range(300):
        for each in order.passes(step):
            drawn = task.read(each)
            empty += sum(n < 0 for n in drawn.texts)
            mirrored.update(drawn.flips)
            total += len(drawn.texts)
    assert empty / total == pytest.approx(0.3, abs=0.05)  # 3.5 standard deviations
    assert mirrored[True] / total == pytest.approx(0.5, abs=0.055)
