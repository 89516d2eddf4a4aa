"""Fit samplers to a pipeline: for each number of calls, at each strength of guidance."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..declared import check
from ..errors import InputError
from ..schedulers.calibrated import CalibratedScheduler, Calibration
from ..schedulers.calibrated.calibration import check_provenance
from .calibrated import Calibrated
from .fit import Fitting, Shape
from .pipeline import PipelineProblem, check_unet
from .plan import cost, of_fit, of_teacher, predictions
from .prompts import of_pipeline, repeated
from .provenance import identity
from .settings import Settings
from .store import RESULT, Finished, Store, check_free
from .teacher import Teacher, table_of, teach

LARGEST = 8192
"""The most pixels of a picture's side."""


class Listener:
    """What is told of a calibration on its way; a progress bar overrides it."""

    def planned(self, predictions: int) -> None:
        """How many predictions will be made at most."""

    def stage(self, text: str) -> None:
        """What is being done now."""

    def made(self, predictions: int) -> None:
        """So many more predictions are made, or will not be needed."""

    def told(self, sentence: str) -> None:
        """Something that was guessed, ignored or is not as asked for."""


def dealt(prompts: Sequence[str], pairs: int, seed: int) -> list[str]:
    """A prompt for each pair: shuffled, and begun anew where there are fewer prompts than pairs.

    Raises:
        InputError: no prompts, or an empty one.
    """
    if not prompts:
        raise InputError("no prompts to calibrate with; give some, such as those you draw")
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("a prompt is empty; say in words what to draw")
    order = np.random.default_rng(seed).permutation(len(prompts))
    return [prompts[int(order[i % len(prompts)])] for i in range(pairs)]


def prepare(
    pipe: Any, prompts: Sequence[str] | None, settings: Settings, size: tuple[int, int] | None, listener: Listener
) -> tuple[PipelineProblem, list[str]]:
    """The pipeline as a problem, and the prompts of its pairs.

    Raises:
        InputError: a pipeline that is not understood, no prompts, too few pairs, or a teacher that is none.
    """
    check_unet(pipe)
    check(prompts, Sequence[str] | None, "calibrate", "prompts")
    check(size, tuple[int, int] | None, "calibrate", "size")
    if size is not None and min(size) < 1:
        raise InputError(f"size must be width and height in pixels, got {tuple(size)}")
    if size is not None and max(size) > LARGEST:
        raise InputError(f"pictures of {size[0]} x {size[1]} pixels cannot be fitted to; at most {LARGEST} on a side")
    check_reuse(pipe, settings)
    pairs = settings.sets.pairs
    given = of_pipeline(pipe) if prompts is None else list(prompts)
    every = dealt(given, pairs, settings.seed)
    if sentence := repeated(every):
        listener.told(sentence)
    seeds = [settings.seed + i for i in range(pairs)]
    problem = PipelineProblem(pipe, every, seeds, size, settings.negative, settings.batch)
    check_start(problem)
    settings.check_numbers(problem.starts[0].numel())
    table_of(problem.config, settings.teacher, settings.teacher_calls)
    return problem, every


def check_start(problem: PipelineProblem) -> None:
    """Raise `InputError` where nothing can be predicted from full noise, which every fitted sampler starts with."""
    schedule = problem.schedule
    if schedule.prediction.kind == "epsilon" and not schedule.at([schedule.t_max]).alpha[0]:
        raise InputError(
            "fitted samplers start at noise alone (rescale_betas_zero_snr=True of the model's scheduler), where a "
            "prediction of epsilon says nothing about the picture; make the scheduler with "
            "rescale_betas_zero_snr=False, or with prediction_type='v_prediction' if the model is of that kind"
        )


def check_reuse(pipe: Any, settings: Settings) -> None:
    """Raise `InputError` where some calls shall reuse features and the U-Net does not ask the sampler which."""
    if settings.whole_share < 1 and getattr(pipe.unet, "options", {}).get("cache_schedule") != "sampler":
        raise InputError(
            f"whole_share {settings.whole_share:g} needs a U-Net that reuses features as the sampler says: pipe.unet = "
            'sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet, cache_schedule="sampler")'
        )


def calibrate(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    calls: Sequence[int] = Settings.calls,
    guidance: Sequence[float] = Settings.guidance,
    size: tuple[int, int] | None = None,
    *,
    out: str | Path | None = None,
    listener: Listener | None = None,
    model: str = "",
    lora: Mapping[str, float] | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> CalibratedScheduler:
    """Fit samplers of few calls to a pipeline, which lead to the pictures of a sampler with many.

        pipe.scheduler = sd_ext.calibrate(pipe, prompts, calls=(5, 8), guidance=(5, 7.5))
        pipe.scheduler.attach(pipe)
        pipe("a lighthouse", num_inference_steps=5)

    It takes forward passes of the U-Net only. See docs/calibration.md for how, when it helps and when not.

    Args:
        pipe: a pipeline with a U-Net, as it draws: with its LoRAs, on its device.
        prompts: what people draw with it; None takes the model's own words, or plain ones that come with the package.
        calls: numbers of network calls.
        guidance: strengths of guidance; between two of them, samplers are interpolated.
        size: (width, height) in pixels; None is the pipeline's own.
        out: a folder for the scheduler's config and the report. What is finished is kept there, and an interrupted
            calibration goes on. None writes nothing.
        listener: told of the progress.
        model: what the model is called in the calibration; "" asks the pipeline.
        lora: strength of each LoRA that is in use, by name; None asks the pipeline.
        settings: all that is asked at once, in place of calls, guidance and options.
        options: further fields of `Settings`: pairs, seed, negative, fields, teacher, teacher_calls, effort, batch,
            whole_share.

    Returns:
        The scheduler. Its attribute `calibrated` is what reports are made of.

    Raises:
        InputError: a pipeline that is not understood, settings that cannot be, no prompts, too few pairs, a teacher
            whose pictures are no numbers, or a folder that holds something else.
    """
    if unknown := set(options) - set(Settings.__dataclass_fields__):
        raise InputError(f"calibrate has no option {', '.join(sorted(unknown))}")
    if settings is not None and not isinstance(settings, Settings):
        raise InputError(f"calibrate: settings must be a Settings, got {settings!r}")
    settings = settings or Settings(calls=calls, guidance=guidance, **options)
    if out is not None and not isinstance(out, str | Path):
        raise InputError(f"calibrate: out must be the path of a folder, or None to write nothing, got {out!r}")
    check(model, str, "calibrate", "model")
    check(lora, Mapping[str, float] | None, "calibrate", "lora")
    listener, folder = listener or Listener(), None if out is None else Path(out)
    if folder is not None:
        check_free(folder)
    problem, every = prepare(pipe, prompts, settings, size, listener)
    told = identity(problem, settings, every, lora, model)
    check_provenance(told)  # before all the work, and not after it
    store = Store(folder, told)
    cost(problem, settings)  # fits the batch into memory
    listener.planned(predictions(problem, settings, report=folder is not None))
    finished = fits(problem, settings, store, listener)
    seconds = round(sum(each.seconds for each in finished), 1)
    calibration = Calibration(tuple(each.fit for each in finished), {**told, "seconds": seconds})
    scheduler = CalibratedScheduler.from_calibration(calibration, problem.config)
    calibrated = Calibrated(calibration, settings, tuple(every), tuple(finished))
    if folder is not None:
        from .report import write_report

        listener.stage("report")
        write_report(calibrated, pipe, folder, listener.made)
        scheduler.to_json_file(folder / RESULT)  # and the README of its folder
        store.clear()
    scheduler.calibrated = calibrated  # type: ignore[attr-defined]
    return scheduler


def fits(problem: PipelineProblem, settings: Settings, store: Store, listener: Listener) -> list[Finished]:
    """Every fit, read where it is finished already."""
    made: dict[tuple[int, float], Finished] = {}
    for guidance, leader in settings.order():
        teacher: Teacher | None = None
        for calls in settings.calls:
            fields, leads = settings.fields_at(guidance), guidance == leader
            share = of_fit(problem, settings, calls, fields, leads)
            found = store.read(calls, guidance)
            if found is None:
                teacher = teacher or _teacher(problem, settings, guidance, listener)
                shape = None if leads else made[calls, leader].shape
                listener.stage(f"{calls} calls at guidance {guidance:g}")
                found = _fit(problem, settings, teacher, guidance, calls, shape, listener)
                store.write(found)
                share -= found.predictions  # what was planned and not needed, or needed and not planned
            listener.made(share)
            made[calls, guidance] = found
        if teacher is None:
            listener.made(of_teacher(settings))
    return list(made.values())


def _teacher(problem: PipelineProblem, settings: Settings, guidance: float, listener: Listener) -> Teacher:
    listener.stage(f"teacher at guidance {guidance:g}")
    table = table_of(problem.config, settings.teacher, settings.teacher_calls)
    return teach(problem, settings.sets, guidance, table, listener.made)


def _fit(
    problem: PipelineProblem,
    settings: Settings,
    teacher: Teacher,
    guidance: float,
    calls: int,
    shape: Shape | None,
    listener: Listener,
) -> Finished:
    began, made = time.perf_counter(), 0

    def count(predictions: int) -> None:
        nonlocal made
        made += predictions
        listener.made(predictions)

    fields = settings.fields_at(guidance)
    fitting = Fitting(
        problem, settings.sets, guidance, fields, teacher, problem.config, settings.effort, count, settings.whole_share
    )
    fit, shape = fitting.fit(calls, shape)
    return Finished(fit, shape, time.perf_counter() - began, made)
