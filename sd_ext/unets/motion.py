"""AnimateDiff, which builds a network of its own (`UNetMotionModel`) from the U-Net that it is given."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..errors import SeamError
from ..seams.diffusers.unets import when_motion_is_added
from .features.freeu import FreeU


def watch() -> None:
    """From now on, networks with motion get what they can have of a U-Net's features, and the others are named."""
    with suppress(SeamError):
        when_motion_is_added(_hand_on)


def _hand_on(unet: Any, model: Any) -> None:
    """FreeU, which Diffusers has there too, goes along; the others are said once to be left behind."""
    lost = []
    for feature in getattr(unet, "active_features", ()):
        if isinstance(feature, FreeU):
            model.enable_freeu(**feature.factors)
        else:
            lost.append(feature.name)
    if lost:
        unet.say_once(f"AnimateDiff builds a network of its own, which does without {', '.join(lost)}")
