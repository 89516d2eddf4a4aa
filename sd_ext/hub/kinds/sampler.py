"""A sampler: as tables with one file that runs them, for everybody, and as this package's own config beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import whole
from ...errors import InputError
from ...reading import read_json
from ..card import literal
from ..content import Content
from .card import licence_lines, licence_of, python, span, write_card

CONFIG, MODULE_FILE, OURS = "scheduler_config.json", "exported_scheduler.py", "sd_ext"
APACHE = "apache-2.0"

STRANGER = """
sys.path.insert(0, sys.argv[1])
import torch
from exported_scheduler import ExportedScheduler
scheduler = ExportedScheduler.from_pretrained(sys.argv[1])
for calls in {counts}:
    scheduler.set_timesteps(calls)
    assert len(scheduler.timesteps) == calls
    x = torch.ones(1, 4, 8, 8) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * scheduler.scale_model_input(x, t), t, x, return_dict=False)[0]
    assert x.isfinite().all(), "the numbers overflow"
"""


def sampler(
    source: str,
    repo_id: str,
    *,
    model: str | None = None,
    licence: str | None = None,
    licence_link: str | None = None,
) -> Content:
    """What is published of a sampler.

    Args:
        source: a folder with a scheduler_config.json, or that file, of a calibrated or any other sampler of this
            package; or a sampler's name, with a grid or not.
        repo_id: `owner/name`.
        model: for a name, the model whose noise schedule it is for.
        licence, licence_link: see `licence_of`; the file that runs the tables is under Apache 2.0.

    Raises:
        InputError: it is no sampler of this package, or one that is more than tables.
    """
    entries = licence_of(licence or APACHE, licence_link, None)
    scheduler, name = _loaded(source, model)
    counts = list(_counts(scheduler))
    some = sorted({counts[0], counts[len(counts) // 2], counts[-1]})
    metadata = {
        **entries, "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "tags": ["scheduler", "sampler", "diffusers", "sd_ext"],
    }  # fmt: skip
    body = [
        f"The sampler {span(name)} as tables of coefficients, for {_runs(counts)} network calls. `{MODULE_FILE}` runs "
        "them; it needs torch and Diffusers, and nothing else.",
        *python([
            "import sys",
            "from diffusers import DiffusionPipeline",
            "from huggingface_hub import snapshot_download",
            "",
            f"folder = snapshot_download({literal(repo_id)})",
            "sys.path.insert(0, folder)  # look at exported_scheduler.py before you run it",
            "from exported_scheduler import ExportedScheduler",
            "",
            'pipe = DiffusionPipeline.from_pretrained("...")  # a model with the noise schedule below',
            "pipe.scheduler = ExportedScheduler.from_pretrained(folder)",
            f'pipe("a picture", num_inference_steps={counts[min(len(counts), 20) - 1]}).images[0].save("picture.png")',
        ]),
        "With `sd_ext` installed:",
        *python([
            "import sd_ext",
            "",
            f"Scheduler = sd_ext.{type(scheduler).__name__}",
            f"pipe.scheduler = Scheduler.from_pretrained({literal(repo_id)}, subfolder={literal(OURS)})",
        ]),
        "## Noise schedule",
        "",
        "It is for models that were trained with this one:",
        "",
        *_schedule(scheduler),
        *licence_lines(entries, None, True),
    ]  # fmt: skip

    def write(new: Path) -> set[str]:
        scheduler.export(new, counts)
        whole.write_text(new / OURS / CONFIG, scheduler.to_json_string())
        return {CONFIG, MODULE_FILE, f"{OURS}/{CONFIG}", write_card(new, name, metadata, body)}

    def check(new: Path) -> None:
        again = type(scheduler).from_pretrained(new / OURS)
        if any(_run(again, calls) != _run(scheduler, calls) for calls in some):
            raise InputError(f"{OURS}/{CONFIG} does not read back as it was written")

    return Content("Sampler as tables, the file that runs them, and card", write, [repo_id, name], check,
                   STRANGER.format(counts=some))  # fmt: skip


def _loaded(source: str, model: str | None) -> tuple[Any, str]:
    """The scheduler that is meant, and what it is called."""
    path = Path(source).expanduser()
    if not path.exists():
        if model is None:
            raise InputError(
                f"{source}: no such folder; for a sampler's name, say with --model whose noise schedule it is for"
            )
        from ...models import find_model

        found = find_model(model)
        from ...schedulers import make_scheduler

        return make_scheduler(source, found.config("scheduler")), source
    folder = path.parent if path.is_file() else path
    config = read_json(folder / CONFIG, dict[str, Any])
    return sampler_class(config.get("_class_name"), folder).from_pretrained(folder), folder.resolve().name


def sampler_class(name: Any, folder: Path) -> Any:
    """The class of a saved sampler. Raises `InputError` if it is none of this package.

    Args:
        name: as its config or its pipeline says.
        folder: where that was found, for the message.
    """
    from ... import schedulers

    cls = getattr(schedulers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, schedulers.TableScheduler)):
        raise InputError(f"{folder} holds a {name!r}, which is no sampler of sd_ext")
    return cls


def _run(scheduler: Any, calls: int) -> Any:
    """The numbers of a run, of which its pictures are made."""
    scheduler.set_timesteps(calls)
    return scheduler.table().numbers(), scheduler.timesteps.tolist()


def _counts(scheduler: Any) -> Any:
    """The numbers of network calls that are exported."""
    from ...schedulers.export import COUNTS

    fitted = getattr(scheduler, "fitted", None)
    return fitted.calls if fitted is not None else COUNTS


def _runs(counts: list[int]) -> str:
    if len(counts) > 2 and counts == list(range(counts[0], counts[-1] + 1)):
        return f"{counts[0]} to {counts[-1]}"
    return ", ".join(map(str, counts))


def _schedule(scheduler: Any) -> list[str]:
    """The settings of the noise schedule, as rows of a table."""
    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "rescale_betas_zero_snr",
    )
    known = [(name, scheduler.config.get(name)) for name in names]
    return [
        "| setting | value |",
        "|---|---|",
        *(f"| `{name}` | {value} |" for name, value in known if value is not None),
    ]
