"""FreeU (Si et al. 2023, arXiv 2309.11497): stronger backbone features and weaker skip features in the decoder.

Diffusers computes it (`enable_freeu`) but does not save it with the model. Here its factors are options of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel

from ...errors import InputError
from ...seams.diffusers.unets import freeu_factors
from ..inside.host import Host
from .feature import Feature, Options
from .options import Option

PLAIN: Any = UNet2DConditionModel


def _factor(of: str) -> Option:
    return Option(
        None,
        float | None,
        f"factor {of}",
        lambda value: value is None or value > 0,
        "a number above 0, or None for off",
    )


class FreeU(Feature):
    """Scales the features of the two lowest decoder stages. All four factors must be given, or none.

    Options:
        freeu_s1, freeu_s2: factors of the skip features' low frequencies in the lowest stage and the one above, below 1
            (the paper: 0.9, 0.2 for SD 1.x and 2.x; 0.6, 0.4 for SDXL).
        freeu_b1, freeu_b2: factors of half of the backbone's channels there, above 1 (the paper: 1.2, 1.4 for SD 1.x;
            1.1, 1.2 for SD 2.x and SDXL).

    None is off and computes nothing. Factors of 1 have the same effect only up to the rounding of a Fourier transform.
    """

    name: ClassVar[str] = "FreeU"
    options: ClassVar[dict[str, Option]] = {
        "freeu_s1": _factor("of the skip features in the lowest stage (FreeU, arXiv 2309.11497); all four or none"),
        "freeu_s2": _factor("of the skip features in the stage above"),
        "freeu_b1": _factor("of the backbone's features in the lowest stage"),
        "freeu_b2": _factor("of the backbone's features in the stage above"),
    }

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        missing = [name for name in self.options if options[name] is None]
        if missing:
            raise InputError(f"FreeU needs all of {', '.join(self.options)}; {', '.join(missing)} missing")
        self.factors = {name.removeprefix("freeu_"): float(options[name]) for name in self.options}

    def install(self) -> None:
        """Call Diffusers' own `enable_freeu`, not the override in `FreeUSwitch`, which would set the options again."""
        PLAIN.enable_freeu(self.host, **self.factors)

    def undo(self) -> None:
        """Call Diffusers' own `disable_freeu`."""
        PLAIN.disable_freeu(self.host)


def adopted(unet: UNet2DConditionModel) -> dict[str, Any]:
    """The options that correspond to an earlier `enable_freeu` on a plain U-Net; empty if FreeU is off."""
    return {f"freeu_{name}": factor for name, factor in freeu_factors(unet).items()}


class FreeUSwitch:
    """Mixin for a U-Net variant: Diffusers' methods for FreeU, on the model or its pipeline, also set the options."""

    set_options: Callable[..., Any]

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """As in Diffusers; the factors are also stored in the config."""
        self.set_options(freeu_s1=s1, freeu_s2=s2, freeu_b1=b1, freeu_b2=b2)

    def disable_freeu(self) -> None:
        """As in Diffusers; the factors are also removed from the config."""
        self.set_options(**dict.fromkeys(FreeU.options))
