"""Runs as JSON: they come back as they were, match the schema, and are the same to the bit in JavaScript."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.interchange import from_json, interchanged, to_json

from .conftest import SD
from .over import NAMES, WITNESSES

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs" / "live" / "sampler.schema.json").read_text("utf-8"))
SHAPE = (2, 3)

OTHERS = [
    {**SD, "prediction_type": "v_prediction"},
    {**SD, "prediction_type": "sample"},
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "shift": 3.0},
    {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
    {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
]
"""Configs of other processes and predictions."""

SETTINGS = [
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"guidance_schedule": "linear"},
    {"guidance_schedule": "interval 0.3 5"},
]


class EachRounded(TorchFunctionMode):
    """Products are rounded before they are added, as IEEE 754 has it for two operations. Torch's kernels do both at
    once where the processor can, which JavaScript cannot.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in (torch.add, torch.Tensor.add, torch.Tensor.add_) or "alpha" not in kwargs:
            return func(*args, **kwargs)
        args = args[0], args[1] * kwargs.pop("alpha")
        return func(*args, **kwargs)


def announced(name, calls, config=SD, **options):
    scheduler = sd_ext.make_scheduler(name, config, **options)
    scheduler.set_timesteps(calls)
    return scheduler


def network(x, t):
    """Of operations that are rounded alike everywhere."""
    m = (x * 0.7 + t * 0.001) / (1 + x * x)
    return m, m * 0.5 - x * 0.25


def in_python(given, start, noise, halves=True):
    run, x = given.run(halves), start * given.init_noise_sigma
    for t, call, fresh in zip(given.timesteps, run.calls, noise, strict=True):
        m, second = network(x, t)
        x = run.advance(x, m, fresh if call.noisy else None, second if call.second else None)
    return x


def in_javascript(cases, dtype):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node, which runs the JavaScript, is not installed")
    asked = [
        {"run": given.to_dict(), "start": start.flatten().tolist(), "halves": halves,
         "noise": [each.flatten().tolist() for each in noise]}
        for given, start, noise, halves in cases
    ]  # fmt: skip
    script = Path(__file__).with_name("run_tables.mjs")
    text = json.dumps({"kind": str(dtype).removeprefix("torch."), "cases": asked})
    done = subprocess.run([node, script], input=text, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return [torch.tensor(each, dtype=dtype).reshape(SHAPE) for each in json.loads(done.stdout)]


def case(given, dtype=torch.float64, halves=True):
    generator = torch.Generator().manual_seed(len(given.timesteps))
    start, *noise = torch.randn(given.table.calls + 1, *SHAPE, generator=generator, dtype=dtype)
    return given, start, noise, halves


def with_companion():
    """A run of two fields, with the table that stands in where a network gives no halves."""
    two, one = (interchanged(announced(name, 5)) for name in ("dpm++ 2m cfg++", "dpm++ 2m"))
    return replace(two, companion=one.table)


def check_same_bits(runs):
    cases = [case(each, halves=halves) for each in runs for halves in ([True, False] if each.companion else [True])]
    with EachRounded():
        expected = [in_python(*each) for each in cases]
    for (given, *_), ours, theirs in zip(cases, expected, in_javascript(cases, torch.float64), strict=True):
        assert torch.equal(ours, theirs), (
            given.sampler,
            given.table.calls,
            given.prediction,
            (ours - theirs).abs().max(),
        )
        assert ours.isfinite().all()


def test_javascript_has_the_same_bits():
    runs = [interchanged(announced(name, 5)) for name in [*WITNESSES, "dpm++ 2m cfg++", "unipc 3", "restart"]]
    runs += [interchanged(announced("dpm++ 2m", 4, config)) for config in OTHERS]
    runs += [interchanged(announced("heun", 6, **setting)) for setting in SETTINGS]
    runs += [interchanged(announced("dpm++ 3m", 7), begin_index=3), with_companion()]
    check_same_bits(runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_has_the_same_bits_in_javascript(name):
    runs = [interchanged(announced(name, calls)) for calls in (1, 2, 3, 5, 8, 13, 20)]
    runs += [interchanged(announced(name, 8), begin_index=begin) for begin in (1, 4, 7)]
    runs += [interchanged(announced(name, 6, config)) for config in OTHERS[:3]]
    check_same_bits(runs)


def test_torch_itself_and_float32_agree_to_rounding():
    runs = [interchanged(announced(name, 8)) for name in WITNESSES]
    for dtype, close in [(torch.float64, 1e-12), (torch.float32, 3e-4)]:
        cases = [case(each, dtype) for each in runs]
        for each, theirs in zip(cases, in_javascript(cases, dtype), strict=True):
            torch.testing.assert_close(in_python(*each), theirs, rtol=close, atol=close)


def test_a_run_is_what_the_scheduler_does():
    """Its step, on the table's own road, gives what the run out of JSON gives."""
    scheduler = announced("dpm++ 2m sde", 6)
    given, start, noise, _ = case(from_json(to_json(scheduler)))
    x = start * scheduler.init_noise_sigma
    for t, fresh in zip(scheduler.timesteps, noise, strict=True):
        x = scheduler.step(network(x, float(t))[0], t, x, variance_noise=fresh).prev_sample
    assert torch.equal(x, in_python(given, start, noise))


def test_json_brings_everything_back():
    for name, options in [("dpm++ 2m cfg++", {}), ("euler a", {}), ("heun", SETTINGS[0]), ("euler", SETTINGS[1])]:
        given = interchanged(announced(name, 5, **options), begin_index=2, sampler=name)
        assert from_json(given.to_json()).to_dict() == given.to_dict()
    given = with_companion()
    assert from_json(given.to_json()).to_dict() == given.to_dict()
    assert given.companion and given.run(halves=False).table.fields == 1 and given.run().table.fields == 2


def validator():
    return pytest.importorskip("jsonschema").Draft202012Validator(SCHEMA)


def documents():
    for name, options in [("dpm++ 2m cfg++", {}), ("euler a", {}), ("heun", SETTINGS[0]), ("euler", SETTINGS[1])]:
        yield interchanged(announced(name, 3, **options)).to_dict()
    yield with_companion().to_dict()


def test_what_is_written_is_of_the_schema():
    schema = validator()
    schema.check_schema(SCHEMA)
    for document in documents():
        for each in (document, document["table"]):
            assert not list(schema.iter_errors(each))


WRONG = {
    "format": ("sd_ext.run/2", "'sd_ext.run/1'"),
    "prediction": ({"kind": "noise"}, "kind"),
    "prediction.sigma_data": (-1, "sigma_data"),
    "timesteps": (["late"], "timesteps"),
    "init_noise_sigma": (0, "init_noise_sigma"),
    "clip": (0, "clip"),
    "table": ({"format": "sd_ext.table/1"}, "basis"),
    "table.rows": ([[[1.0]]], "rows of shape"),
    "table.basis": ("v", "basis"),
    "companion": ({"format": "sd_ext.table/2"}, "basis"),
}


@pytest.mark.parametrize("path", WRONG)
def test_what_is_wrong_is_refused_in_a_sentence_and_by_the_schema(path):
    document = copy.deepcopy(next(documents()))
    *before, last = path.split(".")
    inner = document
    for name in before:
        inner = inner[name]
    inner[last], says = WRONG[path]
    with pytest.raises(InputError, match=re.escape(says)) as refused:
        from_json(json.dumps(document))
    assert "\n" not in str(refused.value)
    assert list(validator().iter_errors(document))


def test_runs_that_do_not_fit_together_are_refused():
    document = next(documents())
    for change, says in [
        ({"timesteps": document["timesteps"][:-1]}, "3 calls need as many timesteps, got 2"),
        ({"companion": document["table"]}, "a companion has one field"),
    ]:
        with pytest.raises(InputError, match=says):
            from_json(json.dumps(document | change))
    with pytest.raises(InputError, match="JSON"):
        from_json("{")
    for name, says in [("", "call set_timesteps"), ("thresholding", "thresholding"), ("noise_type", "brownian")]:
        options = {"thresholding": {"thresholding": True}, "noise_type": {"noise_type": "brownian"}}.get(name, {})
        scheduler = sd_ext.make_scheduler("dpm++ sde", SD, **options)
        with pytest.raises(InputError, match=says):
            to_json(scheduler)
    with pytest.raises(InputError, match="begin_index must be 0 to 2"):
        to_json(announced("euler", 3), begin_index=3)
