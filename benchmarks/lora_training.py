"""What does a LoRA cost to train here, beside Diffusers' own `train_text_to_image_lora.py`?

    python benchmarks/lora_training.py --diffusers path/to/train_text_to_image_lora.py [--cases embedded quarter]

The script comes from Diffusers' repository (examples/text_to_image) and needs `datasets` and `torchvision`. Both
trainers get the same model, pictures, batch, precision, rank, targets, learning rate and steps. Each is run twice as a
fresh process, with few and with more steps: the difference is the warm cost of a step, the rest is start-up. The first
run of ours makes its caches too, which is counted apart. Peak memory is the process's (resident). Then both LoRAs are
loaded into the same base by Diffusers' own loader, and the error of the prediction is measured on pictures neither saw,
with the same noise and timesteps: the mean of the repeats, which have seeds of their own.

embedded   the embedded model, 64 x 64, batch 16
quarter    SD 1.5 with a quarter of the U-Net's width, its autoencoder and text encoder at full size, random weights,
           256 x 256, batch 4
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _report import write

import sd_ext
from sd_ext.training.data.shipped import shipped_sets

RANK, RATE = 8, 1e-3
# A process's peak counts that of the process it was forked from, so a small one starts it.
LAUNCHER = """
import json, os, sys, time
started = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
open(sys.argv[1], "w").write(json.dumps([time.perf_counter() - started, usage.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
# torchvision's compiled operators fit one release of torch; its transforms of pictures need none of them.
WRAPPER = """
import runpy, sys, types
try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

IMPORTS = """
import accelerate, peft, safetensors, torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""


@dataclass(frozen=True)
class Case:
    """A model folder, its pictures, and the settings both trainers share."""

    name: str
    model: Path
    data: Path
    held_out: Path
    side: int
    batch: int
    precision: str
    steps: tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """Of one process: seconds and peak resident bytes."""

    seconds: float
    memory: int


def run(command: list[str], log: Path, **more: str) -> Cost:
    """Run to the end, with `more` in the environment."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}
    with log.open("w") as out:
        launcher = [sys.executable, "-c", LAUNCHER, str(log.with_suffix(".json")), *command]
        status = subprocess.run(launcher, stdout=out, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        raise SystemExit(f"{command[:4]} failed:\n{log.read_text()[-3000:]}")
    seconds, kilobytes = json.loads(log.with_suffix(".json").read_text())
    return Cost(seconds, kilobytes * 1024)


def ours(case: Case, steps: int, out: Path, cache: Path, seed: int) -> list[str]:
    """Our trainer's command."""
    settings = {
        "model": case.model, "data": case.data, "out": out, "cache_dir": cache, "resolution": case.side,
        "buckets": "false", "flip": "false", "text_dropout": 0, "batch_size": case.batch, "steps": steps,
        "rank": RANK, "init": "gaussian", "targets": "attention", "learning_rate": RATE, "lr_schedule": "constant",
        "warmup": 0, "mixed_precision": case.precision, "validate_every": 0, "checkpoint_every": 10**6,
        "log_every": 50, "seed": seed, "prompts": "none",
    }  # fmt: skip
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "sd_ext.training.train_lora", *flags]


def theirs(case: Case, steps: int, out: Path, script: Path, seed: int) -> list[str]:
    """Diffusers' script's command."""
    flags = {
        "pretrained_model_name_or_path": case.model, "train_data_dir": case.data, "output_dir": out,
        "resolution": case.side, "train_batch_size": case.batch, "max_train_steps": steps, "rank": RANK,
        "learning_rate": RATE, "lr_scheduler": "constant", "lr_warmup_steps": 0, "mixed_precision": case.precision,
        "checkpointing_steps": 10**6, "seed": seed, "caption_column": "text",
        "cache_dir": out.parent / "datasets",
    }  # fmt: skip
    values = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-c", WRAPPER, str(script), *values, "--center_crop"]


def compare(case: Case, script: Path, repeats: int, work: Path, packages: str) -> dict[str, Any]:
    """Costs of both trainers, and the losses of what they trained."""
    few, many = case.steps
    rows: dict[str, list[Any]] = {"ours": [], "theirs": []}
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}
    imports = []
    for number in range(repeats):
        root = work / f"{case.name}-{number}"
        root.mkdir(parents=True)
        cache = root / "cache"
        imports.append(run([sys.executable, "-c", IMPORTS], root / "imports.log").seconds)
        first = run(ours(case, few, root / "ours-few", cache, number), root / "ours-first.log")
        costs = {
            "ours": [
                run(ours(case, few, root / "ours-again", cache, number), root / "ours-few.log"),
                run(ours(case, many, root / "ours", cache, number), root / "ours.log"),
            ],
            "theirs": [
                run(
                    theirs(case, few, root / "theirs-few", script, number), root / "theirs-few.log", PYTHONPATH=packages
                ),
                run(theirs(case, many, root / "theirs", script, number), root / "theirs.log", PYTHONPATH=packages),
            ],
        }
        for name, (short, long) in costs.items():
            step = (long.seconds - short.seconds) / (many - few)
            start = short.seconds - few * step
            made = first.seconds - short.seconds if name == "ours" else 0.0
            memory = max(long.memory, first.memory) if name == "ours" else long.memory
            rows[name].append({"step": step, "start": start, "caches": made, "memory": memory, "again": long.memory})
        for name, folder in {"ours": root / "ours" / "model", "theirs": root / "theirs"}.items():
            losses[name].append(validation_loss(case, folder))
    result: dict[str, Any] = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()
    }
    for name, found in losses.items():
        result[name] |= {"validation_loss": statistics.mean(found), "validation_losses": found}
    result["imports"] = statistics.median(imports)
    result["base_loss"] = validation_loss(case, None)
    return result


@torch.no_grad()
def validation_loss(case: Case, lora: Path | None, times: int = 8) -> float:
    """Mean squared error of the prediction on the held-out pictures, each at `times` timesteps with fixed noise."""
    import numpy as np
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from PIL import Image

    pipe = StableDiffusionPipeline.from_pretrained(case.model, safety_checker=None, requires_safety_checker=False)
    noise: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    if lora is not None:
        pipe.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    losses = []
    lines = (case.held_out / "metadata.jsonl").read_text().splitlines()
    for number, line in enumerate(map(json.loads, lines)):
        picture = Image.open(case.held_out / line["file_name"]).convert("RGB").resize((case.side, case.side))
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        x0 = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        states = pipe.encode_prompt(line["text"], "cpu", 1, False)[0]
        generator = torch.Generator().manual_seed(number)
        for k in range(times):
            t = torch.tensor([int((k + 0.5) * 1000 / times)])
            eps = torch.randn(x0.shape, generator=generator)
            x = noise.add_noise(x0, eps, t)
            wanted = noise.get_velocity(x0, eps, t) if noise.config.prediction_type == "v_prediction" else eps
            losses.append(float((pipe.unet(x, t, states).sample - wanted).square().mean()))
    return statistics.mean(losses)


def pictures(folder: Path, side: int, count: int, held_out: int) -> tuple[Path, Path]:
    """(drawings of the shipped set to train on, others) as imagefolders."""
    from PIL import Image

    shipped = shipped_sets()["high-contrast"]
    rows = (shipped / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = [rows[place * len(rows) // (count + held_out)] for place in range(count + held_out)]
    held = chosen[:: len(chosen) // held_out][:held_out]
    parts = {"train": [row for row in chosen if row not in held], "held_out": held}
    for name, some in parts.items():
        (folder / name).mkdir(parents=True)
        for file in (json.loads(row)["file_name"] for row in some):
            picture = Image.open(shipped / file).convert("RGB")
            picture.resize((side, side), Image.Resampling.LANCZOS).save(folder / name / file)
        (folder / name / "metadata.jsonl").write_text("\n".join(some) + "\n")
    return folder / "train", folder / "held_out"


def quarter(folder: Path) -> Path:
    """SD 1.5 with a quarter of the U-Net's width, random weights; words are the embedded model's."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(Path(sd_ext.pretrained_path()) / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=32, cross_attention_dim=768, block_out_channels=(80, 160, 320, 320), norm_num_groups=16,
        attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=256,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # type: ignore[arg-type]  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def cases(names: list[str], work: Path, precision: str, scale: float) -> list[Case]:
    """Those of the names, in the order above."""
    made = []
    if "embedded" in names:
        train, held = pictures(work / "data-64", 64, 48, 12)
        steps = (int(20 * scale), int(220 * scale))
        made.append(Case("embedded", Path(sd_ext.pretrained_path()), train, held, 64, 16, precision, steps))
    if "quarter" in names:
        train, held = pictures(work / "data-256", 256, 24, 6)
        steps = (max(2, int(4 * scale)), int(24 * scale))
        made.append(Case("quarter", quarter(work / "quarter"), train, held, 256, 4, precision, steps))
    return made


def table(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        "| model | trainer | step, s | start-up, s | caches, s | steps/s, all counted | peak, GB | validation loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        many = found["steps"]
        for who in ("theirs", "ours"):
            row = found[who]
            whole = many / (many * row["step"] + row["start"] + row["caches"])
            shown = {"theirs": "Diffusers", "ours": "sd_ext"}[who]
            lines.append(
                f"| {name} | {shown} | {row['step']:.3f} | {row['start']:.1f} | {row['caches']:.1f} | {whole:.2f} | "
                f"{row['memory'] / 1e9:.2f} | {row['validation_loss']:.4f} |"
            )
        a, b = found["ours"], found["theirs"]
        lines.append(
            f"| {name} | ratio | {b['step'] / a['step']:.2f} times the steps a second | "
            f"{a['start'] / found['imports']:.2f} of the imports' {found['imports']:.1f} s | | "
            f"| {a['memory'] / b['memory']:.2f} (again, caches made: {a['again'] / b['memory']:.2f}) "
            f"| base {found['base_loss']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, required=True, metavar="SCRIPT", help="train_text_to_image_lora.py")
    parser.add_argument("--packages", default="", metavar="DIR", help="where torchvision is, if not installed")
    parser.add_argument("--cases", nargs="+", default=["embedded", "quarter"], choices=("embedded", "quarter"))
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--repeats", type=int, nargs="+", default=[3], help="of each case, or of all")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual steps")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="lora-training-"))
    results = {}
    try:
        made = cases(given.cases, work, given.precision, given.scale)
        repeats = given.repeats * (len(made) if len(given.repeats) == 1 else 1)
        for case, count in zip(made, repeats, strict=True):
            found = compare(case, given.diffusers, count, work, given.packages)
            results[case.name] = {**found, "steps": case.steps[1]}
            print(json.dumps({case.name: results[case.name]}, indent=1), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = f"# A LoRA beside Diffusers' script, {given.precision}\n\n{table(results)}\n"
    name = "lora_training" if given.precision == "bf16" else f"lora_training_{given.precision}"
    write(name, {"precision": given.precision, "repeats": given.repeats, "results": results}, text)


if __name__ == "__main__":
    main()
