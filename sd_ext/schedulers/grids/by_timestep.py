"""Grids as formulas in timesteps: `(n,)`, falling, from `t_max` or a little below it. Fractional ones are meant."""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from ..schedule import Array


def linspace(t_max: float, n: int, *, t_min: float = 0.0, closed: bool = True) -> Array:
    """Even in t from `t_max`, down to `t_min` when `closed`, else stopping one step short of it."""
    return np.linspace(t_min, t_max, n)[::-1] if closed and n > 1 else np.linspace(t_min, t_max, n + 1)[:0:-1]


def leading(t_max: float, n: int, *, offset: float = 0, closed: bool = True) -> Array:
    """Multiples of a whole stride from 0, plus `offset`; never starts at full noise (arXiv 2305.08891, table 2)."""
    stride = int(t_max + 1) // (n if closed else n + 1)
    return np.arange(n if closed else n + 1)[::-1][:n] * float(stride) + offset


def trailing(t_max: float, n: int) -> Array:
    """Strides counted down from full noise (arXiv 2305.08891, table 2)."""
    return np.round(np.arange(n, 0, -1) * ((t_max + 1) / n)) - 1


def simple(t_max: float, n: int, *, t_min: float = 0.0) -> Array:
    """Every (T / n)-th of the T trained timesteps, counted from full noise and rounded towards it.

    In floating point as everybody computes it: at n = 38, 19 strides of 1000 / 38 come to 499 timesteps, not 500.
    """
    trained = t_max - t_min + 1
    return t_max - np.floor(np.arange(n) * (trained / n))


def ddim_uniform(t_max: float, n: int, *, t_min: float = 0.0) -> Array:
    """Whole strides up from the second trained timestep (Song et al. 2021, arXiv 2010.02502).

    The n lowest: where T is not a multiple of the stride, the lists of DDIM's authors and of ComfyUI go on above them
    and are longer than n.
    """
    stride = max(int(t_max - t_min + 1) // n, 1)
    return t_min + 1 + stride * np.arange(n, dtype=float)[::-1]


def beta(t_max: float, n: int, *, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a Beta(a, b) distribution in t: denser at both ends (Lee et al. 2024, arXiv 2407.12173)."""
    return t_max * betaincinv(a, b, 1 - np.arange(n) / n)


def beta_whole(t_max: float, n: int, *, t_min: float = 0.0, a: float = 0.6, b: float = 0.6) -> Array:
    """`beta` rounded to whole timesteps, as in ComfyUI.

    Where two fall on one timestep ComfyUI makes one call of them (above 149 steps of 1000); here they are moved apart.
    """
    t = np.rint(beta(t_max, n, a=a, b=b))
    room = np.arange(n, dtype=float)[::-1]  # timesteps that must stay free below each
    up = np.maximum.accumulate((t - room)[::-1])[::-1] + room
    return np.minimum(np.maximum(up, t_min + room), t_max - room[::-1])
