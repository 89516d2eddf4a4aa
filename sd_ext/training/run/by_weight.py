"""Weights in bfloat16 that do not lose small updates, and steps that are taken during the backward pass.

A bfloat16 weight has 8 significant bits: an update below 1/512 of it would be rounded away. Each weight is therefore
stepped in float32, by itself, and rounded back

    stochastic   up or down, with probabilities by which the mean is exact (Gupta et al. 2015, arXiv 1502.02551)
    kahan        to the nearest, and what is lost is kept as a second bfloat16 number and put back before the next
                 step (Kahan summation; Zamirai et al. 2020, arXiv 2010.06192, algorithm 2)

The optimizer's state stays in float32. Weights are stepped one after another, so that only one is in float32 at a time.
With `fused` each is stepped as soon as its gradient is complete, and the gradient is freed (Lv et al. 2023, arXiv
2306.09782): gradients of a whole model are never in memory together. Then nothing can depend on all of them: the norm
is measured, and not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sd_ext.seams.accelerate import inner_optimizer
from sd_ext.training.data.draws import Stream, stream_generator

REST = "rest"  # the optimizer's name of what rounding has lost
LOST_BITS = 16  # of float32, below bfloat16


def round_stochastically(x: Tensor, generator: Generator) -> Tensor:
    """float32 -> bfloat16, up with the probability of the share that is lost; exact numbers, inf and NaN stay.

    Args:
        x: any shape.
        generator: on the device of x.
    """
    draw = torch.randint(0, 1 << LOST_BITS, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    moved = (x.contiguous().view(torch.int32) + draw) & (-1 << LOST_BITS)
    return torch.where(x.isfinite(), moved.view(torch.float32), x).to(torch.bfloat16)


class WeightByWeight:
    """Steps an optimizer for one weight at a time.

    Args:
        optimizer: of weights that have each a state of their own.
        rounding: "stochastic" or "kahan", for weights in bfloat16; others are stepped as they are.
        seed: of the run; roundings at step s depend on (seed, s) only.
        fused: step during the backward pass.

    Attributes:
        step_number: optimizer steps done, which the loop sets before each backward pass.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rounding: str, seed: int, fused: bool = False):
        self.optimizer, self.rounding, self.seed, self.fused = inner_optimizer(optimizer), rounding, seed, fused
        self.step_number = 0
        self.squares: list[Tensor] = []
        groups = self.optimizer.param_groups
        self.place = {p: (n, group) for n, (p, group) in enumerate((p, g) for g in groups for p in g["params"])}
        if fused:
            for p in self.place:
                p.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, p: Tensor) -> None:
        if p.grad is not None:
            self.squares.append(p.grad.detach().float().square().sum())
            self._step_one(p)  # type: ignore[arg-type]
            p.grad = None

    def norm(self) -> Tensor:
        """The norm of the gradients that have been stepped with since the last call."""
        total = torch.stack(self.squares).sum().sqrt() if self.squares else torch.zeros(())
        self.squares = []
        return total

    @torch.no_grad()
    def step(self) -> None:
        """Step every weight that has a gradient."""
        for p in self.place:
            if p.grad is not None:
                self._step_one(p)

    @torch.no_grad()
    def _step_one(self, p: nn.Parameter) -> None:
        number, group = self.place[p]
        every, low = self.optimizer.param_groups, p.dtype == torch.bfloat16
        # The group itself, not a copy, so that what the optimizer writes into it stays.
        params, group["params"], self.optimizer.param_groups = group["params"], [p], [group]
        try:
            if low:
                self._raise(p)
            self.optimizer.step()
            if low:
                self._lower(p, number)
        finally:
            group["params"], self.optimizer.param_groups = params, every

    def _raise(self, p: nn.Parameter) -> None:
        """Make a weight and its gradient float32, and put back what was lost."""
        rest, gradient = self._state(p).pop(REST, None), p.grad
        p.grad = None
        p.data = p.data.float() if rest is None else p.data.float() + rest.float()
        p.grad = None if gradient is None else gradient.float()

    def _lower(self, p: nn.Parameter, number: int) -> None:
        """Round a weight to bfloat16."""
        exact = p.data
        p.grad = None
        if self.rounding == "kahan":
            p.data = exact.to(torch.bfloat16)
            self.optimizer.state[p][REST] = (exact - p.data.float()).to(torch.bfloat16)
            return
        generator = stream_generator(self.seed, Stream.ROUNDING, self.step_number, number, device=exact.device.type)
        p.data = torch.empty_like(exact, dtype=torch.bfloat16).copy_(round_stochastically(exact, generator))

    def _state(self, p: nn.Parameter) -> dict[str, Any]:
        found: Mapping[Any, Any] = self.optimizer.state
        return found.get(p, {})
