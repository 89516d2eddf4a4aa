"""Generate pictures with a loaded pipeline, in batches."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .inputs.parts import refiner_of
from .inputs.passes import kept_outside, passes_of
from .machine import offloaded, place_of
from .prompting import company, prompt_arguments
from .regions import regions_of
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

OnStep = Callable[[float, Any], object]  # (how many pictures a call of the network made, in part; latents or None)


def default_guidance(pipe: DiffusionPipeline) -> float:
    """The pipeline's default guidance scale; 1 if it has none."""
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    return float(parameter.default) if parameter and isinstance(parameter.default, (int, float)) else 1.0


def default_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """The (width, height) in pixels that the pipeline's network was trained on.

    Raises `InputError` if it is not recorded.
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side = getattr(getattr(network, "config", None), "sample_size", None) or getattr(pipe, "default_sample_size", None)
    if side is None:
        raise InputError(f"{type(pipe).__name__} does not say which size it draws; give --size")
    height, width = (side, side) if isinstance(side, int) else side
    factor = getattr(pipe, "vae_scale_factor", 1)
    return width * factor, height * factor


def check_pipeline(pipe: DiffusionPipeline, width: int, height: int, negative: str) -> None:
    """Raise `InputError` unless the pipeline can generate from a prompt with these arguments.

    Args:
        pipe: the pipeline.
        width, height: in pixels.
        negative: the negative prompt, or "".
    """
    accepted, name = inspect.signature(pipe.__call__).parameters, type(pipe).__name__
    if "prompt" not in accepted:
        raise InputError(f"{name} does not draw from words")
    if negative and "negative_prompt" not in accepted:
        raise InputError(f"{name} takes no negative prompt")
    factor = getattr(pipe, "vae_scale_factor", 1)
    if width % factor or height % factor:
        raise InputError(f"--size {width}x{height} cannot work; {name} draws sides that are multiples of {factor}")


def batches(pipe: DiffusionPipeline, recipes: Sequence[Recipe]) -> Iterator[list[Recipe]]:
    """Divide recipes that are `alike` into batches as large as was asked for, whose prompts are read in one way."""
    size = place_of(pipe).resources.batch
    readers = [pipe, *([refiner] if (refiner := refiner_of(pipe, recipes[0])) else [])]
    for _, group in groupby(recipes, lambda recipe: [company(reader, recipe) for reader in readers]):
        members = list(group)
        yield from (members[i : i + size] for i in range(0, len(members), size))


def alike(recipe: Recipe) -> Hashable:
    """What recipes that are drawn in one batch have in common: all but prompts and seed."""
    return bool(recipe.negative), replace(recipe, prompt="", negative="", seed=0)


@dataclass(frozen=True)
class Drawn:
    """A picture, and what it may depend on beside its recipe.

    Args:
        recipe: how it was made.
        picture: the picture.
        batch: how many pictures were drawn at once: kernels may round otherwise for another number.
        place: its place among them, from 0.
        encoded: digest of what the text encoder made of the prompts; "" if the pipeline does not show it.
    """

    recipe: Recipe
    picture: Image
    batch: int
    place: int
    encoded: str


def draw(
    pipe: DiffusionPipeline,
    recipes: Sequence[Recipe],
    on_step: OnStep = lambda pictures, latents: None,
    tell: Callable[[str], object] = lambda text: None,
    equip: Callable[[Recipe], object] = lambda recipe: None,
) -> Iterator[Drawn]:
    """Generate a picture for every recipe.

    Each picture has its own random generator, on the CPU, so that it depends neither on the batch nor on the device.
    Kernels may still round differently in a batch: of the first one, the last picture is drawn alone too, and a
    difference is said.

    Args:
        pipe: the pipeline.
        recipes: what to draw.
        on_step: called after each call of the network with how many pictures it made, in part, and the latents.
        tell: gets one sentence if batches change pictures here.
        equip: called before pictures whose recipe differs from the one before in more than prompts and seed.

    Yields:
        The pictures, in the order of the recipes.

    Raises:
        InputError: the pipeline refuses the arguments, memory is too small, or the values overflow the dtype.
    """
    looked = False
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        pipe.set_progress_bar_config(disable=True)
    for _, group in groupby(recipes, alike):
        members = list(group)
        equip(members[0])
        for batch in batches(pipe, members):
            drawn = draw_batch(pipe, batch, on_step)
            if len(batch) > 1 and not looked:
                looked = True
                (alone,) = draw_batch(pipe, batch[-1:])
                if doubt := difference(alone.picture, drawn[-1].picture, len(batch)):
                    tell(doubt)
            yield from drawn


def draw_again(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    batch: int,
    place: int,
    on_step: OnStep = lambda pictures, latents: None,
) -> Drawn:
    """Generate one picture as it was drawn: at its place of a batch, so that kernels round as they did.

    Args:
        pipe: the pipeline, equipped for the recipe.
        recipe, on_step: as in `draw`.
        batch: how many pictures were drawn at once. As many are drawn, all with this recipe.
        place: its place among them, from 0.
    """
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        pipe.set_progress_bar_config(disable=True)
    return draw_batch(pipe, [recipe] * batch, on_step)[place]


def difference(alone: Image, together: Image, number: int) -> str:
    """What to say of a picture that was drawn alone and in a batch; "" if both are the same to the bit.

    Args:
        alone, together: the two.
        number: of pictures in the batch.
    """
    from PIL import ImageChops

    extremes = ImageChops.difference(alone.convert("RGB"), together.convert("RGB")).getextrema()
    most = max(int(high) for _, high in extremes)  # type: ignore[arg-type, misc]
    if not most:
        return ""
    return (
        f"Kernels here round differently in a batch of {number}: of the picture that was compared, pixels differ by up "
        f"to {most} of 255 from those drawn alone; --batch 1 draws each alone."
    )


def draw_batch(
    pipe: DiffusionPipeline, batch: Sequence[Recipe], on_step: OnStep = lambda pictures, latents: None
) -> list[Drawn]:
    """Generate the pictures of one batch, in one pass or more. For arguments and errors see `draw`."""
    import torch

    first, place = batch[0], place_of(pipe)
    generators = [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in batch]
    passes = passes_of(pipe, first, len(batch))
    planned = sum(each.steps * each.share for each in passes)
    made: Any = None
    encoded: list[str] = []
    for each in passes:

        def after_step(running: Any, i: int, timestep: object, tensors: Any, steps: int = each.steps) -> dict[str, Any]:
            on_step(len(batch) / planned * steps / len(running.scheduler.timesteps), tensors.get("latents"))
            return tensors

        with offloaded(each.pipe, place.resources.offload, place.device):
            arguments = {
                **prompt_arguments(each.pipe, batch),
                "num_inference_steps": each.steps,
                "guidance_scale": first.guidance,
                "generator": generators,
                "callback_on_step_end": after_step,
                "output_type": "latent" if each.latent else "np",
                **each.arguments(made),
            }
            with seen_prompts(each.pipe, len(batch)) as seen:
                made = _call(each.pipe, arguments, first, len(batch))
            encoded = encoded or seen
    encoded += [""] * (len(batch) - len(encoded))
    told = enumerate(zip(batch, kept_outside(first, made), encoded, strict=True))
    return [Drawn(recipe, picture, len(batch), number, seen) for number, (recipe, picture, seen) in told]


def _call(pipe: Any, arguments: dict[str, Any], recipe: Recipe, number: int) -> Any:
    """Call a pipeline with those arguments that it knows; pictures, or latents if they were asked for."""
    import torch

    accepted = inspect.signature(pipe.__call__).parameters
    if hasattr(getattr(pipe, "unet", None), "reset"):
        pipe.unet.reset()  # features that are kept are those of one run
    try:
        with regions_of(pipe, recipe):
            made = pipe(**{key: value for key, value in arguments.items() if key in accepted}).images
    except InputError:
        raise
    except ValueError as error:  # the pipeline's own check of its arguments
        raise InputError(f"{type(pipe).__name__} refuses: {error}") from error
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{number} of {'x'.join(map(str, recipe.final_sides))} need more memory than {recipe.device} has; choose a "
            "smaller --batch or --size, or --offload model, --vae-tiling"
        ) from error
    if isinstance(made, list):
        return made
    if not torch.as_tensor(made).isfinite().all():
        raise InputError(f"the picture overflowed in {recipe.dtype}; choose another --dtype, or less guidance")
    return made if isinstance(made, torch.Tensor) else pipe.numpy_to_pil(made)


@contextlib.contextmanager
def seen_prompts(pipe: DiffusionPipeline, pictures: int) -> Iterator[list[str]]:
    """Within the block, note what the U-Net sees of the prompts at its first call.

    Args:
        pipe: the pipeline.
        pictures: how many are drawn at once.

    Yields:
        A list, filled at that call with one digest for each picture.
    """
    found: list[str] = []

    def look(module: Any, positional: Any, named: dict[str, Any]) -> None:
        words = named.get("encoder_hidden_states")
        if not found and words is not None and len(words) % pictures == 0:
            rows = words.detach().float().cpu().numpy()
            found.extend(hashlib.sha256(rows[i::pictures].tobytes()).hexdigest()[:16] for i in range(pictures))

    network: Any = getattr(pipe, "unet", None)
    handle = network.register_forward_pre_hook(look, with_kwargs=True) if network is not None else None
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()
