"""Small pictures for the page, as data URIs: what the model sees, the whole picture around it, the mask."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sd_ext.training.data.images import on_white, open_picture, to_uint8
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.doctor.seen import Seen

SEEN, WHOLE = 256, 96  # pixels of the longer side, at most


@dataclass(frozen=True)
class Shots:
    """Pictures of one picture, each a data URI or "".

    Args:
        seen: its first view, as the model sees it.
        whole: all of it, where a part is cut off.
        mask: its mask, in the first view: white where it is learned.
    """

    seen: str
    whole: str = ""
    mask: str = ""


def shots_of(pictures: Pictures, seen: Seen) -> Shots:
    """Make the small pictures of a picture.

    Raises:
        TrainingError: the file was removed or damaged since it was checked.
    """
    view = seen.views[0]
    shown = uri(Image.fromarray(to_uint8(pictures.pixels(view.sample)[None])[0]), SEEN)
    whole = mask = ""
    if view.scaled != view.size:
        whole = uri(on_white(open_picture(pictures.samples[view.sample].item.read())), WHOLE)
    if seen.masked:
        grey = pictures.mask(view.sample, downscale=1)[0].mul(255).round().byte().numpy()
        mask = uri(Image.fromarray(np.ascontiguousarray(grey)), WHOLE)
    return Shots(shown, whole, mask)


def uri(picture: Image.Image, side: int) -> str:
    """A picture as a JPEG in a data URI, no longer than `side` pixels."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
