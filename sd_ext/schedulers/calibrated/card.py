"""The README of a calibrated sampler's folder, as the Hub shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import whole
from ...errors import InputError, one_line
from ...plain_files import MIB, read_text
from .calibration import Calibration
from .fits import Fit

README = "README.md"

MARK = "<!-- written by sd_ext from scheduler_config.json -->"
"""By which a README is known that may be written anew."""

FACTS = {
    "model": "model",
    "model_digest": "digest of the U-Net's weights",
    "dtype": "dtype",
    "size": "size in pixels",
    "lora": "LoRAs",
    "prompts": "prompts",
    "prompts_digest": "digest of the prompts",
    "pairs": "pairs of prompt and noise",
    "seed": "seed",
    "teacher": "teacher",
    "method": "method",
    "seconds": "seconds",
    "sd_ext": "sd_ext",
    "torch": "torch",
    "diffusers": "diffusers",
}
"""What of the provenance is listed, in this order, and how it is called."""


def write_card(calibration: Calibration, folder: Path) -> None:
    """Write the README into a folder; one that somebody else has written stays."""
    path = folder / README
    if not path.exists() or _is_ours(path):
        whole.write_text(path, card(calibration))


def _is_ours(path: Path) -> bool:
    try:
        return MARK in read_text(path, MIB)
    except InputError:
        return False


def card(calibration: Calibration) -> str:
    """The README: how to use the sampler, what was measured, and what it was fitted to."""
    made_for = cell(calibration.provenance.get("model") or "a model")
    count, strength = calibration.calls[0], calibration.guidance[-1]
    rows = "\n".join(f"| {' | '.join(_row(fit))} |" for fit in calibration.fits)
    facts = "\n".join(
        f"- {called}: {cell(_said(value))}"
        for name, called in FACTS.items()
        if (value := calibration.provenance.get(name)) is not None
    )
    return f"""\
---
library_name: diffusers
tags: [sd_ext, sampler]
---
{MARK}

# Calibrated sampler for {made_for}

Tables fitted to this model by [sd_ext](https://pypi.org/project/sd_ext/), for a few network calls. Other calls and
strengths of guidance are made by the nearest table or by the best known sampler, which is said.

```python
import sd_ext
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(MODEL)
{_unet(calibration)}pipe.scheduler = sd_ext.CalibratedScheduler.from_pretrained(FOLDER_OR_REPOSITORY)
sd_ext.attach(pipe)
pipe("...", num_inference_steps={count}, guidance_scale={strength:g})
```

Error is the RMSE of latents to the teacher's, on pictures that were not fitted; spread is their standard deviation
beside the teacher's.

| calls | guidance | runs | error | spread | best known sampler | its error | its spread |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## What it was fitted to

{facts or "- nothing is recorded"}
"""


def _unet(calibration: Calibration) -> str:
    """The line for a U-Net that reuses features as the fits say; none where none do."""
    if all(fit.whole_calls is None for fit in calibration.fits):
        return ""
    return 'pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet, cache_schedule="sampler")\n'


def _row(fit: Fit) -> list[str]:
    runs = (
        "the known sampler" if fit.table is None else f"a table of {('one field', 'two fields')[fit.table.fields - 1]}"
    )
    chosen = "known" if fit.table is None else "fitted"
    measured = [fit.errors.get(name) for name in (chosen, f"{chosen}_spread", "known", "known_spread")]
    numbers = ["" if value is None else f"{value:.3g}" for value in measured]
    calls = (
        str(fit.calls) if fit.whole_calls is None else f"{fit.calls}, whole in {', '.join(map(str, fit.whole_calls))}"
    )
    return [calls, f"{fit.guidance:g}", runs, *numbers[:2], cell(fit.known), *numbers[2:]]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def cell(text: str) -> str:
    """Text on one line that ends no cell and opens no tag."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")
