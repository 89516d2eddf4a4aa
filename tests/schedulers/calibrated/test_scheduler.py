"""The scheduler of a calibration: which table runs, what is said, and how it is saved."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.board import BOARD
from sd_ext.errors import InputError
from sd_ext.schedulers import Fit, NoiseSchedule
from sd_ext.schedulers.calibrated.variants import with_noise
from sd_ext.schedulers.rest import from_call
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.schedule import ZERO

from ..conftest import SD
from ..over import over
from .family import PROVENANCE, calibration, companion_of, fit, table_at
from .test_fits import same

KNOWN = "dpm++ 2m karras"


def made(*fits, provenance=None, config=SD, **options) -> sd_ext.CalibratedScheduler:
    options = {"guidance_scale": 4.0, **options}
    return sd_ext.CalibratedScheduler.from_calibration(calibration(*fits, **(provenance or {})), config, **options)


@pytest.fixture
def said(caplog):
    """What the scheduler has said so far."""
    caplog.set_level(logging.WARNING, logger="sd_ext.schedulers")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("sd_ext.schedulers")]


def known_table(calls, begin=0, name=KNOWN):
    other = sd_ext.make_scheduler(name, SD)
    other.set_timesteps(calls)
    return other, other.table(begin)


# ---- which table -----------------------------------------------------------------------------------------------------


def test_what_was_fitted_runs_at_its_told_timesteps(said):
    scheduler = made()
    for calls in (4, 5):
        scheduler.set_timesteps(calls)
        same(scheduler.table(), table_at(4.0, calls))
        same(scheduler.companion(), companion_of(table_at(4.0, calls)))
        np.testing.assert_allclose(scheduler.timesteps, table_at(4.0, calls).levels.t[:-1], rtol=1e-6)
        assert scheduler.init_noise_sigma == 1.0
    assert not said()


def test_strength_is_an_option_and_may_lie_between(said):
    scheduler = made(guidance_scale=3.0)
    scheduler.set_timesteps(5)
    same(scheduler.table(), calibration().at(5, 3.0)[0].table)
    assert not said()
    scheduler = made(guidance_scale=30)
    for _ in range(3):
        scheduler.set_timesteps(5)
    same(scheduler.table(), table_at(7.5))
    assert len(said()) == 1 and "not for 30: 7.5 is used" in said()[0]


def test_a_strength_that_nobody_tells_is_the_middle_one_and_said_once(said):
    scheduler = made(guidance_scale=None)
    scheduler.set_timesteps(5)
    scheduler.set_timesteps(4)
    same(scheduler.table(), table_at(4.0, 4))
    assert len(said()) == 1 and "4 is taken: call pipe.scheduler.attach(pipe)" in said()[0]


@over("known", [KNOWN, "euler", "heun", "dpm++ 2s a"])
def test_other_counts_are_the_known_samplers_own_runs(known):
    scheduler = made(replace(fit(4.0), known=known))
    for calls in (3, 7):
        scheduler.set_timesteps(calls)
        other, _ = known_table(calls, name=known)
        assert torch.equal(scheduler.timesteps, other.timesteps) and torch.equal(scheduler.sigmas, other.sigmas)
        assert scheduler.init_noise_sigma == other.init_noise_sigma and scheduler.num_inference_steps == calls
        for begin in range(calls):
            same(scheduler.table(begin), other.table(begin))


def test_other_counts_are_said_once(said):
    scheduler = made()
    for calls in (7, 7, 8, 7):
        scheduler.set_timesteps(calls)
    assert [text.partition(": ")[2] for text in said()] == [
        f"fitted for 4, 5 calls and not for {calls}: {KNOWN} makes them" for calls in (7, 8)
    ]


def test_a_count_for_which_the_known_sampler_won_is_its_run_without_a_word(said):
    scheduler = made(Fit(5, 4.0, None, None, "unipc"))
    scheduler.set_timesteps(5)
    same(scheduler.table(), known_table(5, name="unipc")[1])
    assert not said()


def test_starts_in_the_middle(said):
    """Call 2 is recorded to win, 3 to lose, and of 1 and 4 nothing is known."""
    scheduler = made()
    scheduler.set_timesteps(5)
    whole = table_at(4.0)
    same(scheduler.table(2), from_call(whole, 2))
    same(scheduler.companion(2), from_call(companion_of(whole), 2))
    assert not said()
    for begin in (3, 1, 4):
        rest = scheduler.table(begin)
        assert rest.fields == 1 and rest.calls == 5 - begin and scheduler.companion(begin) is None
        levels = rest.levels
        assert (levels.alpha[0], levels.sigma[0]) == (whole.levels.alpha[begin], whole.levels.sigma[begin])
        own = scheduler.schedule.at(whole.levels.t[begin + 1 : -1])  # from there on the told timesteps are right
        np.testing.assert_allclose(levels.alpha[1:-1], own.alpha)
        same(rest, sd_ext.make_scheduler(KNOWN, SD)._table(levels, 0.0))
        scheduler.set_begin_index(begin)
    assert [text.partition(": ")[2] for text in said()] == [
        f"nothing was fitted for a start at call {begin} of 5: {KNOWN} makes the rest" for begin in (1, 4)
    ]


def test_a_known_sampler_that_places_calls_of_its_own_leaves_the_rest_to_another(said):
    scheduler = made(replace(fit(4.0), known="heun", starts={}))
    scheduler.set_timesteps(5)
    same(scheduler.table(3), sd_ext.make_scheduler("dpm++ 2m", SD)._table(scheduler.table(3).levels, 0.0))
    assert "dpm++ 2m makes the rest" in said()[0]
    assert made(replace(fit(4.0), known="auto", starts={})).fitted.fits[0].known == "auto"
    auto = made(replace(fit(4.0), known="auto", starts={}))
    auto.set_timesteps(5)
    assert auto.table(2).calls == 3


def test_timesteps_and_sigmas_of_the_callers_own(said):
    scheduler, whole = made(), table_at(4.0)
    for given in ({"timesteps": whole.levels.t[:-1]}, {"sigmas": whole.levels.ratio}):
        scheduler.set_timesteps(**given)
        same(scheduler.table(), whole)
    assert not said()
    scheduler.set_timesteps(timesteps=[900, 600, 300, 100, 20])
    other = sd_ext.make_scheduler(KNOWN, SD)
    other.set_timesteps(timesteps=[900, 600, 300, 100, 20])
    same(scheduler.table(), other.table())
    assert len(said()) == 1 and f"{KNOWN} makes these runs" in said()[0]
    scheduler.announce(other.levels)
    same(scheduler.table(), other.table())


def test_a_start_between_the_timesteps_is_the_known_samplers(said):
    scheduler, x = made(), torch.randn(1, 4, 3, 3)
    scheduler.set_timesteps(5)
    rest = scheduler.timesteps[scheduler.timesteps < 500]
    for t in (torch.tensor(500.0), *rest):
        x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
    assert torch.isfinite(x).all() and any(KNOWN in text for text in said())


def test_noise_on_top(said):
    scheduler = made(eta=0.7)
    scheduler.set_timesteps(5)
    same(scheduler.table(), with_noise(table_at(4.0), 0.7))
    same(scheduler.companion(), with_noise(companion_of(table_at(4.0)), 0.7))
    assert scheduler.table(2).stochastic and scheduler.table(3).stochastic
    assert not said()
    scheduler.set_timesteps(7)
    same(scheduler.table(), with_noise(known_table(7)[1], 0.7))
    other = made(Fit(5, 4.0, None, None, "heun"), eta=0.7)
    other.set_timesteps(5)
    assert not other.table().stochastic and "heun takes no noise, eta 0.7 is not used" in said()[-1]
    with pytest.raises(InputError, match="cannot take noise; set eta to 0"):
        made(Fit(5, 4.0, table_at(4.0, basis="eps"), None, KNOWN), eta=0.7).set_timesteps(5)


# ---- on tensors ------------------------------------------------------------------------------------------------------


def network(x):
    return torch.tanh(1.5 * x), torch.tanh(0.7 * x)


def run(scheduler, calls, begin=0, left=True, seed=0):
    """A run with a made-up network whose unconditional half is left on the board or not."""
    scheduler.set_timesteps(calls)
    scheduler.set_begin_index(begin)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for t in scheduler.timesteps[begin:]:
        m, u = network(x)
        if left:
            BOARD.write(t, u, alone=True)
        x = scheduler.step(m, t, x, return_dict=False)[0]
    return x


def by_hand(table, seed=0):
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    past = [[], []]
    for i, row in enumerate(table.rows[:, 0]):
        alpha, sigma = table.levels.alpha[i], table.levels.sigma[i]
        new = row[0] * x
        for field, eps in enumerate(network(x)[: table.fields]):
            past[field].insert(0, (x - sigma * eps) / alpha)
            for j, p in enumerate(past[field][: table.history]):
                new = new + row[2 + field * table.history + j] * p
        x = new
    return x


def test_two_fields_with_a_board_and_the_companion_without(said):
    scheduler, whole = made(), table_at(4.0)
    torch.testing.assert_close(run(scheduler, 5), by_hand(whole))
    torch.testing.assert_close(run(scheduler, 5, begin=2), by_hand(from_call(whole, 2)))
    assert not said()
    for _ in range(2):
        torch.testing.assert_close(run(scheduler, 5, left=False), by_hand(companion_of(whole)))
    assert len(said()) == 1 and "table of one field runs" in said()[0] and "attach(pipe)" in said()[0]
    torch.testing.assert_close(run(scheduler, 5), by_hand(whole))  # the next run has them again


def test_two_fields_without_board_and_companion_say_what_to_call():
    scheduler = made(replace(fit(4.0), companion=None))
    with pytest.raises(InputError, match=r"call pipe\.scheduler\.attach\(pipe\) once after loading"):
        run(scheduler, 5, left=False)


def test_noise_is_added_for_the_level_of_the_latent():
    """A fit tells the network another timestep than that of the latent's noise; image to image starts at the latent."""
    scheduler, x0, noise = made(), torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    plain = sd_ext.make_scheduler(KNOWN, SD)
    t = torch.tensor([421, 3])
    torch.testing.assert_close(scheduler.add_noise(x0, noise, t), plain.add_noise(x0, noise, t))
    scheduler.set_timesteps(5)
    levels = table_at(4.0).levels
    for call in (2, 4):
        told = scheduler.timesteps[call : call + 1].repeat(2)
        added = scheduler.add_noise(x0, noise, told)
        torch.testing.assert_close(added, levels.alpha[call] * x0 + levels.sigma[call] * noise, check_dtype=False)
        assert not torch.allclose(added, plain.add_noise(x0, noise, told), atol=1e-3)
        half = scheduler.add_noise(x0.half(), noise.half(), told)
        assert torch.equal(half, (levels.alpha[call] * x0.half().float() + levels.sigma[call] * noise.half()).half())
    torch.testing.assert_close(scheduler.add_noise(x0, noise, t), plain.add_noise(x0, noise, t))
    scheduler.set_begin_index(3)  # from there the known sampler goes on, at the levels of the told timesteps
    for call in (3, 4):
        level = scheduler.table(3).levels[call - 3 :]
        told = scheduler.timesteps[call : call + 1]
        expected = level.alpha[0] * x0 + level.sigma[0] * noise
        torch.testing.assert_close(scheduler.add_noise(x0, noise, told), expected, check_dtype=False)
    scheduler.set_timesteps(7)
    told = scheduler.timesteps[2:3]
    torch.testing.assert_close(scheduler.add_noise(x0, noise, told), plain.add_noise(x0, noise, told))


def test_threads_have_runs_of_their_own():
    scheduler = made()
    alone = {seed: run(made(), 4 + seed % 4, seed=seed, left=seed % 2 == 0) for seed in range(8)}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda seed: run(scheduler, 4 + seed % 4, seed=seed, left=seed % 2 == 0), range(8)))
    for seed, result in enumerate(results):
        assert torch.equal(result, alone[seed]), seed


# ---- configs ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(tmp_path, said):
    scheduler = made(guidance_scale=None, eta=0.5, config={**SD, "timestep_spacing": "trailing"})
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    config = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert config["_class_name"] == "CalibratedScheduler" and config["calibration"]["provenance"] == PROVENANCE
    assert sum(line.lstrip().startswith('{"calls"') for line in text.splitlines()) == 6  # a fit a line
    for again in (
        sd_ext.CalibratedScheduler.from_pretrained(tmp_path), copy.deepcopy(scheduler), copy.copy(scheduler),
        pickle.loads(pickle.dumps(scheduler)), sd_ext.CalibratedScheduler.from_config(scheduler.config),
    ):  # fmt: skip
        assert config.items() <= json.loads(again.to_json_string()).items()  # what is of the process may be said, too
        for calls in (5, 7):
            again.set_timesteps(calls)
            scheduler.set_timesteps(calls)
            for begin in (0, 2, 3):
                same(again.table(begin), scheduler.table(begin))
    assert len(repr(scheduler)) < 200 and "4, 5 calls at guidance 1.5, 4, 7.5" in repr(scheduler)


def test_its_folder_is_ready_for_the_hub(tmp_path):
    scheduler = made(fit(4.0), Fit(8, 4.0, None, None, "unipc"), provenance={"model": "a|b<c>", "lora": {"d": 1}})
    scheduler.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "scheduler_config.json"]
    text = (tmp_path / "README.md").read_text()
    assert "| 5 | 4 | a table of two fields | 0.05 |  | dpm++ 2m karras | 1 |  |" in text
    assert "| 8 | 4 | the known sampler |" in text
    assert "# Calibrated sampler for a\\|b&lt;c>" in text and "- size in pixels: 64 x 64" in text
    assert "- LoRAs: d 1" in text and "- teacher: sampler dpm++ 2m, calls 72" in text
    again = sd_ext.CalibratedScheduler.from_pretrained(tmp_path)
    made().save_pretrained(tmp_path)
    assert "# Calibrated sampler for tiny" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    again.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_from_a_diffusers_config_and_back(name, tmp_path):
    theirs = getattr(diffusers, name)(**SD, prediction_type="v_prediction")
    scheduler = made(config=theirs.config)
    assert scheduler.config["prediction_type"] == "v_prediction" and scheduler.config["beta_end"] == SD["beta_end"]
    back = type(theirs).from_config(scheduler.config)
    assert {k: v for k, v in back.config.items() if k in theirs.config and k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    ours = getattr(sd_ext, name).from_config(scheduler.config)
    ours.save_pretrained(tmp_path)
    for config in (ours.config, type(ours).load_config(tmp_path)):
        again = sd_ext.make_scheduler("calibrated", config, guidance_scale=4.0)
        again.set_timesteps(5)
        same(again.table(), table_at(4.0))


@pytest.mark.parametrize("name", sorted({info.cls.__name__ for info in sd_ext.list_samplers()}))
def test_any_class_of_ours_takes_its_config_and_gives_it_back(name, tmp_path):
    scheduler, cls = made(guidance_scale=None), getattr(sd_ext, name)
    scheduler.save_pretrained(tmp_path)
    for config in (scheduler.config, cls.load_config(tmp_path)):
        other = cls.from_config(config)
        assert other.config["beta_end"] == SD["beta_end"]
        assert sd_ext.make_scheduler("calibrated", other.config).fitted.calls == scheduler.fitted.calls


@pytest.mark.parametrize("cls", [diffusers.EulerDiscreteScheduler, diffusers.UniPCMultistepScheduler])
def test_what_prints_a_config_prints_no_tables(cls, caplog):
    caplog.set_level(logging.WARNING, logger="diffusers")
    diffusers.logging.enable_propagation()
    scheduler = made()
    for each in (scheduler, copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        cls.from_config(each.config)
    diffusers.logging.disable_propagation()
    found = [record.getMessage() for record in caplog.records if "calibration" in record.getMessage()]
    assert len(found) >= 3 and all("<a calibration of " in each and len(each) < 600 for each in found)
    assert json.loads(scheduler.to_json_string())["calibration"] == scheduler.fitted.to_config()


def test_the_known_sampler_is_that_of_the_models_config():
    """Also where a class has defaults of its own, as DDIM has of the spacing; and after saving."""
    scheduler = made(replace(fit(4.0), known="ddim"))
    again = sd_ext.CalibratedScheduler.from_config(json.loads(scheduler.to_json_string()))
    for one in (scheduler, again):
        one.set_timesteps(7)
        same(one.table(), known_table(7, name="ddim")[1])


def test_by_name():
    config = made(guidance_scale=7.5, eta=1.0).config
    scheduler = sd_ext.make_scheduler("Calibrated", config)
    assert type(scheduler) is sd_ext.CalibratedScheduler
    assert (scheduler.config["eta"], scheduler.config["guidance_scale"]) == (0.0, None)
    assert sd_ext.make_scheduler("calibrated", config, eta=0.5).config["eta"] == 0.5
    assert "calibrated" not in [info.name for info in sd_ext.list_samplers()]
    for wrong in ({"grid": "karras"}, {"like": "comfyui"}):
        with pytest.raises(InputError, match="has a grid of its own"):
            sd_ext.make_scheduler("calibrated", config, **wrong)
    for config in (SD, None):
        with pytest.raises(InputError, match=r"no calibration: make one with sd_ext\.calibrate\(pipe, prompts\)"):
            sd_ext.make_scheduler("calibrated", config)
    auto = sd_ext.make_scheduler("auto low guidance", made().config)  # its strength is not that of a pipeline
    assert made(config=auto.config, guidance_scale=None).config["guidance_scale"] is None


def test_what_cannot_be_is_refused_in_a_sentence(tmp_path):
    for known, says in (("no such sampler", "unknown sampler 'no such sampler'"), ("calibrated", "is fitted itself")):
        with pytest.raises(InputError, match=f"the fit for 5 calls at guidance 4: known: .*{says}"):
            made(replace(fit(4.0), known=known))
    with pytest.raises(InputError, match="names a known sampler in 100000 letters"):
        replace(fit(4.0), known="x" * 100_000)
    dark = NoiseSchedule.from_config({**SD, "rescale_betas_zero_snr": True})
    dark = first_order(dark.at(np.linspace(999, 100, 5)).then(ZERO))
    with pytest.raises(InputError, match="zero terminal SNR; prediction_type 'epsilon' cannot"):
        made(Fit(5, 4.0, dark, None, KNOWN))
    with pytest.raises(InputError, match="tells the network timestep 999; this model has 0 to 99"):
        made(config={**SD, "num_train_timesteps": 100})
    for options, says in (({"eta": 2.0}, "eta must be 0"), ({"guidance_scale": -1}, "guidance_scale must be 0 or more"),
                          ({"guidance_scale": "7"}, "guidance_scale must be")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            made(**options)
    with pytest.raises(InputError, match="calibration must be"):
        sd_ext.CalibratedScheduler(calibration=[1])
    made().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(path.read_text().replace('"calls":5', '"calls":6', 1))
    with pytest.raises(InputError, match=r"calibration: fits\[3\]: the fit for 6 calls .* has a table of 5 calls"):
        sd_ext.CalibratedScheduler.from_pretrained(tmp_path)
