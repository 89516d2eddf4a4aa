"""Trains what `fashion.py` measures samplers with: a network that draws Fashion-MNIST, and one that judges it.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion        (Debian; MIT upstream)
    python benchmarks/fashion_model.py fashion --out runs/fashion [--steps 4000]

The first is a Diffusers `UNet2DModel` (v-prediction, Stable Diffusion's noise schedule) told one of ten classes, or
none for a tenth of the pictures, which is what guidance needs. It works on pixels: each 2 x 2 of them are the four
channels of a place, which only renames them and makes it four times as fast. The second is a small classifier, whose
last features FID and KID compare; its accuracy on the test set stands in `classifier.json`. An interrupted run goes on
where it last saved.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.training.quick.group_norm import quicken

NO_CLASS = 10
SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD |= {"prediction_type": "v_prediction"}
BATCH, RATE, AVERAGED, SAVE_EVERY = 64, 1e-3, 0.998, 200


# ---- the pictures ----------------------------------------------------------------------------------------------------


def read_set(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 28, 28) uint8 and their classes (n,).

    Args:
        folder: what the Debian package was unpacked to, or the folder of its four files.
        name: "train" (60,000) or "t10k" (10,000).

    Raises:
        InputError: the files are not there, or not what they should be.
    """
    places = [folder, folder / "usr" / "share" / "datasets" / "fashion-mnist"]
    found = next((p for p in places if (p / f"{name}-images-idx3-ubyte.gz").is_file()), None)
    if found is None:
        raise InputError(f"{folder} holds no {name}-images-idx3-ubyte.gz: unpack Debian's dataset-fashion-mnist there")
    pictures = gzip.decompress((found / f"{name}-images-idx3-ubyte.gz").read_bytes())
    classes = gzip.decompress((found / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    if len(pictures) != 16 + 784 * (len(classes) - 8):
        raise InputError(f"{found}: the files of {name} do not belong together")
    x = np.frombuffer(pictures, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()
    return torch.from_numpy(x), torch.from_numpy(np.frombuffer(classes, np.uint8, offset=8).astype(np.int64))


def scaled(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pictures.float() / 127.5 - 1


def packed(pixels: Tensor) -> Tensor:
    """(b, 1, 28, 28) -> (b, 4, 14, 14), as the U-Net works on them."""
    return nn.functional.pixel_unshuffle(pixels, 2)


def unpacked(x: Tensor) -> Tensor:
    """(b, 4, 14, 14) -> (b, 1, 28, 28)."""
    return nn.functional.pixel_shuffle(x, 2)


# ---- the networks ----------------------------------------------------------------------------------------------------


def unet() -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=14, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16, num_class_embeds=NO_CLASS + 1,
    )  # fmt: skip


class Classifier(nn.Module):
    """(b, 1, 28, 28) in [-1, 1] -> the logits of ten classes (b, 10)."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, after: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
                nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            )  # fmt: skip

        self.body = nn.Sequential(block(1, 32, 1), block(32, 64, 2), block(64, 128, 2))
        self.head = nn.Linear(128, 10)

    def features(self, x: Tensor) -> Tensor:
        """(b, 128): what FID and KID compare."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def load_unet(out: Path) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(out / "unet").eval()


def trained_steps(out: Path) -> int:
    """How many steps the U-Net was trained for."""
    with safe_open(out / "run.safetensors", "pt") as saved:
        return int(saved.get_tensor("step"))


def load_classifier(out: Path) -> Classifier:
    model = Classifier()
    model.load_state_dict(load_file(out / "classifier.safetensors"))
    return model.eval()


BF16 = torch.cpu._is_avx512_bf16_supported()
"""Whether passes are in bf16: a processor without its instructions takes ten times as long as in float32."""


def passes() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=BF16)


# ---- training --------------------------------------------------------------------------------------------------------


def train_classifier(folder: Path, out: Path, epochs: int = 6) -> None:
    """AdamW, one cycle; pictures are flipped and shifted by up to two pixels by chance."""
    pictures, classes = read_set(folder, "train")
    torch.manual_seed(0)
    model = Classifier().to(memory_format=torch.channels_last)
    steps = epochs * (len(pictures) // 256)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randint(len(pictures), (256,), generator=random)
        x = scaled(pictures[chosen])
        flips = torch.rand(len(x), 1, 1, 1, generator=random) < 0.5
        x = torch.where(flips, x.flip(3), x)
        dy, dx = torch.randint(-2, 3, (2,), generator=random).tolist()
        with passes():
            logits = model(x.roll((dy, dx), (2, 3)).contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), classes[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        if step % 100 == 0:
            print(f"classifier, step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    model.eval()
    pictures, classes = read_set(folder, "t10k")
    with torch.no_grad():
        found = torch.cat([model(scaled(some)).argmax(1) for some in pictures.split(500)])
    right = int((found == classes).sum())
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "classifier.safetensors")
    whole.write_text(out / "classifier.json", json.dumps({"right": right, "of": len(classes)}) + "\n")
    print(f"classifier: {100 * right / len(classes):.1f} % of the test set right")


class Saved:
    """The state of an interrupted run: weights, their mean, the optimizer's two means of gradients."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.AdamW):
        self.path, self.model, self.optimizer = path, model, optimizer
        self.mean = {name: value.detach().clone() for name, value in model.named_parameters()}

    def write(self, step: int) -> None:
        tensors = {f"mean.{name}": value for name, value in self.mean.items()}
        for name, value in self.model.named_parameters():
            state = self.optimizer.state[value]
            tensors |= {f"now.{name}": value.detach()}
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        with whole.file(self.path) as new:
            save_file({**tensors, "step": torch.tensor(step)}, new)

    def read(self) -> int:
        """Take up what was written; returns the steps made."""
        if not self.path.exists():
            return 0
        tensors = load_file(self.path)
        step = int(tensors["step"])
        for name, value in self.model.named_parameters():
            value.data.copy_(tensors[f"now.{name}"])
            self.mean[name].copy_(tensors[f"mean.{name}"])
            moments = {key: tensors[f"{key}.{name}"].clone() for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[value] = {"step": torch.tensor(float(step)), **moments}
        return step


def train_unet(folder: Path, out: Path, steps: int) -> None:
    """AdamW with a cosine rate on v; the weights that are kept are a running mean."""
    pictures, classes = read_set(folder, "train")
    betas = torch.linspace(SD["beta_start"] ** 0.5, SD["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    alpha, sigma = kept.sqrt().float(), (1 - kept).sqrt().float()
    torch.manual_seed(0)
    model = unet().to(memory_format=torch.channels_last)
    quicken(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    saved = Saved(out / "run.safetensors", model, optimizer)
    started = time.time()
    for step in range(first := saved.read(), steps):
        random = torch.Generator().manual_seed(step)  # a step depends on its number alone
        chosen = torch.randint(len(pictures), (BATCH,), generator=random)
        x0 = packed(scaled(pictures[chosen]))
        noise = torch.randn(x0.shape, generator=random)
        t = torch.randint(1000, (BATCH,), generator=random)
        told = torch.where(torch.rand(BATCH, generator=random) < 0.1, NO_CLASS, classes[chosen])
        a, s = alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
        x = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
        with passes():
            v = model(x, t, told).sample
        loss = (v.float() - (a * noise - s * x0)).square().mean()
        rate = RATE * min(1.0, (step + 1) / 200) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(AVERAGED, (step + 1) / (step + 11))
        for name, value in model.named_parameters():
            saved.mean[name].lerp_(value.detach(), 1 - keep)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            saved.write(step + 1)
            per = (time.time() - started) / (step + 1 - first)
            print(f"U-Net, step {step + 1} of {steps}: loss {loss.item():.4f}, {per:.2f} s a step", flush=True)
    final = unet()
    final.load_state_dict(saved.mean, strict=False)
    final.save_pretrained(out / "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--steps", type=int, default=4000, help="of the U-Net")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "classifier.json").exists():
        train_classifier(options.data, options.out)
    if not (options.out / "unet" / "config.json").exists():
        train_unet(options.data, options.out, options.steps)


if __name__ == "__main__":
    main()
