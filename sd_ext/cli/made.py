"""What is met when a picture is drawn, kept beside its recipe so that `sd-ext verify` can tell what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError
from ..models import Model
from ..models.digests import weight_digests
from .additions import parse_embedding, parse_lora
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

    from .drawing import Drawn

DIGITS = 16  # hexadecimal digits of a digest


class Circumstances:
    """What pictures of one pipeline have in common; looked up once for recipes that differ in words and seed only.

    Args:
        pipe: the pipeline, which has drawn a picture.
        model: what it was loaded from.
    """

    def __init__(self, pipe: DiffusionPipeline, model: Model):
        self.pipe, self.model = pipe, model
        self._last: tuple[Any, dict[str, Any]] = (None, {})

    def of(self, recipe: Recipe) -> dict[str, Any]:
        """Circumstances by name, right after a picture of this recipe was drawn.

        Returns:
            "software", "scheduler", "sampler", "grid", and what may be the reason of a difference: "weights" (part or
            added file -> digest), "table" (digest of the sampler's numbers), "versions" and "kernels".
        """
        from .drawing import alike

        if self._last[0] != alike(recipe):
            self._last = alike(recipe), made_with(self.pipe, self.model, recipe)
        return self._last[1]


def made_with(pipe: DiffusionPipeline, model: Model, recipe: Recipe) -> dict[str, Any]:
    """What `Circumstances.of` describes."""
    scheduler: Any = pipe.scheduler  # type: ignore[attr-defined]
    sampler, grid = sampler_of(type(scheduler).__name__, scheduler.config)
    try:
        weights = weight_digests(model, added_files(recipe))
    except (InputError, OSError):  # gone since they were loaded: the picture is worth more than their digest
        weights = {}
    made = {
        "software": f"sd_ext {__version__}",
        "scheduler": type(scheduler).__name__,
        "sampler": sampler,
        "grid": grid,
        "weights": weights,
        "table": table_of(scheduler),
        "versions": versions(),
        "kernels": kernels(pipe),
    }
    return {name: value for name, value in made.items() if value}


def added_files(recipe: Recipe) -> dict[str, Path]:
    """What a recipe adds to a model, as far as it is a file here: name -> file."""
    loras, words = [parse_lora(text).source for text in recipe.lora], recipe.embedding
    named = {f"lora {Path(text).name}": text for text in loras}
    named |= {f"embedding {Path(text).name}": text for text in (parse_embedding(each)[0] for each in words)}
    named |= {"vae": recipe.vae} if recipe.vae else {}
    paths = {name: Path(text).expanduser() for name, text in named.items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def of_one(drawn: Drawn) -> dict[str, Any]:
    """The circumstances of one picture: digests of its prompts and pixels, and its place in the batch."""
    made = {"encoded": drawn.encoded, "pixels": pixels_of(drawn.picture)}
    return made | ({"batch": drawn.batch, "place": drawn.place} if drawn.batch > 1 else {})


def pixels_of(picture: Image) -> str:
    """A digest of a picture's size and colours."""
    raw = picture.convert("RGB")
    return hashlib.sha256(f"{raw.size}".encode() + raw.tobytes()).hexdigest()[:DIGITS]


def table_of(scheduler: Any) -> str:
    """A digest of what a scheduler does at the steps that are set: its table, or its settings if it has none."""
    if hasattr(scheduler, "table"):
        alpha, sigma, rows = scheduler.table().numbers()
        numbers: Any = [alpha, sigma, rows, [float(t) for t in scheduler.timesteps]]
    else:
        numbers = {name: value for name, value in sorted(scheduler.config.items()) if not name.startswith("_")}
    return hashlib.sha256(json.dumps(numbers, default=str).encode()).hexdigest()[:DIGITS]


def versions() -> dict[str, str]:
    """The versions of the libraries that compute."""
    import diffusers
    import torch
    import transformers

    return {library.__name__: str(library.__version__) for library in (torch, diffusers, transformers)}


def kernels(pipe: DiffusionPipeline) -> dict[str, str]:
    """What decides which kernels compute, and in which order they add."""
    import torch

    device = getattr(pipe, "device", torch.device("cpu"))
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {
        "device": f"{device.type} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def sampler_of(scheduler: str, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The sampler and grid, by our names, that a scheduler is.

    Args:
        scheduler: the name of its class, of ours or of Diffusers.
        config: its settings.

    Returns:
        (sampler, grid); None for what has no name here.
    """
    from ..schedulers.registry import list_samplers

    found = [
        info
        for info in list_samplers()
        if info.cls.__name__ == scheduler and all(config.get(name) == value for name, value in info.options.items())
    ]
    grid = config.get("grid")
    best = max(found, key=lambda info: len(info.options), default=None)
    return best and best.name, grid if isinstance(grid, str) else None
