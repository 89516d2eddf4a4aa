"""The one law of the engine: any table is executed as its matrices say, whatever the network predicts.

What is proven here for random tables holds for every sampler, since a sampler is its table: positions, prediction
types, hooks, precision, noise, batches, copies and threads need no proof for each. It is proven for the modules of the
package and for the file that an exported sampler carries, which is put together from them.
"""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from sd_ext.board import BOARD
from sd_ext.errors import InputError
from sd_ext.schedulers import prediction
from sd_ext.schedulers import run as engine
from sd_ext.schedulers.table import P0, STASH, Table

from .over import over
from .random_tables import RandomScheduler, random_levels, random_rows

OUTPUT = {
    "epsilon": lambda x0, eps, alpha, sigma: eps,
    "sample": lambda x0, eps, alpha, sigma: x0,
    "v_prediction": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "flow_prediction": lambda x0, eps, alpha, sigma: eps - x0,
}
"""What a network of each kind returns where x = alpha x0 + sigma eps."""


def clip(x0: torch.Tensor) -> torch.Tensor:
    return x0.clamp(-0.5, 0.5)


@pytest.fixture(params=["package", "exported file"])
def code(request):
    """Where `Run` is taken from."""
    return engine if request.param == "package" else request.getfixturevalue("exported_file")


def by_matrices(table: Table, kind: str, hook, x: torch.Tensor, noises: list[torch.Tensor]):
    """A run as it is defined, x' and stash' = rows[i] @ slots. Yields the network's outputs, one for each field, x' and
    the first field's x0.
    """
    slots = torch.zeros(table.rows.shape[2], *x.shape, dtype=torch.float64)
    slots[0] = x
    for i, row in enumerate(torch.tensor(table.rows)):
        alpha, sigma, outputs, x0s = float(table.levels.alpha[i]), float(table.levels.sigma[i]), [], []
        for field in range(table.fields):
            x0 = torch.tanh(slots[0] + i - field)
            outputs.append(OUTPUT[kind](x0, (slots[0] - alpha * x0) / sigma, alpha, sigma))
            x0s.append(hook(x0) if hook else x0)
        for first, x0 in zip(range(P0, len(slots) - 1, table.history), x0s, strict=True):
            slots[first + 1 : first + table.history] = slots[first : first + table.history - 1].clone()
            slots[first] = x0 if table.basis == "x0" else (slots[0] - alpha * x0) / sigma
        slots[-1] = noises[i]
        slots[: STASH + 1] = torch.einsum("oj,j...->o...", row, slots)
        yield outputs, slots[0].clone(), x0s[0]


def random_run(trial: int, fields: int = 1):
    rng = np.random.default_rng(trial)
    calls, history = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    rows = random_rows(rng, calls, history, fields=fields)
    table = Table(random_levels(rng, calls), rows, ("x0", "eps")[trial % 2], "nothing", fields)
    generator = torch.Generator().manual_seed(trial)
    x, *noises = torch.randn(calls + 1, 2, 3, dtype=torch.float64, generator=generator).unbind()
    return table, x, noises


@over("kind", OUTPUT)
@over("fields", [1, 2])
@over("trial", range(20), full=range(1000))
def test_a_table_is_executed_as_its_matrices(kind, fields, trial, code):
    table, x, noises = random_run(trial, fields)
    for hook in (None, clip):
        run, state = code.Run(table, kind, hook), x
        for i, (outputs, expected, x0) in enumerate(by_matrices(table, kind, hook, x, noises)):
            call = run.calls[i]
            torch.testing.assert_close(run.denoised(call, state, outputs[0]), x0, atol=1e-11, rtol=1e-11)
            second = outputs[1] if call.second else None  # what is not asked for is not needed
            made = [state.clone(), outputs[0], noises[i] if call.noisy else None, second]
            for _ in range(i % 3):  # a call that is taken back leaves no trace
                run.advance(made[0] + 1, outputs[0] - 1, *made[2:])
                run.back()
            state = run.advance(*made)
            torch.testing.assert_close(state, expected, atol=1e-11, rtol=1e-11)
            kept = [tensor for tensor in (run.stash, *run.past, *run.second) if tensor is not None]
            most = fields * (table.history - 1) + 1  # predictions of earlier calls, and a stash
            assert len({tensor.data_ptr() for tensor in kept}) <= most


@over("fields", [1, 2])
def test_the_law_notices_a_wrong_weight(code, fields):
    """It has teeth: every weight of a run matters, to the eleventh digit."""
    table, x, noises = random_run(7, fields)
    rows = table.rows.copy()
    places = np.argwhere(rows[:-1, 0])
    assert len(places) > 5
    for call, slot in places:
        rows[call, 0, slot] *= 1 + 1e-7
        wrong = Table(table.levels, rows, table.basis, "nothing", fields)
        run, state, worst = code.Run(wrong, "epsilon"), x, 0.0
        for i, (outputs, expected, _) in enumerate(by_matrices(table, "epsilon", None, x, noises)):
            state = run.advance(state.clone(), outputs[0], noises[i], outputs[-1])
            worst = max(worst, float((state - expected).abs().max()))
        assert worst > 1e-10
        rows[call, 0, slot] = table.rows[call, 0, slot]


@over("kind", OUTPUT)
@over("basis", ["x0", "eps"])
@over("alpha, sigma", [(0.6, 0.8), (0.3, 0.7), (1e-6, 1.0), (1.0, 1e-6), (0.0, 1.0), (1.0, 0.0)])
def test_predictions_are_read_right_at_every_level(kind, basis, alpha, sigma):
    """Also where x is a picture, or noise, or nearly. Noise alone says nothing of x0, nor a picture of the noise."""
    divisor = {"epsilon": alpha, "sample": sigma}.get(kind, 1.0)
    x0, eps = np.random.default_rng(0).normal(size=2)
    if divisor == 0:
        with pytest.raises(ZeroDivisionError):
            prediction.linear_map(kind, basis, alpha, sigma)
        return
    cx, cm = prediction.linear_map(kind, basis, alpha, sigma)
    got = cx * (alpha * x0 + sigma * eps) + cm * OUTPUT[kind](x0, eps, alpha, sigma)
    assert got == pytest.approx(x0 if basis == "x0" else eps, abs=1e-14 / divisor)


def test_another_prediction_type_is_refused():
    with pytest.raises(InputError, match=r"prediction_type must be one of .* got 'noise'"):
        prediction.linear_map("noise", "x0", 0.6, 0.8)


# ---- the scheduler around it -----------------------------------------------------------------------------------------


def network(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.3 * x.sum(1, keepdim=True) + 0.5 * x)


def seeds(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(n)]


def noise(batch: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.stack([torch.randn(4, 8, 8, generator=g) for g in seeds(batch)]).to(dtype)


def sample(scheduler, x, generator=None, begin=0):
    for t in scheduler.timesteps[begin:]:
        BOARD.write(t, network(0.9 * x), alone=True)  # for tables of two fields
        x = scheduler.step(network(x), t, x, generator=generator).prev_sample
    return x


def scheduler(calls: int = 8, **options):
    made = RandomScheduler(**options)
    made.set_timesteps(calls)
    return made


SEEDS = range(4)
"""Of the tables; each kind of stash is among them."""


@over("seed", SEEDS)
@over("basis", ["x0", "eps"])
@over("begin", [0, 3, 7])
@over("fields", [1, 2])
def test_a_run_from_any_call_is_the_table_of_that_start(fields, begin, basis, seed):
    """Announced or found by its timestep; noise is drawn where a row has it, and only there. A call made twice, once
    for a look, is as one made once.
    """
    one = scheduler(seed=seed, basis=basis, fields=fields)
    table, start = one.table(begin), noise(dtype=torch.float64)
    generators, noises = seeds(3), []
    for row in table.rows:
        drawn = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators]) if row[:, -1].any() else start
        noises.append(drawn.double())
    for announced in (True, False):
        one.set_timesteps(8)
        if announced:
            one.set_begin_index(begin)
            assert one.begin_index == begin
        assert one.step_index is None
        x, generators = start, seeds(3)
        for i, (outputs, expected, x0) in enumerate(by_matrices(table, "epsilon", None, x, noises), begin):
            for drawing in (*[seeds(3)] * (i % 3), generators):
                BOARD.write(one.timesteps[i], torch.cat([outputs[-1], outputs[0]]))
                out = one.step(outputs[0], one.timesteps[i], x, generator=drawing)
            x = out.prev_sample
            torch.testing.assert_close(x, expected, atol=1e-10, rtol=1e-10)
            torch.testing.assert_close(out.pred_original_sample, x0, atol=1e-10, rtol=1e-10)
            assert one.step_index == i + 1


@over("dtype", [torch.float16, torch.bfloat16])
@over("seed", SEEDS)
def test_half_precision_accumulates_in_float32(dtype, seed):
    """One call in half precision equals the float32 call on the same inputs, rounded once; one seed is one noise."""
    half, full = scheduler(seed=seed), scheduler(seed=seed)
    x, one, other = noise(dtype=dtype), seeds(3), seeds(3)
    for t in half.timesteps:
        m = network(x.float()).to(dtype)
        got = half.step(m, t, x, generator=one)
        exact = full.step(m.float(), t, x.float(), generator=other)
        assert got.prev_sample.dtype == got.pred_original_sample.dtype == dtype
        torch.testing.assert_close(got.prev_sample, exact.prev_sample.to(dtype), atol=0, rtol=0)
        torch.testing.assert_close(got.pred_original_sample, exact.pred_original_sample.to(dtype), atol=0, rtol=0)
        x = got.prev_sample


@over("seed", SEEDS)
def test_a_sample_does_not_depend_on_its_batch(seed):
    one = scheduler(seed=seed)
    together = sample(one, noise(3), seeds(3))
    one.set_timesteps(8)
    torch.testing.assert_close(sample(one, noise(3)[1:2], seeds(3)[1:2]), together[1:2], atol=1e-6, rtol=1e-6)
    one.set_timesteps(8)
    assert (sample(one, noise(3), torch.Generator().manual_seed(1)) - together).abs().max() > 1e-3


@over("seed", SEEDS)
def test_a_batch_may_grow_in_the_middle_of_a_run(seed):
    """As in TextToVideoZeroPipeline: what is kept of one frame serves all."""
    results = []
    for batch in (1, 3):
        one, x = scheduler(seed=seed), noise(1)
        for t in one.timesteps[:3]:
            x = one.step(network(x), t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        x = x.repeat(batch, 1, 1, 1)
        for t in one.timesteps[3:]:
            same = [torch.Generator().manual_seed(1) for _ in range(batch)]
            x = one.step(network(x), t, x, generator=same).prev_sample
        results.append(x)
    torch.testing.assert_close(results[1], results[0].repeat(3, 1, 1, 1), atol=1e-6, rtol=1e-6)


@over("seed", SEEDS)
def test_a_deep_copy_goes_on_with_the_run(seed):
    """As in pipelines that branch in the middle of a run; the branches do not touch each other."""
    one, x = scheduler(seed=seed), noise()
    for t in one.timesteps[:3]:
        x = one.step(network(x), t, x, generator=seeds(3)).prev_sample
    branch, state = copy.deepcopy(one), copy.deepcopy(one.__dict__)
    ends = [sample(s, x, seeds(3), begin=3) for s in (branch, one)]
    one.__dict__.update(state)  # as StableDiffusionPanoramaPipeline does for each view
    ends.append(sample(one, x, seeds(3), begin=3))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[1], ends[2])


def test_one_deep_copy_serves_several_branches():
    """As StableDiffusionPanoramaPipeline keeps it: one copied state, put back for every view before its step."""
    one = scheduler(5)
    views, latents = [copy.deepcopy(one.__dict__)] * 2, [noise(1), 2 * noise(1)]
    for t in one.timesteps:
        for j in range(2):
            one.__dict__.update(views[j])
            latents[j] = one.step(network(latents[j]), t, latents[j], generator=seeds(1)).prev_sample
            views[j] = copy.deepcopy(one.__dict__)
    for j, x in enumerate((noise(1), 2 * noise(1))):
        alone = scheduler(5)
        for t in alone.timesteps:
            x = alone.step(network(x), t, x, generator=seeds(1)).prev_sample
        torch.testing.assert_close(latents[j], x, atol=0, rtol=0)


def test_threads_share_one_scheduler():
    """Every thread gets its serial result from one object (#5749, #3672, #10738)."""
    one = scheduler()

    def work(k: int) -> torch.Tensor:
        one.set_timesteps(5 + k)
        return sample(one, noise(), [torch.Generator().manual_seed(k + i) for i in range(3)])

    serial = [work(k) for k in range(16)]
    results: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda k=k: results.__setitem__(k, work(k))) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(16):
        torch.testing.assert_close(results[k], serial[k], atol=0, rtol=0)


def test_a_run_announced_elsewhere_can_be_stepped():
    one, done = scheduler(4), []
    thread = threading.Thread(target=lambda: done.append(sample(one, noise(), seeds(3))))
    thread.start()
    thread.join()
    torch.testing.assert_close(done[0], sample(scheduler(4), noise(), seeds(3)), atol=0, rtol=0)


def test_a_pickle_keeps_the_configuration_and_leaves_the_run_behind():
    one = scheduler(4, history=5)
    other = pickle.loads(pickle.dumps(one))
    assert other.config == one.config
    assert other.num_inference_steps is other.step_index is None
    other.set_timesteps(4)
    torch.testing.assert_close(sample(other, noise(), seeds(3)), sample(one, noise(), seeds(3)), atol=0, rtol=0)


def test_levels_are_announced():
    """What `set_timesteps` does for a count can be done with levels of one's own, and read again."""
    one, levels = RandomScheduler(), random_levels(np.random.default_rng(0), 6)
    with pytest.raises(InputError, match="levels needs a run"):
        _ = one.levels
    one.announce(levels)
    assert one.levels is levels and one.num_inference_steps == 6
    np.testing.assert_allclose(one.sigmas.numpy(), levels.ratio, rtol=1e-6)
    assert torch.isfinite(sample(one, noise(), seeds(3))).all() and one.step_index == 6
