"""A run of `train_few_step` equals a plain loop of torch, Diffusers and peft with the same draws, resumes to the bit,
and leaves a LoRA like any other.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel
from peft import LoraConfig

from sd_ext.errors import InputError
from sd_ext.lora import apply_lora, read_lora
from sd_ext.schedulers import make_scheduler
from sd_ext.training.data.order import StepOrder
from sd_ext.training.few_step.config import FewStepConfig
from sd_ext.training.few_step.task import FewStepTask
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.history import read_history

from ..conftest import write_pictures
from ..lora_cases import SETTINGS, pipeline, train, untouched

PLAIN = {
    "optimizer": "sgd", "optimizer_options": ("momentum=0",), "lr_schedule": "constant",
    "clip": 0.0, "warmup": 0, "log_every": 1, "targets": ("attention",),
    "cache_dtype": "fp32",
}  # fmt: skip
C = 0.001


def wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


class Plain:
    """The losses and weights of a distillation, from its draws alone."""

    def __init__(self, trained: Any):
        self.task, self.config = trained.task, trained.config
        self.pipe = untouched(trained.base)
        self.v = self.pipe.scheduler.config.prediction_type == "v_prediction"
        self.kept = DDIMScheduler.from_config(self.pipe.scheduler.config).alphas_cumprod
        self.teacher, self.student, self.average = (
            UNet2DConditionModel.from_pretrained(trained.base / "unet") for _ in range(3)
        )
        paths = sorted({n.removeprefix("unet.").partition(".lora_")[0] for n in trained.changed()})
        for unet in (self.student, self.average):
            torch.manual_seed(self.config.loop.seed)
            unet.requires_grad_(False)
            unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=paths))
        self.losses = [self.step(number) for number in range(self.config.loop.steps)]

    def told(self, prompts: list[str], time_ids: Any) -> dict[str, Any]:
        """What the pipeline makes of prompts."""
        found = self.pipe.encode_prompt(
            prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if len(found) == 2:
            return {"encoder_hidden_states": found[0]}
        added = {"text_embeds": found[2], "time_ids": torch.tensor(time_ids, dtype=torch.float32)}
        return {"encoder_hidden_states": found[0], "added_cond_kwargs": added}

    def nothing(self, told: dict[str, Any], time_ids: Any) -> dict[str, Any]:
        """For SDXL zeros, as its pipeline takes them where no negative prompt is given."""
        if "added_cond_kwargs" not in told:
            return self.told([""] * len(time_ids), time_ids)
        added = {**told["added_cond_kwargs"], "text_embeds": torch.zeros_like(told["added_cond_kwargs"]["text_embeds"])}
        return {"encoder_hidden_states": torch.zeros_like(told["encoder_hidden_states"]), "added_cond_kwargs": added}

    def both(self, m: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x0 and eps from a prediction."""
        alpha, sigma = wide(self.kept[t].sqrt()), wide((1 - self.kept[t]).sqrt())
        return (alpha * x - sigma * m, alpha * m + sigma * x) if self.v else ((x - sigma * m) / alpha, m)

    def jump(self, unet: Any, x: torch.Tensor, t: torch.Tensor, told: dict[str, Any]) -> torch.Tensor:
        known = t.clamp_min(0)
        x0, _ = self.both(unet(x, known, **told).sample, x, known)
        scaled = 10.0 * t.clamp_min(0)
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        return torch.where(wide(t < 0), x, wide(skip) * x + wide(out) * x0)

    def step(self, number: int) -> float:
        task, loop, skip = self.task, self.config.loop, self.config.consistency.skip
        weights = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        averages = {n: p for n, p in self.average.named_parameters() if n in weights}
        optimizer = torch.optim.SGD(weights.values(), self.config.rate.learning_rate)
        [each] = StepOrder(task.sizes, loop.batch_size, loop.batch_size, loop.seed).passes(number)
        drawn = task.read(each)
        x0, t, guidance = task.latents(each, drawn), drawn.t, wide(task.guidance(each))
        x = wide(self.kept[t].sqrt()) * x0 + wide((1 - self.kept[t]).sqrt()) * drawn.noises[1]
        ids = task.time_ids(each, drawn)
        told = self.told([task.texts[i] for i in drawn.texts], ids)
        with torch.no_grad():
            said = self.teacher(x, t, **told).sample
            unsaid = self.teacher(x, t, **self.nothing(told, ids)).sample
            x0, eps = self.both(unsaid + guidance * (said - unsaid), x, t)
            before = t - skip
            kept = torch.where(before < 0, torch.ones(()), self.kept[before.clamp_min(0)])
            target = self.jump(self.average, wide(kept.sqrt()) * x0 + wide((1 - kept).sqrt()) * eps, before, told)
        loss = (((self.jump(self.student, x, t, told) - target) ** 2 + C**2).sqrt() - C).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(loop.ema, (2 + number) / (11 + number)) if loop.ema else 0.0
        with torch.no_grad():
            for name, average in averages.items():
                average.copy_(decay * average + (1 - decay) * weights[name])
        return loss.item()


CASES = {
    "v": ("sd21", {"teacher_guidance": (3.0, 15.0), "skip": 50, "ema": 0.9}),
    "eps, its own weights the target": ("sd15", {"ema": 0.0}),
    "sdxl": ("sdxl", {"ema": 0.5, "teacher_guidance": (4.0,)}),
}


@pytest.mark.parametrize("case", ["v", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "v")])
def test_a_run_is_a_plain_loop_with_the_same_draws(case, bases, tmp_path):
    shape, settings = CASES[case]
    data = write_pictures(tmp_path / "data", 64)
    trained = train(
        bases[shape], tmp_path / "run", "few-step", data=str(data), **{**PLAIN, "learning_rate": 3.0, **settings}
    )
    plain = Plain(trained)
    losses = [entry["loss"] for entry in read_history(tmp_path / "run" / "history.jsonl")]
    assert losses == pytest.approx(plain.losses, rel=1e-3, abs=1e-6)
    assert len(set(losses)) == 3
    ends = dict(plain.student.named_parameters())
    start = {n: p for n, p in trained.task.model.named_parameters() if p.requires_grad}
    moved = max(float(p.detach().abs().max()) for n, p in start.items() if "lora_B" in n)
    assert moved > 1e-4
    for name, p in start.items():
        assert (p - ends[name.removeprefix("unet.")]).abs().max() < 2e-2 * moved


@pytest.mark.slow
def test_it_resumes_to_the_bit_and_its_files_are_loras(bases, tmp_path):
    """From its first checkpoint on it ends as it did; Diffusers reads the file, and LCM and TCD draw with it."""
    data, given = write_pictures(tmp_path / "data", 64), {"steps": 4, "checkpoint_every": 2, "ema": 0.9}
    run = train(bases["sd15"], tmp_path / "run", "few-step", data=str(data), **given)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "model")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000004")
    again = train(bases["sd15"], tmp_path / "again", "few-step", data=str(data), **given)
    for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        assert (run.folder / name).read_bytes() == (again.folder / name).read_bytes()
    pipe = pipeline(bases["sd15"])
    pipe.load_lora_weights(run.folder)
    pipe.unload_lora_weights()
    for scheduler in (LCMScheduler.from_config(pipe.scheduler.config), *(
        make_scheduler(name, pipe.scheduler.config) for name in ("lcm", "tcd")
    )):  # fmt: skip
        pipe.scheduler = scheduler
        with apply_lora(pipe, read_lora(run.kohya), 1.0):
            drawn = pipe(
                "red circle", num_inference_steps=4, guidance_scale=1.0, output_type="latent", height=64, width=64
            )
        assert torch.isfinite(drawn.images).all()


@pytest.mark.slow
def test_a_preview_shows_the_base_in_many_and_few_steps_and_the_lora(bases, tmp_path):
    data = write_pictures(tmp_path / "data", 64)
    trained = train(
        bases["sd15"], tmp_path / "run", "few-step", data=str(data), steps=2, validate_every=2, preview_steps=3,
        few_steps=2, prompts=("red circle",), validation_share=0.3,
    )  # fmt: skip
    trained.task.draw_few = list  # the run is over
    assert list(trained.task.rows([])) == ["base, 3", "base, 2", "LoRA, 2"]
    assert (trained.folder / "samples" / "sheet.png").is_file()
    entries = read_history(tmp_path / "run" / "history.jsonl")
    assert entries[-1]["validation_loss"] > 0


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        FewStepConfig.of(**{**SETTINGS, **settings})
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_encoder": True}, "text_encoder"), ({"init": "pissa"}, "init = pissa"), ({"dropout": 0.1}, "dropout"),
        ({"input_perturbation": 0.1}, "input_perturbation"), ({"tokens": ("<a>",)}, "tokens"),
        ({"teacher_guidance": (9.0, 3.0)}, "teacher_guidance is 9,3"),
    ],
)  # fmt: skip
def test_settings_that_would_change_the_teacher_are_refused(settings, said):
    assert said in refused(settings)


def test_a_base_that_is_distilled_already_is_refused(bases, tmp_path):
    base = shutil.copytree(bases["sd15"], tmp_path / "base")
    config = base / "unet" / "config.json"
    config.write_text(config.read_text().replace('"time_cond_proj_dim": null', '"time_cond_proj_dim": 8'))
    data = write_pictures(tmp_path / "data", 64)
    settings = FewStepConfig.of(**{**SETTINGS, "model": str(base), "data": str(data), "out": str(tmp_path / "out")})
    with pytest.raises(InputError, match="distilled already"):
        FewStepTask(settings, find_trainable(str(base)))
