"""Put a pipeline on a machine: device and dtype, kernels, and what saves memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import InputError
from .request import Recipe, Resources
from .request.machine import AUTO

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Place:
    """Where and how a pipeline runs.

    Args:
        device: where its parts run; with offloading, they rest in main memory.
        dtype: of its weights.
        resources: offloading and batches.
        networks: what was loaded beside the pipeline, by the name it was asked for: ControlNets, a refiner.
    """

    device: torch.device
    dtype: torch.dtype
    resources: Resources = field(default_factory=Resources)
    networks: dict[str, Any] = field(default_factory=dict)

    @property
    def rest(self) -> torch.device | str:
        """Where weights are loaded to: what is offloaded is moved when it runs."""
        return "cpu" if self.resources.offload else self.device


_PLACES: WeakKeyDictionary[Any, Place] = WeakKeyDictionary()


def put(pipe: DiffusionPipeline, place: Place) -> None:
    """Note where a pipeline runs, for `place_of`."""
    _PLACES[pipe] = place


def place_of(pipe: DiffusionPipeline) -> Place:
    """Where a pipeline runs: as noted, else where its weights are."""
    return _PLACES.get(pipe) or Place(pipe.device, pipe.dtype)


def resolve_device(recipe: Recipe, offload: str | None = None) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to use.

    Args:
        recipe: names both, or leaves them to what is here.
        offload: as asked for; makes sense beside a CPU only.

    Raises:
        InputError: a device that torch does not find here, or nothing to offload from.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted, _, number = recipe.device.partition(":")
    kind = next(name for name, here in there.items() if here) if wanted == AUTO else wanted
    if not there[kind]:
        title = "CUDA" if kind == "cuda" else "Apple (mps)"
        raise InputError(f"--device {kind}: torch finds no {title} device here; leave --device out or choose cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"--device {recipe.device}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    if offload and kind == "cpu":
        raise InputError(f"--offload {offload} saves memory of a GPU, and torch finds none here; leave it out")
    dtype = recipe.long_dtype if recipe.dtype != AUTO else "float32" if kind == "cpu" else "float16"
    device = torch.device(kind, int(number)) if number else torch.device(kind)
    return device, getattr(torch, dtype)


def set_machine(pipe: DiffusionPipeline, recipe: Recipe, resources: Resources, tell: Tell) -> None:
    """Choose kernels, slices and tiles of a loaded pipeline. Its device and dtype are set already.

    Args:
        pipe: changed in place.
        recipe: names attention, tiling and compiling.
        resources: names slicing.
        tell: gets one sentence for each thing that is not as asked for, or may go wrong.

    Raises:
        InputError: the pipeline has nothing of the kind.
    """
    vae: Any = getattr(pipe, "vae", None)
    for wanted, flag, method in (
        (resources.vae_slicing, "--vae-slicing", "enable_slicing"),
        (recipe.vae_tiling, "--vae-tiling", "enable_tiling"),
    ):
        if wanted and not hasattr(vae, method):
            raise InputError(f"{flag}: the autoencoder of {type(pipe).__name__} cannot; leave it out")
        if wanted:
            getattr(vae, method)()
    if recipe.attention is not None:
        _set_attention(pipe, recipe.attention, tell)
    if recipe.compile:
        _compile(pipe)
    _doubt_autoencoder(pipe, tell)


def _set_attention(pipe: DiffusionPipeline, name: str, tell: Tell) -> None:
    from ..unets import set_attention

    report = set_attention(pipe, name)
    if name not in ("auto", "default"):
        others = {layer.backend: layer.why for layer in report if layer.backend != name}
        for used, why in others.items():
            tell(f"--attention {name}: some layers use {used} instead ({why}).")


def _compile(pipe: Any) -> None:
    """Compile the network in place, so that hooks, adapters and options keep working. It happens at the first step."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise InputError(f"--compile: {type(pipe).__name__} has no network that is called step by step; leave it out")
    network.compile()


def _doubt_autoencoder(pipe: Any, tell: Tell) -> None:
    """Say where SDXL's autoencoder, whose usual weights overflow in float16, is not computed in float32."""
    import torch

    vae = getattr(pipe, "vae", None)
    if vae is None or getattr(pipe, "text_encoder_2", None) is None or vae.dtype != torch.float16:
        return
    if not getattr(vae.config, "force_upcast", False):
        tell(
            "The autoencoder is computed in float16, since its config says that it can be (force_upcast is off); "
            "the usual one of SDXL overflows, and --dtype bf16 avoids that."
        )


@contextmanager
def offloaded(pipe: DiffusionPipeline, how: str | None, device: torch.device | None) -> Iterator[None]:
    """Context manager: within the block only what runs is on the device; afterwards everything is in main memory.

    Args:
        pipe: in main memory; its weights may be changed before and after the block, but not within.
        how: "model", "sequential", or None to leave the pipeline as it is.
        device: where the parts run.
    """
    if how is None or device is None:
        yield
        return
    if how == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    try:
        yield
    finally:
        pipe.remove_all_hooks()
        pipe.to("cpu", silence_dtype_warnings=True)
