"""All that was fitted to a model: fits by calls and guidance, where they come from, and what stands between them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ...declared import check, make
from ...errors import InputError
from ...reading import parse_json
from .fits import Fit, interpolated

FORMAT = "sd_ext.calibration/1"
"""What a calibration's JSON says it is."""

MOST_FITS = 1000


@dataclass(frozen=True)
class Provenance:
    """The keys of a calibration's provenance that have a meaning here, and their types; there may be others, all JSON.

    Args:
        model: id on the Hub, or name of a folder; no absolute path.
        model_digest: of the U-Net's weights, all of them.
        model_sample: a few of the weights by the names of their tensors, which tell the model that it was fitted for
            from another one; see `sample_of_weights`.
        dtype: the network's, such as "float16".
        size: (width, height) of the pictures, in pixels.
        guidance, calls: what was asked for.
        prompts, prompts_digest: how many, and which.
        pairs: of prompt and noise, that were fitted to.
        seed: of the noise.
        teacher: {"sampler": ..., "calls": ...}.
        method: version of the method.
        sd_ext, torch, diffusers: versions.
        unet: what the U-Net had switched on, as `describe()` says it: "plain" for nothing.
        lora: strength of each LoRA that was in use, by name; None without any.
        seconds: what it took.
    """

    model: str = ""
    model_digest: str | None = None
    model_sample: Mapping[str, Sequence[float]] | None = None
    dtype: str | None = None
    size: tuple[int, int] | None = None
    guidance: Sequence[float] = ()
    calls: Sequence[int] = ()
    prompts: int | None = None
    prompts_digest: str | None = None
    pairs: int | None = None
    seed: int | None = None
    teacher: Mapping[str, Any] | None = None
    method: str | None = None
    sd_ext: str | None = None
    torch: str | None = None
    diffusers: str | None = None
    unet: str | None = None
    lora: Mapping[str, float] | None = None
    seconds: float | None = None


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Raise `InputError` for what is no `Provenance`, is no JSON, or names a path of this machine."""
    where = "the calibration's provenance"
    check(provenance, Provenance, where)
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise InputError(f"{where} must be plain JSON: {problem}") from None
    model = provenance.get("model", "")
    if PurePosixPath(model).is_absolute() or PureWindowsPath(model).is_absolute():
        raise InputError(f"{where}: model must be an id or the name of a folder, not the path {model!r}")


class Written(dict[str, Any]):
    """A calibration as it stands in a scheduler's config. It prints as a few words: Diffusers' classes print what they
    do not know of a config that they are made from, and this is thousands of numbers.
    """

    def __repr__(self) -> str:
        return f"<a calibration of {len(self.get('fits', ()))} fits>"


@dataclass(frozen=True, eq=False)
class Calibration:
    """All fits of a model, at most one for each number of calls and strength of guidance.

    Args:
        fits: in any order; they are kept by calls and guidance.
        provenance: what they were made of, plain JSON; see `Provenance`.

    Raises:
        InputError: no fits, two for the same, or a provenance that is no JSON or names a path of this machine.
    """

    fits: tuple[Fit, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fits = tuple(sorted(self.fits, key=lambda fit: (fit.calls, fit.guidance)))
        object.__setattr__(self, "fits", fits)
        if not 1 <= len(fits) <= MOST_FITS:
            raise InputError(f"a calibration has 1 to {MOST_FITS} fits, got {len(fits)}")
        for one, other in itertools.pairwise(fits):
            if (one.calls, one.guidance) == (other.calls, other.guidance):
                raise InputError(f"two fits are for {one.calls} calls at guidance {one.guidance:g}; keep one")
        check_provenance(self.provenance)

    @property
    def calls(self) -> tuple[int, ...]:
        """The numbers of calls that were fitted."""
        return tuple(sorted({fit.calls for fit in self.fits}))

    @property
    def guidance(self) -> tuple[float, ...]:
        """The strengths of guidance that were fitted, at any number of calls."""
        return tuple(sorted({fit.guidance for fit in self.fits}))

    def at(self, calls: int, guidance: float) -> tuple[Fit, str]:
        """The fit for a number of calls at a strength of guidance, interpolated between the two strengths beside it.

        Args:
            calls: network evaluations.
            guidance: the guidance scale; below 1 as at 1.

        Returns:
            A fit for just these `calls`; `table` is None where the known sampler shall make them. And a sentence that
            says what stands for what was not fitted, empty where nothing has to be said.
        """
        count = min(self.calls, key=lambda each: (abs(each - calls), each))
        if count != calls:
            known = self._nearest(count, guidance)[0].known
            some = ", ".join(map(str, self.calls))
            return (
                Fit(calls, max(guidance, 1.0), None, None, known),
                f"fitted for {some} calls and not for {calls}: {known} makes them",
            )
        fit, note = self._nearest(calls, max(guidance, 1.0))
        return replace(fit, guidance=max(guidance, 1.0), errors=fit.errors if not note else {}), note

    def _nearest(self, calls: int, guidance: float) -> tuple[Fit, str]:
        """The fit at a number of calls that was fitted, and what has to be said."""
        fits = [fit for fit in self.fits if fit.calls == calls]
        nearest = min(fits, key=lambda fit: abs(fit.guidance - guidance))
        below = [fit for fit in fits if fit.guidance <= guidance]
        above = [fit for fit in fits if fit.guidance >= guidance]
        if nearest.guidance == guidance:
            return nearest, ""
        if not below or not above:
            return nearest, f"fitted for guidance {_range(fits)} and not for {guidance:g}: {nearest.guidance:g} is used"
        low, high = below[-1], above[0]
        if low.table is None and high.table is None:
            return nearest, ""
        if (found := interpolated(low, high, guidance)) is None:
            return nearest, (
                f"{calls} calls were fitted in different ways at guidance {low.guidance:g} and {high.guidance:g}, and "
                f"{guidance:g} is between them: {nearest.guidance:g} is used"
            )
        return replace(found, known=nearest.known), ""

    def to_config(self) -> dict[str, Any]:
        """Plain JSON, for a scheduler's config."""
        provenance = parse_json(json.dumps(self.provenance, allow_nan=False), "the provenance")
        return Written(format=FORMAT, provenance=provenance, fits=[fit.to_config() for fit in self.fits])

    @classmethod
    def from_config(cls, data: Any, where: str = "the calibration") -> Calibration:
        """The reverse of `to_config`; everything is validated.

        Args:
            data: the object.
            where: what it is called in messages.

        Raises:
            InputError: with the place that is wrong.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise InputError(f"{where} is none: expected 'format': {FORMAT!r}")
        saved = make(_Saved, data, where)
        if len(saved.fits) > MOST_FITS:
            raise InputError(f"{where} has more than {MOST_FITS} fits")
        fits = tuple(Fit.from_config(fit, f"{where}: fits[{i}]") for i, fit in enumerate(saved.fits))
        try:
            return cls(fits, saved.provenance)
        except InputError as problem:
            raise InputError(f"{where}: {problem}") from None


@dataclass(frozen=True)
class _Saved:
    """What a calibration is as JSON."""

    fits: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _range(fits: Sequence[Fit]) -> str:
    """Their strengths of guidance: "7.5" or "1.5 to 12"."""
    return " to ".join(f"{value:g}" for value in sorted({fits[0].guidance, fits[-1].guidance}))
