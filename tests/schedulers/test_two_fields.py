"""Samplers of two fields in pipelines of every kind: the half that a step finds is the right one.

Each network call is recorded by a hook of the test's own, cut into its halves as the pipeline's source does, and the
run made again step by step with that half written down by hand. Both must agree to the bit.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import diffusers
import pytest
import torch

import sd_ext
from sd_ext.attaching import attach, detach
from sd_ext.board import BOARD
from sd_ext.errors import InputError

from ..conftest import build_tiny_sdxl_pipeline
from ..unets.inside.test_views import ip_adapter
from ..zoo import ZOO
from ..zoo.cell import quiet
from .over import over

SAMPLER = "dpm++ 2m cfg++"  # it remembers unconditional predictions, too

Cut = Callable[[list[torch.Tensor]], torch.Tensor]
"""The outputs of the network's calls of one step, to the unconditional half of them."""


@contextmanager
def recorded(pipe: Any) -> Iterator[list[tuple[Any, ...]]]:
    """Every step of a pipeline: the outputs of the network since the last, what `step` was given, what it gave."""
    steps, outputs = [], []
    handle = pipe.unet.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
    own = pipe.scheduler.step

    @functools.wraps(own)
    def step(model_output, timestep, sample, **more):
        given = model_output.clone(), float(timestep), sample.clone()
        result = own(model_output, timestep, sample, **more)
        steps.append((list(outputs), *given, result[0].clone()))
        outputs.clear()
        return result

    pipe.scheduler.step = step
    try:
        yield steps
    finally:
        handle.remove()
        del pipe.scheduler.step


def again(scheduler: Any, steps: list[tuple[Any, ...]], cut: Cut, calls: int) -> list[torch.Tensor]:
    """What each step gives with the half that `cut` finds."""
    other = type(scheduler).from_config(scheduler.config)
    other.set_timesteps(calls)
    found = []
    for outputs, guided, timestep, sample, _ in steps:
        BOARD.write(timestep, cut(outputs), alone=True)
        found.append(other.step(guided, timestep, sample)[0])
    return found


def first_of(parts: int) -> Cut:
    return lambda outputs: outputs[-1].chunk(parts)[0]


def holds(pipe: Any, run: Callable[[], Any], cut: Cut, wrong: Cut, calls: int = 5) -> None:
    """The run is the one with the right half, and another half would be seen, save in the last step: it goes to p."""
    with recorded(pipe) as steps, quiet():
        run()
    assert steps
    results = [step[-1] for step in steps]
    assert all(map(torch.equal, results, again(pipe.scheduler, steps, cut, calls)))
    assert not any(map(torch.equal, results[:-1], again(pipe.scheduler, steps, wrong, calls)))


@contextmanager
def attached(pipe: Any) -> Iterator[None]:
    BOARD.notes.clear()
    attach(pipe)
    try:
        yield
    finally:
        detach(pipe)


PIPELINES = {
    "StableDiffusionPipeline": 2,
    "StableDiffusionImg2ImgPipeline": 2,
    "StableDiffusionInpaintPipeline (9 channels)": 2,
    "StableDiffusionInpaintPipeline (4 channels)": 2,
    "StableDiffusionControlNetPipeline": 2,
    "StableDiffusionAdapterPipeline": 2,
    "StableDiffusionPAGPipeline": 3,
    "StableDiffusionXLPipeline": 2,
}
"""Pipelines, and the parts of their batch, of which the first is unconditional."""


@over("name", PIPELINES)
def test_pipelines_whose_batch_begins_with_the_unconditional_part(name):
    law_of(name, first_of(PIPELINES[name]), lambda outputs: outputs[-1].chunk(PIPELINES[name])[1])


def test_of_a_picture_changed_by_words_the_unconditional_part_is_last():
    three = [lambda outputs, place=place: outputs[-1].chunk(3)[place] for place in (2, 0)]
    law_of("StableDiffusionInstructPix2PixPipeline", *three)


def law_of(name: str, cut: Cut, wrong: Cut) -> None:
    entry = ZOO[name]
    with quiet():
        pipe = entry.build()
    entry.set_scheduler(pipe, sd_ext.make_scheduler(SAMPLER, pipe.scheduler.config))
    with attached(pipe):
        holds(pipe, lambda: entry.run(pipe, 5, 0), cut, wrong)


def test_learned_variances_are_left_out():
    """DeepFloyd's network predicts them besides, and its pipeline cuts them off the guided prediction."""
    entry = ZOO["IFPipeline"]
    with quiet():
        pipe = entry.build()
        config = {**pipe.scheduler.config, "variance_type": "fixed_small"}
        pipe.scheduler = sd_ext.make_scheduler(SAMPLER, config)

    def part(place: int) -> Cut:
        return lambda outputs: outputs[-1].chunk(2)[place][:, :3]

    with attached(pipe):
        holds(pipe, lambda: entry.run(pipe, 5, 0), part(0), part(1))


def draw(pipe: Any, calls: int = 5, **more: Any) -> torch.Tensor:
    more = {"guidance_scale": 1.8, "generator": torch.Generator().manual_seed(0), **more}
    return pipe("a b", num_inference_steps=calls, output_type="latent", **more).images


@pytest.fixture
def pipe(tiny_pipeline) -> Any:
    tiny_pipeline.scheduler = sd_ext.make_scheduler(SAMPLER, tiny_pipeline.scheduler.config)
    BOARD.notes.clear()
    yield tiny_pipeline
    detach(tiny_pipeline)


TWO = first_of(2), lambda outputs: outputs[-1].chunk(2)[1]


def with_unet(pipe: Any, unet: Any) -> Any:
    other = diffusers.StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def test_ip_adapter(pipe):
    other = with_unet(pipe, type(pipe.unet).from_config(pipe.unet.config).eval())
    other.unet.load_state_dict(pipe.unet.state_dict())
    pictures = ip_adapter(other.unet, width=32)["added_cond_kwargs"]["image_embeds"]
    with attached(other):
        holds(other, lambda: draw(other, ip_adapter_image_embeds=pictures), *TWO)


def test_our_own_networks_need_not_be_attached(pipe):
    """Also with features of earlier steps taken again, and with guidance that the network adds to each half."""
    for options in ({"cache_interval": 2}, {"cache_interval": 2, "pag_scale": 1.0}):
        other = with_unet(pipe, sd_ext.CachedUNet2DConditionModel.from_unet(pipe.unet, **options))
        holds(other, lambda other=other: draw(other), *TWO)


def test_with_an_interval_of_guidance(pipe):
    """In steps without guidance its network gives one half twice."""
    attach(pipe)
    interval = sd_ext.GuidanceInterval(0.2, 0.6, pipe)
    with recorded(pipe) as steps, quiet(), interval:
        draw(pipe)
    sizes = [len(outputs[-1]) for outputs, *_ in steps]
    assert sizes == [1, 2, 2, 1, 1]
    results = [step[-1] for step in steps]
    assert all(map(torch.equal, results, again(pipe.scheduler, steps, lambda outputs: outputs[-1][:1], 5)))


def test_offloaded(pipe):
    other = with_unet(pipe, type(pipe.unet).from_config(pipe.unet.config).eval())
    attach(other)
    plain = draw(other)
    accelerate.cpu_offload(other.unet, torch.device("cpu"))
    assert torch.equal(draw(other), plain)
    holds(other, lambda: draw(other), *TWO)


def test_what_is_compiled_into_a_network_writes_nothing(pipe, monkeypatch):
    attach(pipe)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    pipe.unet(torch.zeros(2, 4, 8, 8), torch.tensor(1), torch.zeros(2, 5, 32))
    assert not BOARD.notes


@pytest.mark.slow
def test_a_compiled_network_is_attached_as_a_whole(pipe):
    attach(pipe)
    plain = draw(pipe)
    detach(pipe)
    other = with_unet(pipe, torch.compile(pipe.unet, backend="eager"))
    with attached(other):
        assert torch.equal(draw(other), plain)


@pytest.mark.parametrize("first", ["attached", "compiled"])
def test_a_network_that_is_compiled_in_place(pipe, first):
    attach(pipe)
    plain = draw(pipe)
    detach(pipe)
    other = with_unet(pipe, type(pipe.unet).from_config(pipe.unet.config).eval())
    other.unet.load_state_dict(pipe.unet.state_dict())
    if first == "attached":
        attach(other)
    other.unet.compile(backend=lambda graph, _: graph.forward)
    inside = other.unet._compiled_call_impl
    with attached(other):
        assert torch.equal(draw(other), plain)
        assert torch.equal(draw(other), plain)
        holds(other, lambda: draw(other), *TWO)
    detach(other)
    assert other.unet._compiled_call_impl is inside and not other.unet._forward_hooks


def test_pipelines_that_share_a_network_take_turns(pipe):
    """One draws whole pictures between the steps of another."""
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.scheduler = sd_ext.make_scheduler("euler a cfg++", pipe.scheduler.config)
    attach(pipe)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen, alone = [], (draw(pipe), draw(other, image=picture))

    def between(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(draw(other, image=picture))
        return values

    assert torch.equal(draw(pipe, callback_on_step_end=between), alone[0])
    assert len(seen) == 5 and all(torch.equal(each, alone[1]) for each in seen)


def test_threads_that_share_a_network(pipe):
    attach(pipe)
    pipes = [with_unet(pipe, pipe.unet) for _ in range(3)]
    for i, each in enumerate(pipes):
        each.scheduler = sd_ext.make_scheduler(SAMPLER, pipe.scheduler.config)
        each.words = dict(
            zip(("prompt_embeds", "negative_prompt_embeds"), pipe.encode_prompt("abc"[i], "cpu", 1, True), strict=True)
        )

    def own(each: Any) -> torch.Tensor:
        more = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", **each.words}
        return each(num_inference_steps=4, guidance_scale=2, **more)[0]

    serial, found = [own(each) for each in pipes], {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, own(pipes[i]))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], serial[i]) for i in range(3))
    assert not torch.equal(serial[0], serial[1])


# ---- loops of one's own ----------------------------------------------------------------------------------------------


def loop(pipe: Any, order: str = "uc", told: Callable[[Any], Any] = lambda t: t, guidance: float = 1.8) -> torch.Tensor:
    """A loop with two calls of the network a step, the halves in this order; `told` is done to the step's timestep."""
    words, nothing = pipe.encode_prompt("a b", "cpu", 1, True)
    states = {"u": nothing, "c": words}
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            said = {half: pipe.unet(x, t, states[half]).sample for half in order}
            guided = said["u"] + guidance * (said["c"] - said["u"]) if len(order) == 2 else said[order]
            x = scheduler.step(guided, told(t), x).prev_sample
    return x


@over("guidance", [0.7, 1.8, 7.5])
@over("order", ["uc", "cu"])
def test_two_calls_of_the_network_in_either_order(order, guidance, pipe):
    attach(pipe)

    def half(which: str) -> Cut:
        return lambda outputs: outputs[order.index(which)]

    holds(pipe, lambda: loop(pipe, order, guidance=guidance), half("u"), half("c"), 4)


def test_a_look_and_then_the_step(pipe):
    """Samplers may be asked for x0 first, and for the step with what comes of it afterwards."""
    attach(pipe)
    wanted, scheduler = loop(pipe), pipe.scheduler
    own = scheduler.step

    def twice(*given: Any, **more: Any) -> Any:
        first = own(*given, **more)
        assert torch.equal(own(*given, **more).prev_sample, first.prev_sample)
        return first

    scheduler.step = twice
    assert torch.equal(loop(pipe), wanted)


@over("told", [torch.clone, float, lambda t: torch.tensor([float(t)])])
def test_a_copied_timestep_is_matched_by_the_order_of_calls(told, pipe):
    attach(pipe)
    assert torch.equal(loop(pipe, told=told), loop(pipe))


def test_without_an_own_call_since_the_last_step_nothing_is_taken(pipe):
    """What other runs have left on the board is not."""
    attach(pipe)
    loop(pipe)
    scheduler, like = pipe.scheduler, torch.zeros(1, 4, 8, 8)
    pipe.unet(torch.cat([like, like]), torch.tensor(5), torch.zeros(2, 5, 32))
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="no network has left it"):
        scheduler.step(like, scheduler.timesteps[0].clone(), like)
    for timestep in (torch.tensor(5), torch.tensor(5)):  # of two runs
        pipe.unet(torch.cat([like, like]), timestep, torch.zeros(2, 5, 32))
    with pytest.raises(InputError, match="no network has left it"):
        scheduler.step(like, scheduler.timesteps[0].clone(), like)


# ---- without guidance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler cfg++", "dpm++ 2m cfg++", "dpm++ 2s a cfg++", "res multistep cfg++"])
def test_without_guidance_the_plain_sampler_runs_and_it_is_said_once(name, pipe, caplog):
    attach(pipe)
    pictures = []
    for each in (name, name.removesuffix(" cfg++")):
        pipe.scheduler = sd_ext.make_scheduler(each, pipe.scheduler.config, grid="karras")
        pictures.append(draw(pipe, guidance_scale=1.0))
        assert len(said(caplog)) == 1
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=1e-4)


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if "here there is no guidance" in record.message]


def test_guidance_that_stops_in_the_middle_of_a_run(pipe, caplog):
    """As Diffusers' own example does it: from there on the steps are the plain sampler's."""
    pipe.scheduler = sd_ext.make_scheduler("euler cfg++", pipe.scheduler.config)
    attach(pipe)

    def stop(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipeline._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    def cut(outputs: list[torch.Tensor]) -> torch.Tensor:
        return outputs[-1][:1]

    inputs = ["latents", "prompt_embeds"]
    with recorded(pipe) as steps:
        draw(pipe, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=inputs)
    assert [len(outputs[-1]) for outputs, *_ in steps] == [2, 2, 2, 1, 1]
    assert len(said(caplog)) == 1
    assert all(map(torch.equal, [step[-1] for step in steps], again(pipe.scheduler, steps, cut, 5)))


class OfTwo(sd_ext.EulerCFGPlusPlusScheduler):
    """Has a run of one field that stands in for it."""

    def _compile(self, levels, begin, eta):
        run = super()._compile(levels, begin, eta)
        run.companion = sd_ext.EulerDiscreteScheduler.from_config(self.config)._compile(levels, begin, eta)
        return run


@pytest.mark.parametrize("attaches", [False, True])
def test_a_companion_stands_in_without_guidance_and_where_nothing_is_left(attaches, pipe):
    config = pipe.scheduler.config
    if attaches:
        attach(pipe)
    pictures = []
    for cls in (OfTwo, sd_ext.EulerDiscreteScheduler):
        pipe.scheduler = cls.from_config(config)
        pictures.append(draw(pipe, guidance_scale=1.0))
    assert torch.equal(*pictures)
    if attaches:  # with guidance it is not needed
        pipe.scheduler = OfTwo.from_config(config)
        guided = draw(pipe)
        pipe.scheduler = sd_ext.EulerCFGPlusPlusScheduler.from_config(config)
        assert torch.equal(guided, draw(pipe))


# ---- Modular pipelines -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modular() -> Any:
    from diffusers import ModularPipeline
    from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks

    with quiet():
        made: ModularPipeline = StableDiffusionXLAutoBlocks().init_pipeline()
        parts = build_tiny_sdxl_pipeline().components
        names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae", "scheduler")
        made.update_components(**{name: parts[name] for name in names})
        made.set_progress_bar_config(disable=True)
    return made


GUIDERS = {
    "ClassifierFreeGuidance": {},
    "ClassifierFreeGuidance, rescaled": {"guidance_rescale": 0.7},
    "AdaptiveProjectedGuidance": {},
    "PerturbedAttentionGuidance": {"perturbed_guidance_layers": ["mid_block.attentions.0.transformer_blocks"]},
}
"""Guiders of Diffusers with their options; all call the network for the conditional half first."""


@over("name", GUIDERS)
def test_guiders_of_modular_pipelines_hand_both_halves_over(name, modular):
    with quiet():
        guider = getattr(diffusers, name.split(",")[0])(guidance_scale=2.5, **GUIDERS[name])
        modular.update_components(guider=guider)
    modular.update_components(scheduler=sd_ext.make_scheduler(SAMPLER, modular.scheduler.config))
    with attached(modular):
        holds(modular, lambda: modular_latents(modular), lambda outputs: outputs[1], lambda outputs: outputs[0], 4)
    assert "forward" not in vars(guider)


def modular_latents(modular: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = {"height": 64, "width": 64}
    with quiet():
        return modular(prompt="a b", num_inference_steps=4, generator=generator, output="latents", **size)


def test_a_guider_that_rests(modular):
    """Where it does not guide, both halves are the one prediction."""
    with quiet():
        modular.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=2.5, start=0.25, stop=0.75))
    modular.update_components(scheduler=sd_ext.make_scheduler("euler cfg++", modular.scheduler.config))
    with attached(modular), recorded(modular) as steps:
        modular_latents(modular)
    assert [len(outputs) for outputs, *_ in steps] == [1, 2, 2, 1]
    results = [step[-1] for step in steps]
    assert all(map(torch.equal, results, again(modular.scheduler, steps, lambda outputs: outputs[-1], 4)))


def test_modular_pipelines_without_a_network_that_is_known():
    from diffusers.modular_pipelines.flux import FluxAutoBlocks

    with quiet():
        pipe = FluxAutoBlocks().init_pipeline()
    with pytest.raises(InputError, match="FluxModularPipeline has no U-Net"):
        attach(pipe)
