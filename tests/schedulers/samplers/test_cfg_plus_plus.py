"""CFG++: the tables against their definitions, written in sigma / alpha without this package's kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.attaching import attach, detach
from sd_ext.errors import InputError

from ..conftest import SD
from ..mixture import Mixture, run_table
from ..over import over

PROMPT, NONE = Mixture.random(5, 3, seed=1), Mixture.random(9, 3, seed=2)


class Guided:
    """What a network with guidance predicts: u + scale (c - u)."""

    def __init__(self, scale: float):
        self.scale = scale

    def x0(self, x, alpha, sigma):
        u = NONE.x0(x, alpha, sigma)
        return u + self.scale * (PROMPT.x0(x, alpha, sigma) - u)

    def eps(self, x, alpha, sigma):
        return (x - alpha * self.x0(x, alpha, sigma)) / sigma


def ancestral(rho: float, after: float, eta: float) -> tuple[float, float]:
    """(how far down, noise): of the noise at rho, what is left at `after`, and what is drawn anew."""
    drawn = min(after, eta * np.sqrt(after**2 * (rho**2 - after**2) / rho**2))
    return np.sqrt(max(0.0, after**2 - drawn**2)), drawn


def defined(name: str, scheduler, guided: Guided, y: np.ndarray, seed: int) -> np.ndarray:
    """A run in y = x / alpha, whose noise is rho = sigma / alpha, by the published formulas."""
    levels, random = scheduler.levels, np.random.default_rng(seed)
    rho, before = levels.ratio, {}

    def fields(y, i):
        alpha, sigma = levels.alpha[i], levels.sigma[i]
        return guided.x0(alpha * y, alpha, sigma), NONE.x0(alpha * y, alpha, sigma)

    eta = 1.0 if " a " in name or " sde " in name else 0.0
    steps = [i for i in range(len(rho) - 1) if levels.stage is None or levels.stage[i] == 0]
    for number, i in enumerate(steps):
        j = steps[number + 1] if number + 1 < len(steps) else len(rho) - 1
        p, u = fields(y, i)
        down, drawn = ancestral(rho[i], rho[j], eta)
        slope = (y - u) / rho[i]
        first, last = number == 0, rho[j] == 0
        h = np.log(rho[i] / rho[j]) if not last else np.inf
        if name.startswith("euler"):
            y = p + slope * down
        elif name == "dpm++ 2m cfg++":
            mixed = y * np.exp(-h) + p - np.exp(-h) * u
            if not (first or last):
                r = np.log(rho[i - 1] / rho[i]) / h
                mixed = mixed - np.expm1(-h) / (2 * r) * (p - before["u"])
            y, drawn = mixed, 0.0
        elif name == "dpm++ 2m sde cfg++":
            y, drawn = y * np.exp(-2 * h) - np.expm1(-2 * h) * u + p - u, rho[j] * np.sqrt(-np.expm1(-2 * h))
            if not (first or last):
                y = y - np.expm1(-2 * h) / 2 / (np.log(rho[i - 1] / rho[i]) / h) * (p - before["u"])
        elif name == "dpm++ 2s a cfg++":
            h = np.log(rho[i] / down) if down else np.inf
            if j > i + 1:
                middle = y * np.exp(-h / 2) - np.expm1(-h / 2) * u
                _, second = fields(middle, i + 1)
                y = y * np.exp(-h) - np.expm1(-h) * second + p - u
            else:
                y = y * np.exp(-h) - np.expm1(-h) * u + p - u
        elif name.startswith("res"):
            h = np.log(rho[i] / down) if down else np.inf
            if first or not down:
                y = p + slope * down
            else:
                c = before["length"] / h
                phi1 = -np.expm1(-h) / h
                phi2 = (1 - phi1) / h
                y = np.exp(-h) * (y + p - u) + h * ((phi1 + phi2 / c) * u - phi2 / c * before["u"])
            before["length"] = h
        else:
            y = p + slope * rho[j]
            if not (first or last):
                y = y + (slope - before["slope"]) * (rho[j] - rho[i])
        if drawn:
            y = y + drawn * random.standard_normal(y.shape)
        before |= {"u": u, "slope": slope}
    return levels.alpha[-1] * y


NAMES = [info.name for info in sd_ext.list_samplers() if "cfg++" in info.name]


@over("name", NAMES)
@over("scale", [0.6, 1.5, 7.5])
def test_tables_are_the_published_formulas(name, scale):
    for calls in (1, 2, 5, 9):
        scheduler = sd_ext.make_scheduler(name, SD, grid="karras")
        scheduler.set_timesteps(calls)
        table = scheduler.table()
        assert table.fields == 2
        x = NONE.sample(20, table.levels.alpha[0], table.levels.sigma[0], seed=calls)
        got = run_table(table, Guided(scale), x, seed=3, free=NONE)
        wanted = defined(name, scheduler, Guided(scale), x / table.levels.alpha[0], seed=3)
        np.testing.assert_allclose(got, wanted, atol=1e-9)


PLAIN = [name for name in NAMES if not name.startswith("gradient")]  # whose last call has no correction


@over("name", PLAIN)
def test_without_guidance_each_is_its_plain_sampler(name):
    """p = u: the weights of both fields add up to the plain sampler's."""
    for calls in (1, 4, 7):
        tables = []
        for each in (name, name.removesuffix(" cfg++")):
            scheduler = sd_ext.make_scheduler(each, SD, grid="karras")
            scheduler.set_timesteps(calls)
            tables.append(scheduler.table())
        x = PROMPT.sample(20, tables[0].levels.alpha[0], tables[0].levels.sigma[0], seed=1)
        ends = [run_table(table, PROMPT, x, seed=2) for table in tables]
        np.testing.assert_allclose(*ends, atol=1e-9)


def test_in_a_pipeline(tiny_pipeline):
    """The unconditional half is the network's own: the same latents as a loop written out, and refused without it."""
    pipe = tiny_pipeline
    pipe.scheduler = sd_ext.make_scheduler("euler cfg++", pipe.scheduler.config)

    def draw(scale, calls=4):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "a b", num_inference_steps=calls, guidance_scale=scale, generator=generator, output_type="latent"
        ).images

    with pytest.raises(InputError, match=r"call pipe\.scheduler\.attach\(pipe\) once"):
        draw(1.8)
    attach(pipe)
    try:
        got = draw(1.8)
    finally:
        detach(pipe)
    words, nothing = pipe.encode_prompt("a b", "cpu", 1, True)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    levels = scheduler.levels
    x = torch.randn(got.shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            u, c = pipe.unet(torch.cat([x, x]), t, torch.cat([nothing, words])).sample.chunk(2)
            alpha, sigma, after, less = (
                float(v) for v in (levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1])
            )
            guided = u + 1.8 * (c - u)
            x = after * (x - sigma * guided) / alpha + less * u
    torch.testing.assert_close(got, x, atol=2e-4, rtol=2e-4)
