"""Grids published as lists of steps, and the same at any count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schedule import Array, NoiseSchedule

AYS = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""sigma / alpha of the published ten-step schedules (Sabour et al. 2024, arXiv 2404.14507), end included."""

AYS_32 = {
    "sd": (
        *(14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.51956090, 3.13490466),
        *(2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.77931720, 1.61475335, 1.46540953, 1.31484900, 1.16642497),
        *(1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.62173900, 0.53065202, 0.45290960, 0.37491455, 0.27461819),
        *(0.20115290, 0.14105873, 0.06682881, 0.03166121, 0.015),
    ),
    "sdxl": (
        *(14.615, 11.14916180, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527),
        *(2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886, 0.69660121),
        *(0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517, 0.26518925, 0.22326461, 0.17653877),
        *(0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015),
    ),
}
"""The 32 levels that Forge has for Align Your Steps; the last lie below the models' own least noise."""

AYS_GITS = {
    "sd": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
}
"""The eleven levels that Forge calls Align Your Steps GITS."""

GITS = (
    (100, 29),
    (100, 49, 18),
    (100, 61, 33, 11),
    (100, 66, 42, 21, 6),
    (100, 83, 57, 34, 15, 3),
    (100, 83, 62, 42, 23, 8, 1),
    (100, 83, 62, 45, 29, 15, 6, 1),
    (100, 83, 66, 50, 34, 21, 11, 4, 1),
    (100, 83, 66, 51, 38, 27, 17, 9, 4, 1),
    (100, 83, 67, 54, 42, 30, 21, 13, 7, 3, 1),
    (100, 83, 68, 56, 45, 34, 25, 17, 11, 6, 3, 1),
    (100, 86, 71, 61, 49, 38, 29, 21, 15, 10, 6, 3, 1),
    (100, 86, 71, 62, 50, 40, 31, 23, 17, 12, 8, 5, 3, 1),
    (100, 88, 78, 68, 58, 48, 38, 30, 23, 17, 12, 8, 5, 3, 1),
    (100, 88, 78, 68, 58, 48, 38, 30, 23, 17, 13, 9, 6, 4, 2, 1),
    (100, 88, 78, 68, 58, 48, 38, 30, 23, 17, 13, 10, 7, 5, 3, 2, 1),
    (100, 88, 78, 68, 59, 50, 41, 33, 26, 20, 15, 11, 8, 6, 4, 3, 2, 1),
    (100, 88, 78, 68, 59, 50, 42, 34, 27, 21, 16, 12, 9, 7, 5, 4, 3, 2, 1),
    (100, 88, 78, 68, 59, 50, 42, 34, 27, 21, 17, 13, 10, 8, 6, 5, 4, 3, 2, 1),
)
"""The schedules of 2 to 20 steps that the authors of GITS (Chen et al. 2024, arXiv 2405.11326) published for Stable
Diffusion with coefficient 1.20, without their end at t = 0. The search chose among 101 even timesteps: the published
sigmas are, to their float32 rounding, those at these whole percentages of t = 999."""

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The training schedule of the models that the published lists were made for."""


def resampled(known: Array, n: int) -> Array:
    """A list of sigma / alpha, its end included, at `n` steps by log-linear interpolation; its end is left out."""
    at = np.linspace(0, 1, n + 1)
    return np.exp(np.interp(at, np.linspace(0, 1, len(known)), np.log(known)))[:-1]


def closed(known: Sequence[float], n: int) -> Array:
    """The first and the last of a list of sigma / alpha and n - 2 between, by log-linear interpolation.

    So AUTOMATIC1111 reads the published lists: the last is a level of the run, after which it ends clean.
    """
    return np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(known)), np.log(known)))


def align_your_steps(n: int, *, family: str = "sd") -> Array:
    """The published ten steps of Align Your Steps at any count."""
    return resampled(np.array(AYS[family]), n)


def gits(n: int) -> Array:
    """The published steps of GITS; above 20, the longest list at that count. One step starts at full noise too."""
    percentages = GITS[min(max(n, 2), 20) - 2]
    t = 9.99 * np.array([*percentages, 0])
    known = NoiseSchedule.from_config(STABLE_DIFFUSION).at(t).ratio
    return known[:n] if n <= 20 else resampled(known, n)
