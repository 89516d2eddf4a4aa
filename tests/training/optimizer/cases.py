"""Every optimizer that is installed, on a small model with kernels, matrices, vectors and a zero matrix."""

import importlib.util

import torch
from torch import nn

from sd_ext.training.optimizer.averaged import to_training
from sd_ext.training.optimizer.make import make_optimizer, parameter_groups
from sd_ext.training.optimizer.names import PRESETS

RATES = {"dadapt-adam": 1.0, "prodigy": 1.0, "sgd": 0.01, "lion": 0.005}
OPTIONS = {"prodigy": {"d0": 1e-3}}
BY_PATH = ("torch.optim.Adafactor", "torch.optim.RAdam", "torch.optim.Adam")
CASES = [n for n, known in PRESETS.items() if importlib.util.find_spec(known.path.split(".")[0])] + list(BY_PATH)


def small_model(layout: torch.memory_format = torch.channels_last, dtype: torch.dtype = torch.float32) -> nn.Module:
    """`big` is large enough for 8-bit moments."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"conv": nn.Conv2d(6, 5, 3), "low": nn.Linear(7, 2), "big": nn.Linear(64, 65)})
    with torch.no_grad():
        model["low"].weight.zero_()  # as a LoRA's B
    return model.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]


def gradient(p: torch.Tensor, step: int, number: int) -> torch.Tensor:
    """A function of the weights and the step only, elementwise: towards 1, with noise."""
    noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * step + number))
    return p.detach() - 1 + 0.3 * noise.to(p.dtype)


def descend(name: str, steps: int, model: nn.Module | None = None, optimizer=None, first: int = 0):
    """Train from step `first` on, up to and without `steps`; returns model and optimizer."""
    model = model or small_model()
    if optimizer is None:
        groups = parameter_groups(model.named_parameters(), 0.01)
        optimizer = make_optimizer(name, groups, RATES.get(name, 0.02), OPTIONS.get(name))
        to_training(optimizer)
    for step in range(first, steps):
        for number, p in enumerate(model.parameters()):
            p.grad = torch.empty_like(p).copy_(gradient(p, step, number))
        optimizer.step()
    return model, optimizer
