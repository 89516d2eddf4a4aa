"""CFG++ against ComfyUI's own samplers: where their functions end on a small problem, as plain numbers.

The numbers were made once, outside this repository, with the functions `sample_*_cfg_pp` of its k_diffusion/sampling.py
(ComfyUI at 02159d814dee609acc27994c1bf25fc5b40e2aaa) in float64, on the problem written out here: sigmas, start, the
two predictions at y = x / alpha, and draws of noise that are sines. That program's y is our x / alpha.
"""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext
from sd_ext.schedulers.table import P0, STASH, X

from ..conftest import SD

SIGMAS = [14.0, 6.0, 2.5, 1.1, 0.4, 0.1, 0.0]
START = np.array([11.0, -3.0, 0.5, -19.0])
SCALE = 1.6


def unconditional(y, sigma):
    return y / (1 + sigma**2) + 0.3 * np.sin(y / (1 + sigma))


def guided(y, sigma):
    conditional = (y + 0.7 * sigma**2) / (1 + sigma**2) + 0.5 * np.cos(y / (1 + sigma))
    return unconditional(y, sigma) + SCALE * (conditional - unconditional(y, sigma))


def draw(number):
    """The noise of a run's draw number 0, 1, ..."""
    return np.sin(1.7 * number + np.arange(4.0))


ENDS = {
    "euler cfg++": [1.60397793831, 1.58946925525, 1.59353067153, 1.55873924999],
    "euler a cfg++": [1.5480793372, 1.57265302582, 1.58817573637, 1.57663342564],
    "dpm++ 2m cfg++": [1.73060270512, 1.77308344698, 1.75896230453, 1.91067076709],
    "dpm++ 2s a cfg++": [1.66282256369, 1.68529290604, 1.69384538803, 1.67221756776],
    "res multistep cfg++": [1.9445665681, 1.69663195975, 1.76021368188, 1.33727208286],
    "res multistep a cfg++": [1.30134605475, 0.953014557619, 1.06743410907, 1.37018180535],
    "gradient estimation cfg++": [1.70338082722, 1.62158720007, 1.64217843084, 1.49832473583],
}


def end_of(name: str) -> np.ndarray:
    scheduler = sd_ext.make_scheduler(name, SD)
    scheduler.set_timesteps(sigmas=SIGMAS)
    table = scheduler.table()
    slots, draws = np.zeros((table.rows.shape[2], 4)), 0
    slots[X] = START * table.levels.alpha[0]
    for row, alpha, sigma in zip(table.rows, table.levels.alpha, table.levels.sigma, strict=False):
        for first, field in ((P0, guided), (P0 + table.history, unconditional)):
            slots[first + 1 : first + table.history] = slots[first : first + table.history - 1].copy()
            p = field(slots[X] / alpha, sigma / alpha)
            slots[first] = p if table.basis == "x0" else (slots[X] - alpha * p) / sigma
        slots[-1] = 0
        if row[:, -1].any():
            slots[-1], draws = draw(draws), draws + 1
        slots[: STASH + 1] = row @ slots
    return slots[X] / table.levels.alpha[-1]


@pytest.mark.parametrize("name", ENDS)
def test_it_ends_where_comfyui_ends(name):
    np.testing.assert_allclose(end_of(name), ENDS[name], rtol=1e-10, atol=1e-10)


def test_every_sampler_that_comfyui_has_is_among_them():
    ours = {info.name for info in sd_ext.list_samplers() if "cfg++" in info.name}
    assert ours - set(ENDS) == {"dpm++ 2m sde cfg++"}
