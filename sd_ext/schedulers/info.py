"""What is known about a sampler besides its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import TableScheduler


@dataclass(frozen=True)
class SamplerInfo:
    """A sampler by name. Third parties publish theirs as entry points of the group `sd_ext.samplers`.

    Args:
        name: the name it is listed under.
        cls: its scheduler class.
        order: order of convergence; None where a step has none (consistency models). For stochastic samplers, that of
            their deterministic limit.
        source: paper and equation.
        aliases: other names, as in Diffusers, AUTOMATIC1111, ComfyUI and k-diffusion.
        calls: network calls per solver step.
        stochastic: whether it draws noise.
        options: constructor arguments that make the class this sampler.
        note: what users should know.
    """

    name: str
    cls: type[TableScheduler]
    order: int | None
    source: str
    aliases: tuple[str, ...] = ()
    calls: str = "1"
    stochastic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def told(self, guidance: float | None) -> dict[str, Any]:
        """The constructor arguments that tell it the guidance scale, if it asks for one as `auto` does.

        Args:
            guidance: what the pipeline draws with; None if that is not known.
        """
        asks = "guidance_scale" in self.cls._options and "guidance_scale" not in self.options
        return {"guidance_scale": guidance} if asks and guidance is not None else {}
