"""A strip of real pictures for each family of samplers: docs/images/strips/<family>.png, and on its page.

    python benchmarks/sampler_strips.py [family ...] [--prompt "a red car"] [--seed 0]

Rows are samplers, columns numbers of network calls; all start from one noise. Since every sampler makes exactly as many
calls as it is asked for, those of a family are drawn in step with each other: one call of the network is for all.
Samplers of two fields run in the pipeline, which leaves them the unconditional predictions. What cannot be drawn from
words (inversion) has no strip; `WITHOUT` says why.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

import sd_ext
from sd_ext.models.words import read_words
from sd_ext.schedulers.find import find_sampler
from sd_ext.schedulers.samplers import FAMILIES

STRIPS = Path(__file__).parent.parent / "docs" / "images" / "strips"
COUNTS = (4, 8, 16)
WITHOUT = {"inverse": "goes from a picture to its noise"}
MILD = 1.5
GAP, LABEL, HEAD, TEXT = 6, 190, 26, 14


def family_of(module: object) -> str:
    return module.__name__.rsplit(".", 1)[1]  # type: ignore[attr-defined]


def scheduler_for(pipe: StableDiffusionPipeline, name: str, guidance: float):
    """Told the guidance where it asks for it, and with no clipping of latents, as in Stable Diffusion's own configs."""
    info, _ = find_sampler(name)
    wanted = {"guidance_scale": guidance, "clip_sample": False}
    options = {key: value for key, value in wanted.items() if key in info.cls._options and key not in info.options}
    return sd_ext.make_scheduler(name, pipe.scheduler.config, **options)


@torch.no_grad()
def in_step(
    pipe: StableDiffusionPipeline, names: Sequence[str], calls: int, prompt: str, guidance: float, seed: int
) -> list[Image.Image]:
    """Pictures of several samplers, whose calls of the network are made together."""
    words, nothing = pipe.encode_prompt(prompt, "cpu", 1, True)
    config, many = pipe.unet.config, len(names)
    noise = torch.randn(
        1, config.in_channels, config.sample_size, config.sample_size, generator=torch.Generator().manual_seed(seed)
    )
    schedulers = [scheduler_for(pipe, name, guidance) for name in names]
    generators = [torch.Generator().manual_seed(seed + 1) for _ in names]
    for scheduler in schedulers:
        scheduler.set_timesteps(calls)
    latents = [noise * scheduler.init_noise_sigma for scheduler in schedulers]
    both = torch.cat([nothing.repeat(many, 1, 1), words.repeat(many, 1, 1)])
    for call in range(calls):
        times = [scheduler.timesteps[call] for scheduler in schedulers]
        asked = torch.cat([s.scale_model_input(x, t) for s, x, t in zip(schedulers, latents, times, strict=True)])
        at = torch.stack([torch.as_tensor(t, dtype=torch.float32) for t in times])
        free, told = pipe.unet(asked.repeat(2, 1, 1, 1), at.repeat(2), both).sample.chunk(2)
        mixed = (free + guidance * (told - free)).split(1)
        latents = [
            s.step(p, t, x, generator=g, return_dict=False)[0]
            for s, p, t, x, g in zip(schedulers, mixed, times, latents, generators, strict=True)
        ]
    pixels = pipe.vae.decode(torch.cat(latents) / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(pixels.nan_to_num(), output_type="pil")


def of_two_fields(
    pipe: StableDiffusionPipeline, names: Sequence[str], calls: int, prompt: str, guidance: float, seed: int
) -> list[Image.Image]:
    """Pictures drawn by the pipeline; samplers that take mild guidance only get `MILD`."""
    drawn, before = [], pipe.scheduler
    for name in names:
        scale = MILD if find_sampler(name)[0].cls.mild_guidance else guidance
        pipe.scheduler = sd_ext.make_scheduler(name, before.config)
        sd_ext.attach(pipe)
        generator = torch.Generator().manual_seed(seed)
        drawn += pipe(prompt, num_inference_steps=calls, guidance_scale=scale, generator=generator).images
        sd_ext.detach(pipe)
    pipe.scheduler = before
    return drawn


def strip(names: Sequence[str], columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures with the names of their rows and the calls of their columns."""
    side = columns[0][0].width
    size = (LABEL + len(columns) * (side + GAP), HEAD + len(names) * (side + GAP))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(TEXT)
    draw = ImageDraw.Draw(sheet)
    for column, (calls, pictures) in enumerate(zip(COUNTS, columns, strict=True)):
        x = LABEL + column * (side + GAP)
        draw.text((x + side / 2, HEAD / 2), f"{calls} calls", "black", font, anchor="mm")
        for row, picture in enumerate(pictures):
            sheet.paste(picture, (x, HEAD + row * (side + GAP)))
    for row, name in enumerate(names):
        draw.text((LABEL - 10, HEAD + row * (side + GAP) + side / 2), name, "black", font, anchor="rm")
    return sheet


def shown(name: str, prompt: str, mild: bool) -> None:
    """Put the strip on its family's page, where it is not there yet."""
    page = STRIPS.parents[1] / "samplers" / f"{name}.md"
    text, link = page.read_text("utf-8"), f"](../images/strips/{name}.png)"
    if link not in text:
        counts = ", ".join(map(str, COUNTS))
        part = f"![“{prompt}” with {counts} calls, a row for each sampler{link}\n\n"
        strength = f" at guidance {MILD:g}, which they take," if mild else ","
        part += f"By the [embedded model](../embedded.md){strength} all from one noise, on the samplers' own "
        part += "grids: `python benchmarks/sampler_strips.py`."
        page.write_text(text.replace("\n## Samplers\n", f"\n## Drawn\n\n{part}\n\n## Samplers\n", 1), "utf-8")


def main() -> None:
    families = {family_of(module): module for module in FAMILIES if family_of(module) not in WITHOUT}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", choices=[*families, []], help="all, if none is named")
    parser.add_argument("--prompt", default="a red car")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    words = read_words(Path(sd_ext.pretrained_path()))
    guidance = (words and words.guidance) or 7.5
    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    STRIPS.mkdir(parents=True, exist_ok=True)
    for name in options.family or families:
        samplers = [info.name for info in families[name].SAMPLERS]
        draw = of_two_fields if name == "cfg_plus_plus" else in_step
        columns = [draw(pipe, samplers, calls, options.prompt, guidance, options.seed) for calls in COUNTS]
        path = STRIPS / f"{name}.png"
        sheet = strip(samplers, columns).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        sheet.save(path, optimize=True)
        shown(name, options.prompt, draw is of_two_fields)
        print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)", flush=True)


if __name__ == "__main__":
    main()
