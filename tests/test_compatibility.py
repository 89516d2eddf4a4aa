"""Diffusers' pipelines on a UNet2DConditionModel with samplers of this package; docs/compatibility.md has them all."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch

import sd_ext

from .few import few
from .zoo import BROKEN, ZOO, sdxl
from .zoo.cell import Bench, Problem, problem_of, quiet
from .zoo.reasons import NO_GUIDANCE, OTHER_OUTPUT, REASONS, UNSEEDED, WITNESS, explain

SAMPLERS = [info.name for info in sd_ext.list_samplers() if not info.cls.weighs_unconditional]
TWO_FIELDS = [info.name for info in sd_ext.list_samplers() if info.cls.weighs_unconditional]
"""Those with CFG++, to which a network has to leave both halves of its guided predictions."""
PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
OPEN = [name for name, entry in ZOO.items() if not entry.refused]
"""Pipelines that take schedulers of others."""
NETWORKS = ("UNet2DConditionModel", "UNetMotionModel", "UNet3DConditionModel")
NO_PIPELINES = re.compile("Output$|Mixin|^AutoPipeline|^DiffusionPipeline$")
"""Classes beside them: what pipelines return, what they share, and what chooses among them."""


@cache
def bench(name: str) -> Bench:
    return Bench(ZOO[name])


def fails(pipeline: str, sampler: str) -> Problem | None:
    """The problem, unless its reason lies in the pipeline and is known."""
    problem = bench(pipeline).sampler(sampler)
    return problem if problem and not explain(pipeline, problem)[0] else None


def covering() -> list[tuple[str, str]]:
    """Each pipeline with one sampler, in turn, so that each sampler is met."""
    return [(name, SAMPLERS[i % len(SAMPLERS)]) for i, name in enumerate(OPEN)]


FIRST = {ZOO[name].family: name for name in reversed(OPEN)}.values()
"""A pipeline of each family."""


@pytest.mark.parametrize("pipeline, sampler", few(covering(), lambda case: case[0] in FIRST))
def test_every_pipeline_with_a_sampler_and_every_sampler_in_a_pipeline(pipeline, sampler):
    """Witnesses of the whole table."""
    assert fails(pipeline, sampler) is None


def test_the_selection_covers_all():
    assert {sampler for _, sampler in covering()} == set(SAMPLERS)
    assert {pipeline for pipeline, _ in covering()} == set(OPEN)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", list(ZOO))
def test_every_pipeline_with_every_sampler(pipeline):
    assert bench(pipeline).own() is None
    assert {sampler: problem for sampler in SAMPLERS if (problem := fails(pipeline, sampler))} == {}


# ---- samplers of two fields ------------------------------------------------------------------------------------------


def finds(pipeline: str, sampler: str) -> str:
    """What the page says that such a sampler finds in a pipeline: "both" halves, "one" prediction, or why it fails."""
    found = bench(pipeline).halves(sampler)
    kind, _, message = found.partition(": ")
    explained = "" if found in ("both", "one") else explain(pipeline, Problem(kind, message))[0]
    return explained or found


def expected(pipeline: str) -> str:
    return "one" if pipeline in NO_GUIDANCE else "both"


def refuses(found: str) -> bool:
    return found.startswith("InputError") and "no network has left it" in found


FEW = ["StableDiffusionPAGPipeline", "TextToVideoSDPipeline", "MarigoldDepthPipeline", "AnimateDiffPipeline"]
"""Batches of three parts, frames, no guidance, five dimensions; `test_two_fields.py` has the ordinary ones."""


@pytest.mark.parametrize("i, pipeline", few(enumerate(FEW), 2))
def test_what_samplers_of_two_fields_find(i, pipeline):
    for sampler in TWO_FIELDS[i :: len(FEW)]:
        assert finds(pipeline, sampler) == expected(pipeline)


@pytest.mark.parametrize("pipeline", OTHER_OUTPUT)
def test_where_they_find_nothing_they_refuse(pipeline):
    assert refuses(finds(pipeline, TWO_FIELDS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [name for name in OPEN if name not in OTHER_OUTPUT])
def test_what_samplers_of_two_fields_find_in_every_pipeline(pipeline):
    reasons = {reason.text for reason in REASONS if pipeline in reason.pipelines}
    for sampler in TWO_FIELDS:
        assert finds(pipeline, sampler) in {expected(pipeline), *reasons}


# ---- runs that start in the middle -----------------------------------------------------------------------------------


def at_strength(name: str, strength: float, steps: int) -> Callable[[str], Problem | None]:
    return lambda sampler: strength_bench(name, strength).sampler(sampler, steps)


@cache
def strength_bench(name: str, strength: float) -> Bench:
    from .zoo import stable_diffusion as sd
    from .zoo.entry import IMAGE, entry, share

    arguments = IMAGE | {"strength": strength}
    if "Inpaint" in name:
        arguments |= {"mask_image": sd.c.mask, "height": 64, "width": 64}
    return Bench(entry(name, sd.FAMILY, sd.c.SD, arguments, share(strength)))


def handed_over(at: float) -> Callable[[str], Problem | None]:
    """From SDXL's base, which makes this share of the steps, to its refiner."""

    def problem(sampler: str) -> Problem | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sdxl, "HAND_OVER", at)
            return bench("StableDiffusionXLPipeline (base, then refiner)").sampler(sampler)

    return problem


IMG2IMG, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline (4 channels)"
STARTS = {
    "img2img, strength 0.3": at_strength(IMG2IMG, 0.3, 7),
    "img2img, strength 0.8": at_strength(IMG2IMG, 0.8, 4),
    "inpainting, strength 0.3": at_strength(INPAINT, 0.3, 7),
    "inpainting, strength 0.8": at_strength(INPAINT, 0.8, 4),
    "refiner from 0.4": handed_over(0.4),
    "refiner from 0.6": handed_over(0.6),
}
EACH_SAMPLER_ONCE = [(sampler, list(STARTS)[i % len(STARTS)]) for i, sampler in enumerate(SAMPLERS)]


@pytest.mark.parametrize("sampler, start", few(EACH_SAMPLER_ONCE, 7))
def test_every_sampler_starts_in_the_middle(sampler, start):
    """In one of the ways that pipelines have, in turn."""
    assert STARTS[start](sampler) is None


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_starts_in_the_middle_in_every_way(sampler, start):
    assert STARTS[start](sampler) is None


def test_a_refiner_with_nothing_left_to_do(monkeypatch):
    monkeypatch.setattr(sdxl, "HAND_OVER", 0.8)
    own, trailing = bench("StableDiffusionXLPipeline (base, then refiner)"), {"timestep_spacing": "trailing"}
    assert own.diffusers("DDIMScheduler", 3, **trailing) is None
    assert own.sampler("ddim", 3, **trailing) is None


# ---- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", few(REASONS, 3), ids=lambda reason: f"{reason.pipelines[0]}-{reason.kind}")
def test_where_a_pipeline_cannot_neither_can_a_scheduler_of_diffusers(reason):
    for name in reason.pipelines:
        assert bench(name).own() is None
        assert bench(name).diffusers(reason.witness) is not None


@pytest.mark.parametrize("name", few([name for name, entry in ZOO.items() if entry.refused], 4))
def test_pipelines_for_one_class_refuse_others_of_diffusers(name):
    assert bench(name).own() is None
    assert bench(name).diffusers(WITNESS) is not None
    assert bench(name).sampler("euler") is not None


@pytest.mark.parametrize("name", few(BROKEN, 3))
def test_what_is_said_to_fail_with_every_scheduler_fails(name):
    with pytest.raises(Exception, match=BROKEN[name].message):
        BROKEN[name].attempt()


def test_pix2pix_zero_fails_where_a_timestep_comes_twice():
    bench_, entry = bench("StableDiffusionPix2PixZeroPipeline"), ZOO["StableDiffusionPix2PixZeroPipeline"]
    for sampler in ("euler", "heun"):
        scheduler = sd_ext.make_scheduler(sampler, bench_.config)
        scheduler.set_timesteps(4)
        twice = len(set(scheduler.timesteps.tolist())) < 4
        problem = problem_of(entry, entry.build(), scheduler, 4)
        assert twice == (problem is not None and problem.kind == "KeyError") == (sampler == "heun")


@pytest.mark.parametrize("name", UNSEEDED)
def test_noise_of_pipelines_that_keep_their_generator_from_the_scheduler(name):
    entry, own = ZOO[name], bench(name)
    for sampler, same in (("ddim", True), ("euler a", False)):
        with quiet():
            pipe = entry.build()
            entry.set_scheduler(pipe, sd_ext.make_scheduler(sampler, own.config))
            assert torch.equal(entry.run(pipe, 3, 0), entry.run(pipe, 3, 0)) is same
        assert own.sampler(sampler) is None


# ---- what a failure looks like ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil, kind",
    [
        (lambda out, x: out * torch.nan, "not finite"),
        (lambda out, x: out + torch.randn(out.shape, generator=GENERATOR), "not repeatable"),
        (lambda out, x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_spoiled_scheduler_is_found_out(spoil, kind):
    entry = ZOO["StableDiffusionPipeline"]
    pipe = entry.build()
    scheduler = sd_ext.make_scheduler("ddim", entry.get_scheduler(pipe).config)
    step = scheduler.step
    scheduler.step = lambda m, t, x, **own: (spoil(step(m, t, x, **own)[0], x),)
    assert problem_of(entry, pipe, scheduler, 2).kind == kind


GENERATOR = torch.Generator().manual_seed(0)


def test_a_wrong_number_of_calls_is_found_out():
    entry = ZOO["StableDiffusionPipeline"]
    assert bench(entry.name).diffusers("HeunDiscreteScheduler").kind == "calls"


# ---- the lists are whole ---------------------------------------------------------------------------------------------


def pipelines_on_unets() -> set[str]:
    """Pipeline classes whose modules mention one of `NETWORKS`."""
    found = set()
    for module in pkgutil.walk_packages(diffusers.pipelines.__path__, "diffusers.pipelines."):
        name = module.name.rsplit(".", 1)[1]
        if "pipeline" not in name:
            continue
        source = Path(importlib.util.find_spec(module.name).origin).read_text()
        if any(network in source for network in NETWORKS):
            found |= {line.split("(")[0][6:].rstrip(":") for line in source.splitlines() if line.startswith("class ")}
    return {name for name in found if "Pipeline" in name and not NO_PIPELINES.search(name)}


def test_the_zoo_has_every_pipeline():
    listed = {name.split(" (")[0] for name in (*ZOO, *BROKEN)}
    assert pipelines_on_unets() - listed == set()


def test_the_page_names_every_pipeline_and_sampler():
    text = PAGE.read_text()
    assert [name for name in (*ZOO, *BROKEN) if f"`{name.split(' (')[0]}`" not in text] == []
    assert [name for name in (*SAMPLERS, *TWO_FIELDS) if f"`{name}`" not in text] == []
    assert inspect.cleandoc(text).startswith("# Which pipelines run with which samplers")
