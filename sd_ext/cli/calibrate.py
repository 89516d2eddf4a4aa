"""`sd-ext calibrate`: fit samplers of few calls to a model."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..models import EMBEDDED
from . import checks
from .voice import Voice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..calibration import Settings
    from .prepare import Prepared

REUSE = "cache_schedule=sampler"
"""The option of U-Nets that reuse features as the sampler says."""


def calibrate(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or one where it was interrupted.")],
    model: Annotated[
        str, typer.Option(metavar="PATH_OR_ID", help="Pipeline folder, .safetensors file or Hub id.")
    ] = EMBEDDED,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A prompt a line.", show_default="the model's words, or plain ones"),
    ] = None,
    calls: Annotated[str, typer.Option(metavar="N,N", help="Numbers of network calls to fit for.")] = "4,5,6,8,10",
    guidance: Annotated[
        str, typer.Option(metavar="G,G", help="Strengths to fit at; between two, samplers are interpolated.")
    ] = "1.5,4,7.5,12",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels.", show_default="the model's own")] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="The negative prompt you draw with.")] = "",
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:S]", help="A LoRA that is in use; repeat for more.")
    ] = None,
    unet: Annotated[
        str | None, typer.Option(metavar="NAME", help="Preset of the U-Net, as in generate.", show_default="its own")
    ] = None,
    pairs: Annotated[int, typer.Option(metavar="N", help="Pairs of prompt and noise to fit to.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the first noise.")] = 0,
    fields: Annotated[
        int | None, typer.Option(metavar="1|2", help="1: do not weigh unconditional predictions.", show_default="2")
    ] = None,
    whole_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of calls that run the whole U-Net; others reuse features.")
    ] = 1.0,
    teacher_calls: Annotated[int, typer.Option(metavar="N", help="Calls of the sampler that teaches.")] = 72,
    refine: Annotated[int, typer.Option(metavar="N", help="Rounds of refinement; 0 is quick, 3 is best.")] = 3,
    batch: Annotated[int, typer.Option(metavar="N", help="Pictures at once; halved where memory is too small.")] = 16,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where it runs.")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="auto|fp32|fp16|bf16", help="Of the weights.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes, measured on one batch, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no hints.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Fit samplers of few calls to a model: forward passes only, minutes on a GPU. Writes a scheduler and a report."""
    from .request import Recipe, Run

    counts, strengths = parse_counts(calls), parse_strengths(guidance)
    recipe = Recipe(
        prompt="a picture", model=model, lora=tuple(lora or ()), unet=unet,
        unet_option=(REUSE,) if whole_share < 1 else (), seed=checks.resolve_seed(seed, 1000),
        device=device, dtype=dtype, size=size, guidance=strengths[-1], negative=negative,
    )  # fmt: skip
    recipe.check()
    voice, run = Voice(quiet), Run(trust_remote_code=trust_remote_code)
    from .plan import find_for

    source = find_for([recipe])
    given = None
    if prompts is not None:
        from ..calibration.prompts import lines_of

        if not (given := lines_of(prompts)):
            raise InputError(f"{prompts} has no prompts in it; write what you draw, a prompt a line")
        checks.check_prompts(given)
    with voice.busy("Loading the model"):
        from .silence import silence_torch

        silence_torch()
        from ..calibration import Effort, Settings
        from ..calibration.store import check_free
        from .prepare import prepare

        settings = Settings(
            counts,
            strengths,
            pairs,
            seed,
            negative,
            fields,
            teacher_calls=teacher_calls,
            effort=Effort(refine),
            batch=batch,
            whole_share=whole_share,
        )
        check_free(out)
        if given is None:
            from ..calibration.prompts import of_words
            from ..models.words import words_of

            words = words_of(source)
            given = (of_words(words) if words else None) or shipped(voice)
        prepared = prepare([recipe], source, run, voice.tell)
    prepared.pipe.set_progress_bar_config(disable=True)
    if whole_share < 1:
        from ..calibration.whole_calls import count

        run_whole = ", ".join(f"{count(each, whole_share)} of {each}" for each in settings.calls)
        voice.tell(f"The whole U-Net runs in {run_whole} calls; the others reuse its deep features.")
    if dry_run:
        show(prepared, given, settings, voice)
        return
    fit(prepared, given, settings, out, source.name, voice)


def shipped(voice: Voice) -> list[str]:
    """The plain prompts of this package."""
    from ..calibration.prompts import SHIPPED, lines_of

    voice.tell(
        "No --prompts FILE: plain prompts that come with this package are used; your own would fit yours better."
    )
    return lines_of(SHIPPED)


def parse_counts(text: str) -> tuple[int, ...]:
    """Parse "4,5,8". Raises `InputError` if it does not read so."""
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text.replace(" ", "")):
        raise InputError(f"--calls {text!r} cannot be read; write whole numbers, such as 4,5,8")
    return tuple(int(part) for part in text.split(","))


def parse_strengths(text: str) -> tuple[float, ...]:
    """Parse "5,7.5". Raises `InputError` if it does not read so."""
    if not re.fullmatch(r"\d{1,3}(\.\d+)?(,\d{1,3}(\.\d+)?)*", text.replace(" ", "")):
        raise InputError(f"--guidance {text!r} cannot be read; write numbers, such as 5,7.5")
    strengths = tuple(sorted(float(part) for part in text.split(",")))
    for strength in strengths:
        checks.check_guidance(strength)
    return strengths


def _size(prepared: Prepared) -> tuple[int, int]:
    return prepared.recipes[0].sides


def show(prepared: Prepared, prompts: Sequence[str], settings: Settings, voice: Voice) -> None:
    """Print what a calibration would take; one batch is run."""
    from ..calibration.plan import cost
    from ..calibration.run import prepare

    class Told(_listener()):
        def told(self, sentence: str) -> None:
            voice.tell(sentence)

    problem, every = prepare(prepared.pipe, prompts, settings, _size(prepared), Told())
    taken = cost(problem, settings)
    sets, recipe = settings.sets, prepared.recipes[0]
    facts = {
        "model": recipe.model,
        "device": f"{recipe.device}, {recipe.dtype}",
        "size": recipe.size,
        "calls": ", ".join(map(str, settings.calls)),
        "guidance": ", ".join(f"{each:g}" for each in settings.guidance),
        "pairs": f"{sets.fit} to fit, {sets.validate} to choose, {sets.judge} to judge; {len(set(every))} prompts",
        "network": f"{taken.predictions:,} calls at most, each for one picture with and without its prompt",
        "time": f"about {minutes(taken.seconds)} at most, at {taken.batch} pictures in a call",
        "memory": memory(taken.memory, taken.kept),
    }
    for name, value in facts.items():
        print(f"{name:<10} {value}")


def minutes(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def memory(peak: int | None, kept: int) -> str:
    """The memory of a batch, and of what is kept, in words."""
    first = "not told by this system" if peak is None else f"{peak / 2**30:.1f} GB, weights and a batch"
    return f"{first}; {kept / 2**30:.2f} GB of main memory for the teacher's states"


def strengths(loras: Sequence[str]) -> dict[str, float]:
    """The strength of each LoRA by its file's name, and that in the text encoders where it is another one.

    Args:
        loras: see `additions.parse_lora`.
    """
    from .additions import parse_lora

    told = dict[str, float]()
    for name, strength in ((Path(each.source).stem, each.strength) for each in map(parse_lora, loras)):
        told[name] = strength.unet
        if strength.text not in (None, strength.unet):
            told[f"{name}, text encoders"] = strength.of_part("text_encoder")
    return told


def fit(prepared: Prepared, prompts: Sequence[str], settings: Settings, out: Path, name: str, voice: Voice) -> None:
    """Calibrate with a bar, and report."""
    from ..calibration import calibrate

    lora = strengths(prepared.recipes[0].lora)
    try:
        with bar(voice) as listener:
            scheduler = calibrate(
                prepared.pipe, prompts, out=out, size=_size(prepared), listener=listener, settings=settings,
                model=Path(name).name if Path(name).exists() else name, lora=lora or None,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"sd-ext: stopped; the same command goes on from what is finished in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    better = [each for each in scheduler.fitted.fits if each.table is not None]
    voice.hint(
        f"{len(better)} of {len(scheduler.fitted.fits)} fits beat the best known sampler; see {out / 'report.html'}."
    )
    if settings.whole_share < 1:
        voice.hint(f"Draw with --unet-option {REUSE}; without it every call runs the whole U-Net.")
    print(out / "scheduler_config.json")


def _listener() -> Any:
    from ..calibration import Listener

    return Listener


@contextmanager
def bar(voice: Voice) -> Iterator[Any]:
    """A listener that shows a bar on the standard error, within the block."""
    with voice.progress() as shown:
        task = shown.add_task("Calibrating", total=None)

        class Bar(_listener()):
            def planned(self, predictions: int) -> None:
                shown.update(task, total=predictions)

            def stage(self, text: str) -> None:
                shown.update(task, description=text)

            def made(self, predictions: int) -> None:
                shown.advance(task, predictions)

            def told(self, sentence: str) -> None:
                voice.tell(sentence)

        yield Bar()
