"""What a report tells, as plain sentences and rows of a table."""

from __future__ import annotations

from collections.abc import Iterator

from ...schedulers.calibrated import Fit
from ..calibrated import Calibrated
from ..prompts import repeated
from ..tables import KNOWN
from .pictures import of_report

HEADS = (
    *("guidance", "calls", "fitted: error", "spread", "one field: error", "best known"),
    *("its error", "its spread", "fitted / known", "used", "seconds"),
)


def summary(calibrated: Calibrated) -> str:
    """What was made of what."""
    told, sets = calibrated.calibration.provenance, calibrated.settings.sets
    strengths = ", ".join(f"{g:g}" for g in calibrated.settings.guidance)
    width, height = told["size"]
    lora = f", with the LoRA {', '.join(told['lora'])}" if told["lora"] else ""
    return (
        f"Samplers for {', '.join(map(str, calibrated.settings.calls))} calls at guidance {strengths}, fitted to "
        f"{told['model'] or 'a model'}{lora} at {width} x {height} pixels in {told['dtype']}. The teacher is "
        f"{told['teacher']['sampler']} with {told['teacher']['calls']} calls. Fitted to {sets.fit} pairs of prompt and "
        f"noise, chosen on {sets.validate} others, and judged on {sets.judge} more: all numbers and pictures here are "
        f"of the last.{reuse(calibrated)}"
    )


def reuse(calibrated: Calibrated) -> str:
    """Which calls ran the whole U-Net, where not all did."""
    whole = {fit.calls: fit.whole_calls for fit in calibrated.calibration.fits if fit.whole_calls is not None}
    if not whole:
        return ""
    each = "; ".join(f"{', '.join(map(str, some))} of {calls} calls" for calls, some in whole.items())
    return f" The whole U-Net ran in the calls {each}, counted from 0, and the others reused features, in all samplers."


def measured() -> str:
    """What the numbers are."""
    return (
        "Error is the root mean square difference of a latent from the teacher's, averaged over pictures. Spread is "
        "the standard deviation of all latents beside the teacher's: below 1 pictures are pale, above it burnt. Best "
        "known is the best of the samplers that need no fit, at that number of calls and guidance. One field is the "
        "fitted sampler for pipelines that leave no unconditional predictions. Known are "
        f"{', '.join(KNOWN[:-1])} and {KNOWN[-1]}."
    )


def rows(calibrated: Calibrated) -> Iterator[list[str]]:
    """A row for each fit, under `HEADS`."""
    for finished in sorted(calibrated.finished, key=lambda f: (f.fit.guidance, f.fit.calls)):
        fit, errors = finished.fit, finished.fit.errors
        number = {name: f"{errors[name]:.4f}" if name in errors else "-" for name in ("fitted", "one_field", "known")}
        wide = {name: f"{errors[name]:.3f}" if name in errors else "-" for name in ("fitted_spread", "known_spread")}
        yield [
            f"{fit.guidance:g}", str(fit.calls), number["fitted"], wide["fitted_spread"], number["one_field"],
            fit.known, number["known"], wide["known_spread"], _ratio(fit), "fitted" if fit.table else "known",
            f"{finished.seconds:.0f}",
        ]  # fmt: skip


def _ratio(fit: Fit) -> str:
    fitted, known = fit.errors.get("fitted"), fit.errors.get("known")
    return f"{fitted / known:.2f}" if fitted is not None and known else "-"


def limits(calibrated: Calibrated) -> list[str]:
    """Where it does not help, and what was not measured."""
    found = []
    for fit in sorted((f.fit for f in calibrated.finished), key=lambda fit: (fit.guidance, fit.calls)):
        where = f"{fit.calls} calls at guidance {fit.guidance:g}"
        fitted, known = fit.errors.get("fitted"), fit.errors.get("known", 0.0)
        if fit.table is None:
            found.append(
                f"{where}: the fit was no better than {fit.known} on pictures it was not fitted to, which is kept."
            )
        elif fitted is None or fitted > known:
            found.append(f"{where}: the fit was chosen, and is worse than {fit.known} on the pictures that judge it.")
        if fit.companion is not None and fitted and (alone := fit.errors.get("one_field", fitted)) < 0.95 * fitted:
            found.append(
                f"{where}: one field alone came nearer on the pictures that judge ({alone:.4f} against {fitted:.4f}); "
                "another calibration with one field (--fields 1) may be worth a try."
            )
        if abs(fit.errors.get("fitted_spread", 1.0) - 1) > 0.05:
            found.append(
                f"{where}: the spread is {fit.errors['fitted_spread']:.2f}, so pictures may look pale or burnt."
            )
    if sentence := repeated(calibrated.prompts):
        found.append(f"{sentence[0].upper()}{sentence[1:]}.")
    told = calibrated.calibration.provenance
    low, high = calibrated.settings.guidance[0], calibrated.settings.guidance[-1]
    strengths = f"outside guidance {low:g} to {high:g}" if low < high else f"at other guidance than {low:g}"
    found.append(
        f"Nothing was measured {strengths}, at other numbers of calls, at another size than "
        f"{told['size'][0]} x {told['size'][1]}, with other LoRAs, or with another model."
    )
    if len(calibrated.settings.guidance) > 1:
        found.append("Between two strengths of guidance samplers are interpolated, which was not measured here.")
    found.append(
        "Errors are distances to the teacher's pictures and no judgement: a picture that differs may be a good one."
    )
    return found


def spent(calibrated: Calibrated) -> str:
    """What it cost."""
    made = sum(each.predictions for each in calibrated.finished)
    strengths, settings = len(calibrated.settings.guidance), calibrated.settings
    taught, drawn = strengths * settings.teacher_calls * settings.sets.pairs, of_report(settings)
    seconds = calibrated.calibration.provenance["seconds"]
    return (
        f"{made:,} predictions for fits and choices, which took {seconds:,.0f} s, {taught:,} for the teacher, and "
        f"{drawn:,} for the pictures of this report. A prediction is one call of the U-Net for one picture, with and "
        "without the prompt."
    )
