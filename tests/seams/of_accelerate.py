from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sd_ext.seams.accelerate import inner_optimizer, is_hooked

from .probe import probe


@probe("accelerate.inner_optimizer")
def the_optimizer_inside_is_found() -> None:
    from accelerate import Accelerator

    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    prepared = Accelerator(cpu=True).prepare_optimizer(optimizer)
    assert prepared is not optimizer
    assert inner_optimizer(prepared) is optimizer
    assert inner_optimizer(optimizer) is optimizer


@probe("accelerate.is_hooked")
def offloading_hooks_are_seen() -> None:
    from accelerate import cpu_offload

    module = nn.Linear(2, 2)
    assert not is_hooked(module)
    assert is_hooked(cpu_offload(module, torch.device("cpu")))


UNWRAPPED = """
import torch
from accelerate import Accelerator
from torch import nn
from sd_ext.seams.accelerate import runs_its_own_forward, stands_for

class Decorated(nn.Linear):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)

class Standing(nn.Linear):
    @stands_for(nn.Linear.forward)
    def forward(self, *args):
        return 0 * super().forward(*args)

accelerator = Accelerator(cpu=True, mixed_precision="bf16")
for module in (Decorated(2, 2), nn.Linear(2, 2), Standing(2, 2)):
    expected = module(torch.ones(1, 2))
    assert runs_its_own_forward(module)
    prepared = accelerator.prepare(module)
    assert not runs_its_own_forward(prepared)
    back = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert runs_its_own_forward(back), module
    assert torch.equal(back(torch.ones(1, 2)), expected), module
"""


@probe("accelerate.runs_its_own_forward")
def a_replaced_forward_is_seen_and_ours_is_not_looked_behind(fresh: Any) -> None:
    """In a process of its own: precision is one for all of a process."""
    done = fresh(UNWRAPPED)
    assert done.returncode == 0, done.stderr
