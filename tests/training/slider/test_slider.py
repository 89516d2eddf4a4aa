"""A run of `train_slider` equals a plain loop of torch, Diffusers and peft with the same draws, of texts and of pairs.
Its two directions are opposite strengths of one LoRA.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training.data.order import StepOrder
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.history import read_history
from sd_ext.training.slider.config import SliderConfig
from sd_ext.training.slider.strengths import Strengths
from sd_ext.training.slider.task import SliderTask

from ..conftest import write_pictures
from ..lora_cases import SETTINGS, train, untouched

PLAIN = {
    "optimizer": "sgd", "optimizer_options": ("momentum=0",), "lr_schedule": "constant",
    "clip": 0.0, "warmup": 0, "log_every": 1, "learning_rate": 3.0,
    "cache_dtype": "fp32",
}  # fmt: skip
TEXTS = {"positive": "red {}", "negative": "a blue {}", "concept": "{}", "push": 2.0}


def wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def pairs(folder: Path) -> dict[str, str]:
    """Two folders of the same names: the second has the pictures darkened, as JPEG."""
    more, less = write_pictures(folder / "more", 64), folder / "less"
    less.mkdir()
    for path in more.glob("*.png"):
        Image.open(path).point(lambda v: v // 3).save(less / f"{path.stem}.jpg", quality=95)
    return {"data": str(more), "less_data": str(less)}


class Plain:
    """The losses and weights of a slider, from its draws alone; strengths are set by Diffusers' `set_adapters`."""

    def __init__(self, trained: Any):
        self.task, self.config, self.pipe = trained.task, trained.config, untouched(trained.base)
        self.v = self.pipe.scheduler.config.prediction_type == "v_prediction"
        self.kept = DDIMScheduler.from_config(self.pipe.scheduler.config).alphas_cumprod
        self.base, self.unet = (UNet2DConditionModel.from_pretrained(trained.base / "unet") for _ in range(2))
        paths = sorted({n.removeprefix("unet.").partition(".lora_")[0] for n in trained.changed()})
        torch.manual_seed(self.config.loop.seed)
        self.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=paths))
        self.losses = [self.step(number) for number in range(self.config.loop.steps)]

    @torch.no_grad()
    def told(self, prompts: list[str], ids: Any) -> dict[str, Any]:
        settings = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        found = self.pipe.encode_prompt(prompts, **settings)
        if len(found) == 2:
            return {"encoder_hidden_states": found[0]}
        added = {"text_embeds": found[2], "time_ids": torch.tensor(ids, dtype=torch.float32)}
        return {"encoder_hidden_states": found[0], "added_cond_kwargs": added}

    def at(self, strength: float, x: torch.Tensor, t: torch.Tensor, told: dict[str, Any]) -> torch.Tensor:
        self.unet.set_adapters(["default"], weights=[strength])
        return self.unet(x, t, **told).sample

    def step(self, number: int) -> float:
        task, loop, given = self.task, self.config.loop, self.config.slider
        weights = [p for n, p in self.unet.named_parameters() if "lora_" in n]
        optimizer = torch.optim.SGD(weights, self.config.rate.learning_rate)
        [each] = StepOrder(task.sizes, loop.batch_size, loop.batch_size, loop.seed).passes(number)
        drawn = task.read(each)
        eps, t, ids = drawn.noises[1], drawn.t, task.time_ids(each, drawn)
        alpha, sigma = wide(self.kept[t].sqrt()), wide((1 - self.kept[t]).sqrt())
        captions = [task.texts[i] for i in drawn.texts]
        optimizer.zero_grad()
        losses = []
        if given.positive:
            x = alpha * task.latents(each, drawn) + sigma * eps
            told = self.told([given.concept.replace("{}", c) for c in captions], ids)
            with torch.no_grad():
                moves = []
                for kept in given.preserve or ("",):
                    ends = [
                        [text.replace("{}", c) + (f", {kept}" if kept else "") for c in captions]
                        for text in (given.positive, given.negative)
                    ]
                    seen = [self.base(x, t, **self.told(texts, ids)).sample for texts in ends]
                    moves.append(seen[0] - seen[1])
                move, middle = given.push * sum(moves) / len(moves), self.base(x, t, **told).sample
            for strength in (1.0, -1.0):
                losses.append((self.at(strength, x, t, told) - middle - strength * move).square().mean() / 2)
                losses[-1].backward()
        else:
            told = self.told(captions, ids)
            for strength, x0 in ((1.0, task.latents(each, drawn)), (-1.0, task.less_latents(each, drawn))):
                wanted = alpha * eps - sigma * x0 if self.v else eps
                losses.append((self.at(strength, alpha * x0 + sigma * eps, t, told) - wanted).square().mean() / 2)
                losses[-1].backward()
        optimizer.step()
        return float(sum(loss.item() for loss in losses))


CASES = {
    "texts": ("sd21", {**TEXTS, "preserve": ("circle", "bar")}),
    "pairs": ("sd15", {}),
    "texts of sdxl, with checkpointing": ("sdxl", {**TEXTS, "concept": "a thing", "gradient_checkpointing": True}),
    "pairs, v, not cached": ("sd21", {"cache": False}),
}


@pytest.mark.parametrize("case", ["texts", *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[1:])])
def test_a_run_is_a_plain_loop_with_the_same_draws(case, bases, tmp_path):
    shape, settings = CASES[case]
    data = {"data": str(write_pictures(tmp_path / "data", 64))} if "positive" in settings else pairs(tmp_path)
    trained = train(bases[shape], tmp_path / "run", "slider", **data, **PLAIN, **settings)
    plain = Plain(trained)
    losses = [entry["loss"] for entry in read_history(tmp_path / "run" / "history.jsonl")]
    assert losses == pytest.approx(plain.losses, rel=1e-4)
    ends = dict(plain.unet.named_parameters())
    mine = {n: p for n, p in trained.task.model.named_parameters() if p.requires_grad}
    moved = max(float(p.detach().abs().max()) for n, p in mine.items() if "lora_B" in n)
    assert moved > 1e-4
    for name, p in mine.items():
        assert (p - ends[name.removeprefix("unet.")]).abs().max() < 1e-2 * moved


def test_strengths_are_those_of_diffusers_and_each_sample_has_its_own(bases):
    unet = UNet2DConditionModel.from_pretrained(bases["sdxl"] / "unet")
    torch.manual_seed(0)
    unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "conv1", "proj_in", "time_emb_proj"], init_lora_weights=False)
    )
    strengths = Strengths(unet)
    x, states = torch.randn(3, 4, 8, 8), torch.randn(3, 5, unet.config.cross_attention_dim)
    size = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(3, size), "time_ids": torch.ones(3, 6)}

    def seen(part: slice) -> torch.Tensor:
        some = {name: value[part] for name, value in added.items()}
        return unet(x[part], 500, states[part], added_cond_kwargs=some).sample

    with torch.no_grad():
        strengths.now = torch.tensor([1.0, -1.0, 0.5])
        together = seen(slice(3))
        strengths.now = None
        for n, strength in enumerate((1.0, -1.0, 0.5)):
            unet.set_adapters(["default"], weights=[strength])
            assert torch.allclose(seen(slice(n, n + 1))[0], together[n], atol=1e-5)
        with strengths.at(0.0):
            off = seen(slice(3))
        unet.disable_adapters()
        assert torch.allclose(seen(slice(3)), off, atol=1e-5)


@pytest.mark.slow
def test_it_resumes_to_the_bit_and_shows_its_strengths(bases, tmp_path):
    given = {**pairs(tmp_path), "steps": 4, "checkpoint_every": 2, "validate_every": 2, "prompts": ("red circle",)}
    run = train(bases["sd15"], tmp_path / "run", "slider", **given)
    run.task.draw_at = lambda strength: []  # the run is over
    assert list(run.task.rows([])) == ["-2", "-1", "0", "+1", "+2"]
    assert (run.folder / "samples" / "sheet.png").is_file()
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000004")
    again = train(bases["sd15"], tmp_path / "again", "slider", **given)
    for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        assert (run.folder / name).read_bytes() == (again.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**TEXTS, "less_data": "there"}, "leave out one of less_data"), ({**TEXTS, "method": "dora"}, "method = dora"),
        ({"positive": "a", "negative": "a"}, "same text"), ({**TEXTS, "text_encoder": True}, "text_encoder"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        SliderConfig.of(**{**SETTINGS, **settings})


def test_what_no_slider_can_be_made_of_is_said(bases, tmp_path):
    """No ends; a picture without partner; a partner of other proportions."""
    files, given = find_trainable(str(bases["sd15"])), pairs(tmp_path)

    here = {**SETTINGS, "model": str(bases["sd15"]), "out": str(tmp_path / "out")}

    def refused(**settings: Any) -> str:
        with pytest.raises(InputError) as error:
            SliderTask(SliderConfig.of(**{**here, **settings}), files)
        return str(error.value)

    assert "two ends" in refused(data=given["data"])
    less = Path(given["less_data"])
    (less / "red_bar.jpg").unlink()
    assert "no picture to go with red_bar.png" in refused(**given)
    Image.new("RGB", (64, 128)).save(less / "red_bar.jpg")
    assert "not of the size of its partner" in refused(**given, buckets=True, bucket_step=8)
