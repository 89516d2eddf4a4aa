"""`--strips`: how a picture came about, as what the network expected of it at some of its calls, side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MOST, SIDE = 8, 128  # pictures of a strip, and the longer side of each in pixels


def strip_path(path: Path) -> Path:
    """Where the strip of a picture of the store lies."""
    return path.with_name(f"{path.stem}-strip.png")


def chosen(calls: int) -> list[int]:
    """Which of so many calls are shown: the first, the last, and others evenly between."""
    return sorted({round(k * (calls - 1) / (MOST - 1)) for k in range(MOST)})


@contextmanager
def watched(scheduler: Any, wanted: bool = True) -> Iterator[list[Any]]:
    """Within the block, note predictions of x0 as a scheduler makes its steps, which stay as they are.

    Args:
        scheduler: of Diffusers' kind; its outputs have `pred_original_sample`, or nothing is noted.
        wanted: whether to; else nothing is done.

    Yields:
        A list that fills with the predictions of the `chosen` calls, `(batch, channels, height, width)`.
    """
    own, seen, made = scheduler.step, list[Any](), 0

    @functools.wraps(own)
    def step(*arguments: Any, return_dict: bool = True, **named: Any) -> Any:
        nonlocal made
        output = own(*arguments, return_dict=True, **named)
        if made in chosen(len(scheduler.timesteps)) and getattr(output, "pred_original_sample", None) is not None:
            seen.append(output.pred_original_sample.detach())
        made += 1
        return output if return_dict else (output.prev_sample,)

    if not wanted:
        yield seen
        return
    scheduler.step = step
    try:
        yield seen
    finally:
        del scheduler.step


def strip(pipe: Any, predictions: Sequence[Any]) -> Image | None:
    """The predictions of one picture as a strip; None where there are none, or where they cannot be decoded.

    Args:
        pipe: a pipeline with an autoencoder.
        predictions: of x0, `(1, channels, height, width)` each, at the scale of the U-Net.
    """
    import torch
    from PIL import Image

    vae = getattr(pipe, "vae", None)
    if vae is None or not predictions or predictions[0].ndim != 4:
        return None
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    shown = []
    for x0 in predictions:
        with torch.no_grad():
            decoded = vae.decode((x0 / scale + shift).to(vae.device, vae.dtype), return_dict=False)[0]
        if not decoded.isfinite().all():
            return None
        (picture,) = pipe.image_processor.postprocess(decoded.float(), output_type="pil")
        picture.thumbnail((SIDE, SIDE))
        shown.append(picture)
    made = Image.new("RGB", (sum(each.width for each in shown), shown[0].height))
    for number, each in enumerate(shown):
        made.paste(each, (number * each.width, 0))
    return made
