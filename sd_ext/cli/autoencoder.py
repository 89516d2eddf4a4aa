"""`--vae`: another autoencoder than the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import find_part
from ..models.original.families import families
from ..models.vae_file import VaeFile
from ..reading import open_tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SAME = "latent_channels", "scaling_factor", "shift_factor"  # settings that make latents those of a model


def use_vae(pipe: DiffusionPipeline, source: str) -> None:
    """Give a pipeline another autoencoder.

    Args:
        pipe: changed in place.
        source: a pipeline's folder, an autoencoder's own, or a .safetensors file: a checkpoint, or an autoencoder alone
            in the original layout or in Diffusers', which is then taken to have the settings of the pipeline's own.

    Raises:
        InputError: there is none, or its latents are not those of the model.
    """
    own: Any = getattr(pipe, "vae", None)
    if own is None:
        raise InputError(f"--vae {source}: {type(pipe).__name__} has no autoencoder; leave --vae out")
    new = _bare(source, own) or _found(source, own)
    mine, its = ({name: each.config.get(name) for name in SAME} | {"levels": _levels(each)} for each in (own, new))
    if different := [name for name in mine if mine[name] != its[name]]:
        name = different[0]
        raise InputError(f"--vae {source} is for other models: its {name} is {its[name]}, this model's is {mine[name]}")
    pipe.register_modules(vae=new.to(own.device, own.dtype).eval())


def _levels(vae: Any) -> int:
    return len(vae.config.get("block_out_channels", ()))


def _bare(source: str, own: Any) -> Any:
    """The autoencoder of a file in Diffusers' layout, which does not hold its settings; None for all others."""
    path = Path(source).expanduser()
    if not path.is_file():
        return None
    with open_tensors(path) as opened:
        if {*opened.keys()} != own.state_dict().keys():
            return None
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it has no __iter__
    made = type(own).from_config(own.config)
    try:
        made.load_state_dict(tensors)
    except RuntimeError as error:  # shapes
        raise InputError(f"--vae {source} does not fit the settings of this model's own: {error}") from error
    return made


def _found(source: str, own: Any) -> Any:
    found = find_part(source, "vae")
    if isinstance(found, VaeFile):
        scaled = (each for each in families().values() if each.vae["scaling_factor"] == own.config.scaling_factor)
        family = next(scaled, None)
        found = found.for_family(family) if family else found
    return found.load("vae", own.dtype)
