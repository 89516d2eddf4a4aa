"""Contact sheets: pictures of the teacher, of fitted samplers and of the best known ones, drawn by the pipeline."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ...attaching import ATTACHED, PIPELINES, attach, detach
from ...schedulers import make_scheduler
from ...schedulers.calibrated import CalibratedScheduler
from ...sheets import labelled_sheet
from ..calibrated import Calibrated
from ..pipeline import exactly
from ..problem import OnCalls
from ..settings import Settings

COLUMNS, COUNTS, SIDE, QUALITY = 8, 2, 192, 88
"""Prompts on a sheet, numbers of calls on it, pixels of the longer side of a picture there, and of JPEG."""


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Args:
        guidance: of its pictures.
        calls: the numbers of calls that are compared on it.
        prompts: of its columns.
        jpeg: the picture.
    """

    guidance: float
    calls: tuple[int, ...]
    prompts: tuple[str, ...]
    jpeg: bytes

    @property
    def file(self) -> str:
        return f"guidance-{self.guidance:g}.jpg"


@contextmanager
def _as_it_was(pipe: Any) -> Iterator[None]:
    """Within the block the pipeline is attached; then it has its own scheduler and hooks again."""
    own, hooked, listed = pipe.scheduler, pipe.unet in ATTACHED, pipe in PIPELINES
    attach(pipe)
    try:
        yield
    finally:
        pipe.scheduler = own
        if not hooked:
            detach(pipe)
        elif not listed:
            PIPELINES.discard(pipe)


def sheets(pipe: Any, calibrated: Calibrated, on_calls: OnCalls = lambda calls: None) -> list[Sheet]:
    """A sheet for each strength of guidance: rows are samplers, columns pairs that nothing was fitted to."""
    with _as_it_was(pipe):
        return [_sheet(pipe, calibrated, guidance, on_calls) for guidance in calibrated.settings.guidance]


def _shown(settings: Settings) -> tuple[int, ...]:
    """The numbers of calls on a sheet."""
    return tuple(dict.fromkeys((settings.calls[0], settings.calls[len(settings.calls) // 2])))[:COUNTS]


def of_report(settings: Settings) -> int:
    """Predictions for one pair that the pictures of a report take."""
    pictures = len(settings.guidance) * len(settings.sets.for_judgement[:COLUMNS])
    return pictures * (settings.teacher_calls + 2 * sum(_shown(settings)))


def _sheet(pipe: Any, calibrated: Calibrated, guidance: float, on_calls: OnCalls) -> Sheet:
    settings, own = calibrated.settings, pipe.scheduler
    pairs, calls = settings.sets.for_judgement[:COLUMNS], _shown(settings)

    def drawn(scheduler: Any, count: int) -> list[Image.Image]:
        made = _drawn(pipe, calibrated, pairs, guidance, scheduler, count)
        on_calls(len(pairs) * count)
        return made

    fitted = CalibratedScheduler.from_calibration(calibrated.calibration, own.config, guidance_scale=guidance)
    teacher = make_scheduler(settings.teacher, own.config)
    with exactly(pipe.unet):
        rows = {"teacher": drawn(teacher, settings.teacher_calls)}
    samplers: dict[str, tuple[Any, int]] = {}
    for n in calls:
        fit = calibrated.at(n, guidance).fit
        known: Any = make_scheduler(fit.known, own.config)
        known.whole_calls = fit.whole_calls  # it reuses features where the fit does, as in what was measured
        samplers |= {f"fit {n}": (fitted, n), f"best {n}": (known, n)}
    rows |= {name: drawn(*sampler) for name, sampler in samplers.items()}
    pipe.scheduler = own
    prompts = tuple(calibrated.prompts[i] for i in pairs)
    into = io.BytesIO()
    labelled_sheet(rows, prompts, COLUMNS).save(into, "JPEG", quality=QUALITY)
    return Sheet(guidance, calls, prompts, into.getvalue())


def _drawn(
    pipe: Any, calibrated: Calibrated, pairs: range, guidance: float, scheduler: Any, calls: int
) -> list[Image.Image]:
    """The pictures of some pairs, batch by batch."""
    settings, made = calibrated.settings, []
    pipe.scheduler = scheduler
    width, height = calibrated.calibration.provenance["size"]
    for i in range(0, len(pairs), settings.batch):
        some = pairs[i : i + settings.batch]
        if hasattr(pipe.unet, "reset"):
            pipe.unet.reset()
        arguments = {
            "prompt": [calibrated.prompts[j] for j in some],
            "generator": [torch.Generator("cpu").manual_seed(settings.seed + j) for j in some],
            **({"negative_prompt": [settings.negative] * len(some)} if settings.negative else {}),
        }
        with torch.no_grad():
            made += pipe(
                **arguments, num_inference_steps=calls, guidance_scale=guidance, width=width, height=height
            ).images
    return [_fitted(picture) for picture in made]


def _fitted(picture: Image.Image) -> Image.Image:
    """A picture as it is shown: large ones are made smaller."""
    longer = max(picture.size)
    if longer <= SIDE:
        return picture
    return picture.resize((round(picture.width * SIDE / longer), round(picture.height * SIDE / longer)))
