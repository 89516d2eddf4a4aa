"""What is asked of a calibration, checked before anything slow begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..declared import check
from ..errors import InputError
from .problem import Sets
from .refine import Effort
from .student import unknowns

MOST_CALLS = 50
"""Above it known samplers are as good, and the time to fit grows with the cube of the calls."""
NUMBERS_EACH = 4
"""Least numbers of pictures for each number that is fitted."""


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Args:
        calls: numbers of network calls to fit samplers for.
        guidance: strengths to fit each of them at; 1 is without guidance.
        pairs: of prompt and noise to fit to; half as many are validated on, and as many judged on.
        seed: of the first pair's noise; the others' follow.
        negative: the negative prompt.
        fields: 2 weighs predictions without the prompt as well, which needs guidance; 1 does not. None is what each
            strength allows.
        teacher, teacher_calls: the sampler whose pictures are to be reached, and its calls.
        effort: how long to refine; see `Effort`.
        batch: pairs in one call of the network at most.
        whole_share: share of the calls that compute the whole U-Net, where the others reuse its deep features; which
            ones is part of the fit. Below 1 the U-Net must have cache_schedule="sampler".

    Raises:
        InputError: what cannot be.
    """

    calls: Sequence[int] = (4, 5, 6, 8, 10)
    guidance: Sequence[float] = (1.5, 4.0, 7.5, 12.0)
    pairs: int = 16
    seed: int = 0
    negative: str = ""
    fields: int | None = None
    teacher: str = "dpm++ 2m lambda_uniform"
    teacher_calls: int = 72
    effort: Effort = field(default_factory=Effort)
    batch: int = 16
    whole_share: float = 1.0

    _kinds: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("pairs", "seed", "teacher_calls", "batch"), int),
        **dict.fromkeys(("negative", "teacher"), str),
        "calls": Sequence[int],
        "guidance": Sequence[float],
        "whole_share": float,
        "fields": int | None,
    }

    def __post_init__(self) -> None:
        for name, kind in self._kinds.items():
            check(getattr(self, name), kind, "calibrate", name)
        if not isinstance(self.effort, Effort):
            raise InputError(f"calibrate: effort must be an Effort, got {self.effort!r}")
        object.__setattr__(self, "calls", tuple(sorted(set(self.calls))))
        object.__setattr__(self, "guidance", tuple(sorted({float(each) for each in self.guidance})))
        if not self.calls or not self.guidance:
            raise InputError("a calibration needs at least one number of calls and one strength of guidance")
        if not 2 <= self.calls[0] <= self.calls[-1] <= MOST_CALLS:
            wrong = self.calls[0] if self.calls[0] < 2 else self.calls[-1]
            raise InputError(f"{wrong} calls cannot be fitted; choose 2 to {MOST_CALLS}")
        if bad := [each for each in self.guidance if not (math.isfinite(each) and 1 <= each <= 100)]:
            raise InputError(f"guidance {bad[0]:g} cannot be fitted; choose 1 (none) to 100")
        if len({f"{each:g}" for each in self.guidance}) < len(self.guidance):
            raise InputError(
                f"guidance {self.guidance} has strengths that are the same to six digits; leave one of them"
            )
        if self.fields not in (None, 1, 2):
            raise InputError(f"a sampler weighs 1 field or 2, got {self.fields!r}")
        if self.fields == 2 and self.guidance[0] == 1:
            raise InputError("guidance 1 has no second field, since nothing is predicted without the prompt; leave one")
        if self.pairs < 2:
            raise InputError(f"{self.pairs} pairs are too few to fit to; choose 2 or more (16 is usual)")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} cannot be; choose 0 or more")
        if self.batch < 1:
            raise InputError(f"a batch of {self.batch} cannot be; choose 1 or more")
        if not 0 < self.whole_share <= 1:
            raise InputError(f"a share of {self.whole_share:g} whole calls cannot be; choose above 0, to 1 for all")
        if self.teacher_calls < 2 * self.calls[-1]:
            raise InputError(
                f"a teacher of {self.teacher_calls} calls has little to teach a student of {self.calls[-1]}; choose at "
                f"least {2 * self.calls[-1]}"
            )
        self.effort.check()

    @property
    def sets(self) -> Sets:
        return Sets(self.pairs, max(4, self.pairs // 2), max(8, self.pairs))

    def fields_at(self, guidance: float) -> int:
        """How many fields are weighed at a strength."""
        return self.fields or (2 if guidance > 1 else 1)

    def order(self) -> list[tuple[float, float]]:
        """(strength, the strength whose levels it takes), in the order of fitting: of the strengths of one number of
        fields the middle one comes first, and the others take its levels.
        """
        groups = [[g for g in self.guidance if self.fields_at(g) == fields] for fields in (1, 2)]
        made = []
        for group in filter(None, groups):
            middle = group[len(group) // 2]
            made += [(middle, middle), *((each, middle) for each in group if each != middle)]
        return made

    def check_numbers(self, each: int) -> None:
        """That there is enough to fit to.

        Args:
            each: how many numbers a picture (a latent) has.

        Raises:
            InputError: too few pairs.
        """
        for fields in {self.fields_at(g) for g in self.guidance}:
            wanted = unknowns(fields, self.calls[-1])
            if self.pairs * each < NUMBERS_EACH * wanted:
                raise InputError(
                    f"{self.pairs} pairs of {each} numbers are too few for the {wanted} numbers of a sampler of "
                    f"{self.calls[-1]} calls; choose at least {-(-NUMBERS_EACH * wanted // each)} pairs"
                )
