"""Grids: where the steps of a sampler fall.

by_timestep   formulas in timesteps              by_ratio    formulas in sigma / alpha
published     step lists that papers give        grid        a formula with its options becomes noise levels
catalogue     every grid by name

A grid is a plain function that returns `(n,)` values in float64 from most to least noise. The clean end is not part of
it: what k-diffusion and ComfyUI call the sigmas of n steps is these n and a 0. docs/grids.md describes each.
"""

from .catalogue import GRIDS, get_grid, list_grids, spellings
from .grid import Grid, GridOptions
from .published import AYS, GITS, align_your_steps, gits

__all__ = [
    "AYS",
    "GITS",
    "GRIDS",
    "Grid",
    "GridOptions",
    "align_your_steps",
    "get_grid",
    "gits",
    "list_grids",
    "spellings",
]
