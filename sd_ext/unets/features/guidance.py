"""`Guidance`: the base of features that change what guidance is made of, and `Calls`, what they see of a call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...board import Half
from ..inside.branches import conditional_half, halves_in, is_guidance, own_lists, unconditional_half
from ..inside.host import Host
from .feature import Feature, Inner

HALF = {"conditional": conditional_half, "unconditional": unconditional_half}


@dataclass(frozen=True)
class Calls:
    """One call of the network by its pipeline, and the calls that are made in its place.

    Args:
        host: the model.
        inner: the next feature or the plain network.
        inputs: all arguments by their names.
    """

    host: Host
    inner: Inner
    inputs: dict[str, Any]

    @property
    def sample(self) -> torch.Tensor:
        """The noisy latents, `(batch, channels, height, width)`."""
        return self.inputs["sample"]

    def plain(self) -> torch.Tensor:
        """The prediction for all of the batch, `(batch, channels, height, width)`; it counts the step."""
        return self.inner(**own_lists(self.inputs))

    def branches(self, option: str) -> int | None:
        """In how many branches the batch is said to be, for this option; see `halves_in`. After `plain`."""
        return halves_in(self.host, self.sample, option)

    def guided(self, option: str) -> bool:
        """Whether the batch is said to be both halves of guidance; see `is_guidance`. After `plain`."""
        return is_guidance(self.host, self.sample, option)

    def half(self, half: Half, branches: int) -> dict[str, Any]:
        """The arguments of one half of two branches; all of them where there is one."""
        return HALF[half](self.inputs, len(self.sample)) if branches == 2 else dict(self.inputs)

    def further(self, inputs: dict[str, Any], half: Half) -> torch.Tensor:
        """The prediction of a further call of the network, which is told to be for this half."""
        with self.host.telling(replace(self.host.told, branches=(half,))):
            return self.inner(**own_lists(inputs))


class Guidance(Feature):
    """A feature that changes what guidance is made of. In training mode it does nothing."""

    before_steps: ClassVar[bool] = True

    def forward(
        self,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """See `Feature.forward`."""
        inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states, **kwargs}
        return inner(**inputs) if self.host.training else self.guide(Calls(self.host, inner, inputs))

    def guide(self, calls: Calls) -> torch.Tensor:
        """What the pipeline is given in place of the network's prediction, of its shape."""
        raise NotImplementedError
