"""What of a loaded pipeline changes from recipe to recipe: its LoRAs, its U-Net's preset, its sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .additions import LoraNamed, loras_of
from .fitted import names_it
from .request import Recipe
from .unet_options import set_unet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..lora import Lora, Used


def equipped(recipe: Recipe) -> tuple[Any, ...]:
    """What of a recipe its equipment depends on."""
    named = recipe.lora, recipe.lora_blocks, *sampler_options(recipe).values()
    return recipe.sampler, recipe.grid, recipe.like, recipe.guidance_schedule, recipe.unet, recipe.unet_option, *named


def sampler_options(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's sampler is told besides its name: grid, guidance schedule, and the guidance where it asks."""
    named = {"grid": recipe.grid, "guidance_schedule": recipe.guidance_schedule}
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if recipe.sampler is not None and not names_it(recipe.sampler):
        from ..schedulers.find import understand

        options |= understand(recipe.sampler, recipe.like).info.told(recipe.guidance)
    return options


class Equipment:
    """Gives a pipeline what a recipe names, and takes back what the one before named.

    Args:
        pipe: as it was loaded; changed in place.
        tell: gets a sentence for each thing in a file that is not used, each time.
        finish: called with the recipe when all else is in place.
        fitted: config of the sampler that was fitted to the model, if there is one.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        tell: Callable[[str], object] = lambda text: None,
        finish: Callable[[Recipe], object] = lambda recipe: None,
        fitted: Mapping[str, Any] | None = None,
    ):
        self._pipe, self._tell, self._finish, self._fitted = pipe, tell, finish, fitted or {}
        self._own: dict[str, Any] = {name: getattr(pipe, name, None) for name in ("scheduler", "unet")}
        self._now: tuple[Any, ...] | None = None
        self._used: Used | None = None
        self._read: dict[str, Lora] = {}

    def put_on(self, recipe: Recipe) -> None:
        """Make the pipeline as the recipe says. Raises `InputError` if it cannot be."""
        if equipped(recipe) == self._now:
            return
        self.take_off()
        try:
            if recipe.lora:
                self._use(loras_of(recipe))
            set_sampler(self._pipe, recipe, self._fitted, self._tell)
            set_unet(self._pipe, recipe)
            self._finish(recipe)
            if getattr(self._pipe.scheduler, "needs_halves", False):
                from ..attaching import attach

                attach(self._pipe)
        except BaseException:
            self.take_off()
            raise
        self._now = equipped(recipe)

    def take_off(self) -> None:
        """Make the pipeline as it was loaded; weights to the bit."""
        if self._used is not None:
            self._used.undo()
            self._used = None
        for name, own in self._own.items():
            if getattr(self._pipe, name, None) is not own:
                self._pipe.register_modules(**{name: own})
        self._now = None

    def _use(self, named: list[LoraNamed]) -> None:
        from ..lora.use import Used, Wanted, read_entry

        for source, _ in named:
            if source not in self._read:
                self._read[source] = read_entry(source).lora
        wanted = [Wanted(source, self._read[source], strength) for source, strength in named]
        self._used = Used(self._pipe, wanted)
        for sentence in self._used.unused:
            self._tell(sentence)


def set_sampler(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    fitted: Mapping[str, Any],
    tell: Callable[[str], object] = lambda text: None,
) -> None:
    """Replace the pipeline's scheduler if the recipe names a sampler, or a grid or guidance schedule for its own.

    Args:
        pipe: changed in place.
        recipe: its sampler, grid, program and guidance schedule are read.
        fitted: config of the sampler that was fitted to the model: what "calibrated" is made of.
        tell: told where the model's own scheduler gives way to this package's of the same name, because pipelines with
            a U-Net cannot draw by it: Diffusers' classes for flow models lack what they ask for.

    Raises:
        InputError: no sampler is named, and the model's own scheduler is not one of this package.
    """
    import sd_ext

    own: Any = pipe.scheduler
    options = sampler_options(recipe)
    name = type(own).__name__
    ours = name in {known.cls.__name__ for known in sd_ext.list_samplers()}
    if recipe.sampler is not None:
        config = dict(own.config)
        if names_it(recipe.sampler) and "calibration" in fitted:
            config["calibration"] = fitted["calibration"]
        pipe.register_modules(scheduler=sd_ext.make_scheduler(recipe.sampler, config, like=recipe.like, **options))
    elif options:
        if not ours:
            option, value = next(iter(options.items()))
            option = option.replace("_", "-")
            whose = "was fitted as it is" if name == "CalibratedScheduler" else "is not one of ours"
            raise InputError(f"--{option} {value} needs --sampler too: the model's own {name} {whose}")
        pipe.register_modules(scheduler=getattr(sd_ext, name).from_config(own.config, **options))
    elif ours and hasattr(pipe, "unet") and not hasattr(own, "init_noise_sigma"):
        tell(f"{type(pipe).__name__} cannot draw by Diffusers' {name}: sd_ext's of the same name takes its place.")
        pipe.register_modules(scheduler=getattr(sd_ext, name).from_config(own.config))
