"""Exported for those without this package: both tables, every start, and noise where the latents are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import sd_ext
from sd_ext.schedulers import Fit
from sd_ext.schedulers.export import _run, exported
from sd_ext.schedulers.rest import from_call

from ..over import over
from ..test_export import note, read, set_at
from .family import companion_of, fit, table_at
from .test_scheduler import made, network, said  # noqa: F401  (a fixture)


def runs(scheduler, calls, begin, left):
    """A run with a made-up network, from a picture where it begins in the middle."""
    scheduler.set_timesteps(calls)
    scheduler.set_begin_index(begin)
    generator = torch.Generator().manual_seed(begin)
    x = torch.randn(2, 4, 3, 3, generator=generator) * scheduler.init_noise_sigma
    if begin:
        x = scheduler.add_noise(x.sin(), x, scheduler.timesteps[begin : begin + 1].repeat(2))
    for t in scheduler.timesteps[begin:]:
        m, u = network(x)
        if left:
            note(scheduler).write(t, u, alone=True)
        x = scheduler.step(m, t, x, generator=generator, return_dict=False)[0]
    return x


CASES = {
    "two fields": (lambda: [fit(4.0), fit(4.0, 6)], {}),
    "with noise": (lambda: [fit(4.0)], {"eta": 0.6}),
    "one field": (lambda: [replace(fit(4.0), table=companion_of(table_at(4.0)), companion=None)], {}),
    "on eps, the known one on x0": (lambda: [fit(4.0, basis="eps")], {}),
    "the known one wins": (lambda: [Fit(5, 4.0, None, None, "euler")], {}),
    "between two": (lambda: [fit(1.5), fit(7.5, history=2)], {"clip_sample": True}),
}


@over("case", CASES)
def test_it_draws_the_same_to_the_bit(case, exported_file, tmp_path):
    fits, options = CASES[case]
    ours = made(*fits(), **options)
    theirs = exported_file.ExportedScheduler.from_pretrained(ours.export(tmp_path / "scheduler"))
    fields = ours.fitted.fits[0].table
    for calls in ours.fitted.calls:
        for begin in range(calls):
            for left in (True, False) if fields is not None and fields.fields == 2 else (False,):
                assert torch.equal(runs(ours, calls, begin, left), runs(theirs, calls, begin, left)), (begin, left)
    assert sorted(map(int, theirs.config["runs"])) == list(ours.fitted.calls)


def test_what_stands_in_the_file():
    """Starts that win are calls of the run, those the known sampler makes are tables of their own."""
    scheduler = made()
    scheduler.set_timesteps(5)
    run = json.loads(json.dumps(_run(scheduler), allow_nan=False))
    assert run["fields"] == 2 and run["apart"] and set(run["starts"]) == {"2"}
    assert set(run["late"]) == {"1", "3", "4"} and all("fields" not in part for part in run["late"].values())
    assert set(run["companions"]) == {"0", "2"}
    rest = from_call(table_at(4.0), 2)
    assert run["starts"]["2"]["2"][0][3] == rest.rows[0, 0, 2]


def test_one_strength_is_exported_and_said(tmp_path, said):  # noqa: F811
    scheduler = made(guidance_scale=7.5)
    scheduler.export(tmp_path / "scheduler", 4)
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert list(config["runs"]) == ["4"]
    assert config["runs"]["4"]["calls"][0][0][3] == table_at(7.5, 4).rows[0, 0, 2]
    assert len(said()) == 1 and "for one strength of guidance, here 7.5" in said()[0]
    scheduler.export(tmp_path / "scheduler", range(4, 8))
    assert [text.split(" not for ")[1][0] for text in said()[1:]] == ["6", "7"]


BAD = [
    (("late",), [], "late must hold tables"),
    (("late", "9"), {}, r"late\[9\] is not a table of a start"),
    (("late", "1", "alpha"), [1.0], r"late\[1\]\.alpha must be a list of 4 numbers"),
    (("late", "1", "calls", 0, 0, 3), "a", r"late\[1\], call 0 must hold finite numbers"),
    (("late", "1", "calls", 0, 0), [1, 0, 0, 1, 1], "reads before the start"),
    (("companions", "0", "fields"), 2, "a companion has one field"),
    (("companions", "0", "basis"), "x1", "basis must be"),
]


@over("path, value, says", BAD)
def test_tables_are_checked_on_load(path, value, says):
    scheduler = exported(made(fit(4.0)), 5)
    config = read(scheduler)
    set_at(config, ("runs", "5", *path), value)
    with pytest.raises(ValueError, match=says):
        type(scheduler)(**config)


def test_it_takes_the_place_of_others_and_others_of_it():
    theirs = exported(made(fit(4.0)), 5)
    assert sd_ext.make_scheduler("dpm++ 2m", theirs.config).config["beta_end"] == made().config["beta_end"]
