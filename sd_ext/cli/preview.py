"""`--preview`: a small picture of the latents, kept up to date while drawing.

Colours come from a linear map of latents to RGB, which is fitted to the model's own autoencoder with one decoding of
coloured patches; applying it costs next to nothing. What is shown still has the noise of its step.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import whole
from .pictures import encode
from .pictures.encode import ENDINGS
from .pictures.sheet import thumbnail

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

PATCHES = 8  # in each direction, of the picture that the map is fitted to
PATCH = 4  # latents to the side of a patch
SHOWN = 12  # previews of a batch


class Preview:
    """Writes what has been drawn so far.

    Args:
        pipe: a pipeline with an AutoencoderKL. For others, nothing is written.
        path: the picture file; it is replaced.
    """

    def __init__(self, pipe: DiffusionPipeline, path: Path):
        self.path, self.done = path, 0.0
        self.colours = colour_map(pipe) if hasattr(getattr(pipe, "vae", None), "decode") else None

    def show(self, pictures: float, latents: Any) -> None:
        """Write a preview, about twelve times a batch.

        Args:
            pictures: how many pictures a call of the network made, in part.
            latents: shape `(batch, channels, height, width)`, or None.
        """
        if latents is None or self.colours is None or latents.ndim != 4:
            return
        before = round(self.done * SHOWN, 6)
        self.done += pictures / len(latents)
        if math.floor(round(self.done * SHOWN, 6)) > math.floor(before):
            picture = thumbnail(as_picture(latents, self.colours))
            whole.write_bytes(self.path, encode(picture, form=ENDINGS[self.path.suffix.lower()]))


def as_picture(latents: Tensor, colours: Tensor) -> Any:
    """The latents of a batch, side by side, as a picture with one pixel for each.

    Args:
        latents: shape `(batch, channels, height, width)`.
        colours: shape `(channels + 1, 3)`; the last row is the colour of zeros.
    """
    import torch
    from PIL import Image

    row = torch.cat(list(latents.detach().float().cpu()), dim=-1)  # (channels, height, batch * width)
    rgb = torch.einsum("chw,cd->hwd", row, colours[:-1]) + colours[-1]
    return Image.fromarray(((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())


def colour_map(pipe: Any) -> Tensor:
    """The linear map, with a constant, from latents to RGB in -1 to 1 that fits the autoencoder on flat patches.

    Args:
        pipe: a pipeline with an AutoencoderKL.

    Returns:
        Shape `(channels + 1, 3)`, for `as_picture`.
    """
    import torch

    vae = pipe.vae
    channels, scale = vae.config.latent_channels, vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    values = torch.randn(channels, PATCHES, PATCHES, generator=torch.Generator().manual_seed(0))
    latents = values.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[None]
    with torch.no_grad():
        decoded = vae.decode((latents / scale + shift).to(vae.device, vae.dtype)).sample[0].float().cpu()
    flat = torch.nn.functional.adaptive_avg_pool2d(decoded, PATCHES).reshape(3, -1).T
    known = torch.cat([values.reshape(channels, -1).T, torch.ones(PATCHES**2, 1)], dim=1)
    return torch.linalg.lstsq(known, flat).solution
