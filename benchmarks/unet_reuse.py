"""Which calls of the U-Net, or parts of them, can be left out at the least error?

    python benchmarks/unet_reuse.py [--pictures 16] [--steps 20] [--guidance G]

On the embedded model, at equal operations and equal error:
- fewer calls of the sampler, which costs nothing to build: the honest alternative;
- reuse of deep features (DeepCache), as `cache_interval` and `cache_schedule` have it;
- reuse of the unconditional half (FasterCache, arXiv 2410.19355): in some steps the conditional half alone is computed,
  and the difference of the halves is the last one known, or its low and high frequencies weighed as in the paper, or
  continued along a line;
- skipped calls (SADA, arXiv 2507.17135): the output is continued from the last ones, every second step, or where
  that would have missed the last computed one by little, which is `skip_threshold`.

Reuse of the unconditional half is no feature of the U-Nets: it is here so that this can be said with numbers. Error
is the root mean square of pictures, of 255, to those of many calls and to the plain ones of as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import write
from torch.utils.flop_counter import FlopCounterMode

import sd_ext
from sd_ext.reading import read_json

Forward = Callable[..., Any]
MANY = 60


class Way:
    """A way to compute the calls of a run; `forward` stands in the place of the plain network's."""

    def begin(self, forward: Forward, guidance: float) -> None:
        self.plain, self.guidance, self.step, self.seen = forward, guidance, -1, []

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        self.step += 1
        return (self.output(sample, timestep, encoder_hidden_states, kwargs),)

    def output(self, sample: Any, timestep: Any, text: Any, kwargs: Any) -> torch.Tensor:
        return self.plain(sample, timestep, encoder_hidden_states=text, **kwargs)[0]


class Half(Way):
    """The unconditional half in every n-th step, and in the first ones."""

    def __init__(self, every: int, first: int = 2, how: str = "kept"):
        self.every, self.first, self.how = every, first, how

    def output(self, sample: Any, timestep: Any, text: Any, kwargs: Any) -> torch.Tensor:
        if self.step < self.first or (self.step - self.first) % self.every == self.every - 1:
            both = super().output(sample, timestep, text, kwargs)
            u, c = both.chunk(2)
            self.seen = [*self.seen, (float(timestep), u - c)][-2:]
            return both
        c = super().output(sample.chunk(2)[1], timestep, text.chunk(2)[1], kwargs)
        return torch.cat([c + self.difference(float(timestep)), c])

    def difference(self, timestep: float) -> torch.Tensor:
        last_time, last = self.seen[-1]
        if self.how == "line" and len(self.seen) == 2:
            time, before = self.seen[0]
            return last + (last - before) * (timestep - last_time) / (last_time - time)
        if self.how == "frequencies":  # equations 10 to 12 of FasterCache: low ones more early on, high ones later
            waves = torch.fft.fftshift(torch.fft.fft2(last.float()), dim=(-2, -1))
            rows, columns = (torch.arange(n) - n // 2 for n in last.shape[-2:])
            low = (rows[:, None].abs() <= last.shape[-2] // 4) & (columns[None].abs() <= last.shape[-1] // 4)
            early = timestep > 500
            weight = torch.where(low, 1.2 if early else 1.0, 1.0 if early else 1.2)
            return torch.fft.ifft2(torch.fft.ifftshift(waves * weight, dim=(-2, -1))).real.to(last.dtype)
        return last


class Skip(Way):
    """Every second call left out and its output continued along a line."""

    def __init__(self, first: int = 3):
        self.first = first

    def output(self, sample: Any, timestep: Any, text: Any, kwargs: Any) -> torch.Tensor:
        time = float(timestep)
        if self.step >= self.first and (self.step - self.first) % 2 == 0:
            (t0, e0), (t1, e1) = self.seen
            return e1 + (e1 - e0) * (time - t1) / (t1 - t0)
        whole = super().output(sample, timestep, text, kwargs)
        self.seen = [*self.seen, (time, whole)][-2:]
        return whole


WAYS: dict[str, dict[str, Way | dict[str, Any]]] = {
    "deep features": {
        **{f"N={n}": {"cache_interval": n} for n in (2, 3, 4, 5, 7)},
        **{f"N={n}, front-loaded": {"cache_interval": n, "cache_schedule": "front-loaded"} for n in (2, 3)},
    },
    "unconditional half": {
        **{f"every {n}.": Half(n) for n in (2, 3, 5)},
        **{f"every {n}., along a line": Half(n, how="line") for n in (2, 3)},
        **{f"every {n}., by frequencies": Half(n, how="frequencies") for n in (2, 3)},
        "not after half of the steps": Half(10**9, first=10),
    },
    "skipped calls": {
        "every 2.": Skip(), "every 2., after 6": Skip(first=6),
        **{f"where it missed less than {below:g}": {"skip_threshold": below} for below in (0.02, 0.05, 0.1, 0.2)},
    },
}  # fmt: skip


def draw(pipe: Any, captions: list[str], steps: int, guidance: float, way: Any = None) -> np.ndarray:
    """Pictures (captions, size, size, 3) of 0 to 255."""
    plain, size = pipe.unet, pipe.vae.config.sample_size
    if isinstance(way, dict):
        pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(plain, **way)
    elif way is not None:
        way.begin(plain.forward, guidance)
        plain.forward = way.forward
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
        images = pipe(captions, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size,
                      generator=generators, output_type="np").images  # fmt: skip
    finally:
        pipe.unet = plain
        vars(plain).pop("forward", None)
    return 255 * images


def counted(pipe: Any, caption: str, *rest: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        draw(pipe, [caption], *rest)
    return counter.get_total_flops()


def distance(pictures: np.ndarray, others: np.ndarray) -> float:
    return float(np.sqrt(((pictures - others) ** 2).mean((1, 2, 3))).mean())


def at_error(rows: list[dict[str, Any]], error: float, key: str) -> float | None:
    """The operations at which a family of ways has this error, between its own ones; None beyond them."""
    points = sorted((row[key], row["operations"]) for row in rows)
    errors = [each[0] for each in points]
    if not errors[0] <= error <= errors[-1]:
        return None
    return float(np.interp(error, errors, [each[1] for each in points]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=None, help="[the model's own]")
    options = parser.parse_args()
    from diffusers import StableDiffusionPipeline

    folder = Path(sd_ext.pretrained_path())
    words = read_json(folder / "words.json", dict[str, Any])
    guidance, steps = options.guidance or words["guidance"], options.steps
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m", pipe.scheduler.config)
    captions = captions_of(words, options.pictures)

    best = draw(pipe, captions, MANY, guidance)
    plain, whole = draw(pipe, captions, steps, guidance), counted(pipe, captions[0], steps, guidance)
    families: dict[str, list[dict[str, Any]]] = {"fewer calls": []}
    for calls in sorted({steps - 2, *range(5, steps, 3)}):
        pictures, operations = draw(pipe, captions, calls, guidance), counted(pipe, captions[0], calls, guidance)
        families["fewer calls"].append(row_of(f"{calls} calls", pictures, operations / whole, plain, best))
    for family, ways in WAYS.items():
        families[family] = []
        for name, way in ways.items():
            pictures = draw(pipe, captions, steps, guidance, way)
            operations = counted(pipe, captions[0], steps, guidance, way)
            families[family].append(row_of(name, pictures, operations / whole, plain, best))
            print(family, families[family][-1], flush=True)
    settings = {"pictures": len(captions), "steps": steps, "guidance": guidance, "many": MANY}
    exact = {"many": distance(plain, best)}
    write("unet_reuse", {"settings": settings, "plain": exact, "results": families}, report(families, settings, exact))


def row_of(name: str, pictures: np.ndarray, operations: float, plain: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    return {
        "name": name, "operations": operations, "plain": distance(pictures, plain), "many": distance(pictures, best)
    }  # fmt: skip


def captions_of(words: dict[str, Any], count: int) -> list[str]:
    """Captions of what the model knows."""
    things = [thing["names"][0] for group in words["things"].values() for thing in group]
    return [f"a {things[i % len(things)]}" for i in range(count)]


def report(families: dict[str, list[dict[str, Any]]], settings: dict[str, Any], exact: dict[str, float]) -> str:
    lines = [
        f"# What of the U-Net's work can be left out: {settings['steps']} calls, guidance {settings['guidance']:g}",
        "",
        f"{settings['pictures']} pictures. Distances are root mean squares, of 255; the plain pictures are "
        f"{exact['many']:.2f} from those of {settings['many']} calls. The last columns are the operations with which "
        "the cache, and a sampler of fewer calls, have the same distance to the plain pictures.",
        "",
        "| what is left out | how | operations | distance to the plain | to many calls | deep features | fewer calls |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, rows in families.items():
        for row in rows:
            others = []
            for other in ("deep features", "fewer calls"):
                same = None if other == family else at_error(families[other], row["plain"], "plain")
                others.append("" if same is None else f"{same:.0%}")
            lines.append(
                f"| {family} | {row['name']} | {row['operations']:.0%} | {row['plain']:.2f} | {row['many']:.2f} | "
                f"{' | '.join(others)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
