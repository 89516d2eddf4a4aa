"""Imports without what this package's commands hardly ever use."""

from __future__ import annotations

from .later import put_off
from .torch import put_off_dynamo


def import_less() -> None:
    """Have modules that Diffusers, transformers and peft import loaded when they are used.

    That is PyTorch's compiler and the large parts of SciPy: about 80 MB and a fifth of the time of the imports. For
    commands, before they import those libraries; what is loaded already stays.
    """
    put_off_dynamo()
    for name in ("scipy.stats", "scipy.integrate"):  # of Diffusers' samplers
        put_off(name)
    put_off("scipy.optimize", "linear_sum_assignment")  # of transformers' detectors of objects
    put_off("scipy.special", "betaincinv")
