"""Fits as data, and between two strengths of guidance."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from sd_ext.errors import InputError
from sd_ext.schedulers import Calibration, Fit, Levels
from sd_ext.schedulers.calibrated.between import between, excess, on_first_order, same_kind
from sd_ext.schedulers.schedule import ZERO
from sd_ext.schedulers.table import Row, build

from ..gaussian import end_of_run
from ..over import over
from .family import FLOW, SCHEDULE, calibration, companion_of, fit, table_at

KINDS = [
    {"basis": basis, "fields": fields, "preserves": preserves, "schedule": schedule}
    for basis, fields, preserves, schedule in product(("x0", "eps"), (1, 2), ("marginal", "mean"), (SCHEDULE, FLOW))
    if (basis, preserves) != ("eps", "mean")
]


def same(one, other, tolerance=0.0):
    for name in ("t", "alpha", "sigma"):
        np.testing.assert_allclose(getattr(one.levels, name), getattr(other.levels, name), rtol=0, atol=tolerance)
    np.testing.assert_allclose(one.rows, other.rows, rtol=0, atol=tolerance)
    assert (one.basis, one.fields, one.preserves) == (other.basis, other.fields, other.preserves)


# ---- as data ---------------------------------------------------------------------------------------------------------


@over("kind", KINDS)
def test_json_keeps_every_number(kind):
    one = Fit(5, 7.5, table := table_at(7.5, **kind), companion_of(table) if kind["fields"] == 2 else None, "ddim")
    made = calibration(one, Fit(6, 7.5, None, None, "dpm++ 2m karras"))
    text = json.dumps(made.to_config(), allow_nan=False)
    again = Calibration.from_config(json.loads(text))
    assert again.to_config() == made.to_config()
    same(again.fits[0].table, one.table)
    if one.companion is not None:
        same(again.fits[0].companion, one.companion)
    assert again.fits[1].table is None and again.provenance == made.provenance


def test_what_is_measured_survives():
    again = Calibration.from_config(json.loads(json.dumps(calibration().to_config())))
    for one, other in zip(calibration().fits, again.fits, strict=True):
        assert (one.calls, one.guidance, one.known, one.grid) == (other.calls, other.guidance, other.known, other.grid)
        assert one.errors == other.errors and one.starts == other.starts
    assert again.calls == (4, 5) and again.guidance == (1.5, 4.0, 7.5)


def noisy_table():
    levels = SCHEDULE.at(np.array([900.0, 300.0])).then(ZERO)
    return build(levels, [Row(0.1, (levels.alpha[1] - 0.1 * levels.alpha[0],), noise=0.2), Row(0, (1,))], "x0", "mean")


def climbing():
    table = table_at(4.0)
    levels = table.levels
    return replace(table, levels=Levels(levels.t[[0, 2, 1, 3, 4, 5]], levels.alpha, levels.sigma))


REFUSED = {
    "another count": (lambda: replace(fit(4.0), calls=6), "table of 5 calls"),
    "noise": (lambda: Fit(2, 4.0, noisy_table(), None, "ddim"), "noise or a stash"),
    "keeps nothing": (
        lambda: replace(fit(4.0), table=replace(table_at(4.0), preserves="nothing")),
        "at least the mean",
    ),
    "no such call": (lambda: replace(fit(4.0), starts={5: True}), "start at call 5"),
    "guidance below 1": (lambda: Fit(5, 0.5, None, None, "ddim"), "at least 1"),
    "no known": (lambda: Fit(5, 4.0, None, None, " "), "names no known sampler"),
    "lone companion": (lambda: Fit(5, 4.0, None, companion_of(table_at(4.0)), "ddim"), "only a table of two fields"),
    "companion elsewhere": (
        lambda: replace(fit(4.0), companion=companion_of(table_at(7.5))),
        "companion on other levels",
    ),
    "told timesteps climb": (lambda: Fit(5, 4.0, climbing(), None, "ddim"), "told timesteps that do not fall"),
    "no fits": (lambda: Calibration(()), "1 to 1000 fits"),
    "two for one": (lambda: calibration(fit(4.0), fit(4.0)), "two fits are for 5 calls at guidance 4"),
    "a path of this machine": (lambda: calibration(model="/home/me/model"), "not the path"),
    "a path of another machine": (lambda: calibration(model="C:\\me\\model"), "not the path"),
    "provenance of another type": (lambda: calibration(size=[64]), "size must be"),
    "provenance that is no JSON": (lambda: calibration(more={1, 2}), "plain JSON"),
    "provenance with NaN": (lambda: calibration(more=float("nan")), "plain JSON"),
}


@over("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(case):
    make, says = REFUSED[case]
    with pytest.raises(InputError, match=says):
        make()


def set_at(config, path, value):
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value


DAMAGED = [
    (("format",), "sd_ext.calibration/9", "expected 'format'"),
    (("fits",), {}, "fits must be"),
    (("fits", 0, "calls"), True, r"calls must be a whole number"),
    (("fits", 0, "calls"), 10**12, r"1 to 1000 calls"),
    (("fits", 0, "guidance"), float("nan"), "guidance must be a number"),
    (("fits", 0, "known"), 3, "known must be text"),
    (("fits", 0, "errors", "fitted"), float("inf"), "errors.fitted must be a number"),
    (("fits", 0, "starts"), {"two": True}, "must be the number of a call"),
    (("fits", 0, "starts"), {"2": 1}, "starts.2 must be true or false"),
    (("fits", 0, "table"), [], "table must be"),
    (("fits", 0, "table", "rows"), [[1.0]], r"fits\[0\]: table: .*rows"),
    (("fits", 0, "table", "rows", 1, 0, 2), 9.5, r"fits\[0\]: table: call 1 turns a constant picture"),
    (("provenance",), [], "provenance must be"),
]


@over("path, value, says", DAMAGED)
def test_damaged_json_is_refused_with_its_place(path, value, says):
    config = json.loads(json.dumps(calibration(fit(4.0)).to_config()))
    set_at(config, path, value)
    with pytest.raises(InputError, match=says):
        Calibration.from_config(config)


# ---- over guidance ---------------------------------------------------------------------------------------------------


@over("kind", KINDS)
def test_between_two_fits_lies_their_family(kind):
    """Ends and a middle that is known, since the family is straight; and all between keep what tables keep."""
    low, high = table_at(1.5, **kind), table_at(7.5, **kind)
    same(between(low, high, 0.0), low, 1e-11)
    same(between(low, high, 1.0), high, 1e-11)
    for part in (0.25, 0.8):
        table, known = between(low, high, part), table_at(1.5 + 6 * part, **kind)
        told = known.levels.t  # straight in lambda, so that timesteps are a little off
        np.testing.assert_allclose(table.levels.t, (1 - part) * low.levels.t + part * high.levels.t)
        assert np.abs(table.levels.t - told).max() < 10
        same(replace(table, levels=replace(table.levels, t=told)), known, 1e-11)
        mean, std = end_of_run(table, 0.7, 0.0)
        assert abs(mean - 0.7) < 1e-12
        assert table.preserves == "mean" or std < 1e-12


def test_histories_of_other_lengths_meet():
    low, high = table_at(1.5, history=2), table_at(7.5, history=4)
    middle = between(low, high, 0.5)
    assert middle.history == 4
    np.testing.assert_allclose(excess(middle), (excess(low, 4) + excess(high, 4)) / 2, atol=1e-12)


def test_excess_and_first_order_steps_make_the_table_again():
    for kind in KINDS:
        table = table_at(4.0, **kind)
        same(on_first_order(table.levels, excess(table), table), table, 1e-14)


def test_fits_are_found_at_their_own_strength_unchanged():
    made = calibration()
    for one in made.fits:
        found, note = made.at(one.calls, one.guidance)
        assert found.table is one.table and found.companion is one.companion and not note
        assert found.errors == one.errors


def test_between_strengths_both_tables_are_interpolated():
    found, note = calibration().at(5, 3.0)
    assert not note and not found.errors and (found.calls, found.guidance) == (5, 3.0)
    low, high = table_at(1.5), table_at(4.0)
    same(found.table, between(low, high, 0.6))
    same(found.companion, between(companion_of(low), companion_of(high), 0.6))
    assert found.starts == {2: True, 3: False} and found.known == "dpm++ 2m karras"


def test_a_start_wins_between_two_fits_where_it_wins_in_both():
    low, high = replace(fit(1.5), starts={1: True, 2: True}), replace(fit(4.0), starts={1: True, 2: False, 3: True})
    assert calibration(low, high).at(5, 2.0)[0].starts == {1: True, 2: False}


def test_what_was_not_fitted_is_said():
    made = calibration(fit(4.0), fit(7.5), Fit(8, 4.0, None, None, "unipc"), Fit(8, 7.5, None, None, "dpm++ 3m"))
    for guidance, used in ((1.0, 4.0), (12.0, 7.5), (0.0, 4.0)):
        found, note = made.at(5, guidance)
        same(found.table, table_at(used))
        assert f"for guidance 4 to 7.5 and not for {max(guidance, 1):g}: {used:g} is used" in note
        assert not found.errors  # measured elsewhere
    found, note = made.at(6, 5.0)
    assert found.table is None and found.calls == 6
    assert note == "fitted for 5, 8 calls and not for 6: dpm++ 2m karras makes them"
    assert made.at(30, 7.0)[0].known == "dpm++ 3m"
    assert made.at(8, 4.5) == made.at(8, 4.5) or made.at(8, 4.5)[0].known == "unipc"
    assert not made.at(8, 4.5)[1]  # the report said that known samplers win


def test_fits_of_other_kinds_are_not_mixed():
    low = fit(1.5)
    others = [replace(fit(4.0), grid="karras"), replace(fit(4.0), table=table_at(4.0, basis="eps"), companion=None)]
    others += [Fit(5, 4.0, None, None, "unipc")]
    assert not same_kind(low.table, others[1].table)
    for other in others:
        for guidance, used in ((2.0, low), (3.5, other)):
            found, note = calibration(low, other).at(5, guidance)
            assert found.table is used.table and "fitted in different ways" in note
    assert calibration(low, replace(fit(4.0), companion=None)).at(5, 2.0)[0].companion is None
