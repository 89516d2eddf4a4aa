"""Which pictures and networks a picture is made from, beside words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from ...errors import InputError
from .option import Group, Option

STRENGTH, MASKED_STRENGTH, DENOISE, REFINER_AT = 0.8, 1.0, 0.5, 0.8
MAX_UPSCALE = 8.0
MAX_SCALE = 10.0  # of a ControlNet
WRITE = "write ID_OR_FOLDER:FILE or ID_OR_FOLDER:FILE:SCALE, such as owner/canny:edges.png:0.8"


class Control(NamedTuple):
    """What follows --control: which ControlNet sees which picture, and how strongly it acts."""

    network: str
    picture: str
    scale: float


def parse_control(text: str) -> Control:
    r"""Read `ID_OR_FOLDER:FILE[:SCALE]`. The colon of a Windows drive (`C:\edges.png`) divides nothing.

    Raises:
        InputError: it does not read so.
    """
    pieces = re.sub(r"(?:(?<=:)|^)([A-Za-z]):(?=[\\/])", r"\1" + "\0", text).split(":")
    scale = 1.0
    if len(pieces) == 3:
        try:
            scale = float(pieces.pop())
        except ValueError:
            raise InputError(f"--control {text!r} cannot be read; {WRITE}") from None
    if len(pieces) != 2 or not all(piece.strip() for piece in pieces):
        raise InputError(f"--control {text!r} cannot be read; {WRITE}")
    if not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        raise InputError(f"--control {text!r}: a scale of {scale:g} cannot work; choose 0 to {MAX_SCALE:g}")
    network, picture = (piece.replace("\0", ":") for piece in pieces)
    return Control(network, picture, scale)


class Region(NamedTuple):
    """What follows --region: where in the picture, a box in shares or the file of a mask, and the words for there."""

    box: tuple[float, ...] | None
    mask: str
    prompt: str


def parse_region(text: str) -> Region:
    """Read `LEFT,TOP,RIGHT,BOTTOM=WORDS` or `FILE=WORDS`.

    Raises:
        InputError: it does not read so.
    """
    where, _, prompt = (piece.strip() for piece in text.partition("="))
    if not where or not prompt:
        raise InputError(
            f"--region {text!r} cannot be read; write LEFT,TOP,RIGHT,BOTTOM=WORDS, such as 0,0,0.5,1=red apple, or "
            "a mask's FILE=WORDS"
        )
    try:
        box = tuple(float(side) for side in where.split(","))
    except ValueError:
        return Region(None, where, prompt)
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise InputError(f"--region {text!r}: a box is LEFT,TOP,RIGHT,BOTTOM in shares of the picture, from 0 to 1")
    return Region(box, "", prompt)


@dataclass(frozen=True, kw_only=True)
class Inputs(Group):
    """Which pictures and networks it is made from."""

    title: ClassVar[str] = "From pictures"

    image: Annotated[
        str | None, Option("Start from this picture; resized and cropped where needed.", "FILE", path=True)
    ] = None
    strength: Annotated[
        float | None, Option("How much of --image is drawn anew, 0 to 1.", "S", "0.8; with --mask 1")
    ] = None
    mask: Annotated[str | None, Option("Draw only where this picture is white.", "FILE", path=True)] = None
    control: Annotated[
        tuple[str, ...],
        Option("Let a ControlNet see a picture, at SCALE 1 unless told; repeat for more.", "ID_OR_DIR:FILE[:SCALE]"),
    ] = ()
    region: Annotated[
        tuple[str, ...],
        Option("Words for a part of the picture: a box in shares, or a mask's file; repeat for more.", "L,T,R,B=WORDS"),
    ] = ()
    region_base: Annotated[float | None, Option("How much the prompt counts there too, 0 to 1.", "S", "0")] = None
    upscale: Annotated[
        float | None, Option("Enlarge the drawn picture so many times and draw over it; --unet highres helps.", "F")
    ] = None
    upscale_steps: Annotated[int | None, Option("Network evaluations for that.", "N", "as --steps")] = None
    denoise: Annotated[float | None, Option("How much of it is drawn anew, 0 to 1.", "D", "0.5")] = None
    refiner: Annotated[str | None, Option("Let SDXL's refiner draw the last steps.", "MODEL", "none", path=True)] = None
    refiner_at: Annotated[float | None, Option("The share of the noise schedule before it.", "A", "0.8")] = None
    digests: tuple[str, ...] = ()  # "DIGEST FILE" of each picture it was made from; see `sd_ext.cli.inputs.files`

    @property
    def drawn_strength(self) -> float:
        """The strength as given, or the usual one."""
        usual = MASKED_STRENGTH if self.mask else STRENGTH
        return usual if self.strength is None else self.strength

    @property
    def controls(self) -> list[Control]:
        """What --control says."""
        return [parse_control(text) for text in self.control]

    @property
    def regions(self) -> list[Region]:
        """What --region says."""
        return [parse_region(text) for text in self.region]

    def check_inputs(self, steps: int) -> None:
        """Raise `InputError` for values that cannot work or go together, whatever the model.

        Args:
            steps: of the recipe.
        """
        self._check_company()
        for flag, share in (("--strength", self.strength), ("--denoise", self.denoise)):
            if share is not None and not (math.isfinite(share) and 0 < share <= 1):
                raise InputError(f"{flag} {share:g} cannot work; choose above 0 (nothing changes) to 1 (all is new)")
        if self.refiner_at is not None and not (math.isfinite(self.refiner_at) and 0 < self.refiner_at < 1):
            raise InputError(f"--refiner-at {self.refiner_at:g} cannot work; choose between 0 and 1 (0.8 is usual)")
        if self.upscale is not None and not (math.isfinite(self.upscale) and 1 < self.upscale <= MAX_UPSCALE):
            raise InputError(f"--upscale {self.upscale:g} cannot work; choose above 1 to {MAX_UPSCALE:g}")
        if self.upscale_steps is not None and not 1 <= self.upscale_steps <= 1000:
            raise InputError(f"--upscale-steps {self.upscale_steps} cannot work; choose 1 to 1000")
        if self.image is not None and int(steps * self.drawn_strength) < 1:
            raise InputError(f"--strength {self.drawn_strength:g} of --steps {steps} is no step at all; raise one")
        if self.upscale is not None:
            again, share = self.upscale_steps or steps, DENOISE if self.denoise is None else self.denoise
            if int(again * share) < 1:
                raise InputError(f"--denoise {share:g} of {again} steps is no step at all; raise --upscale-steps")
        if self.region_base is not None and not 0 <= self.region_base <= 1:
            raise InputError(f"--region-base {self.region_base:g} cannot work; choose 0 to 1")
        if self.region_base is not None and not self.region:
            raise InputError("--region-base says how much the prompt counts in a --region; give one, or leave it out")
        _ = self.controls, self.regions

    def _check_company(self) -> None:
        """Raise `InputError` for an option without the one it belongs to, or beside one it cannot go with."""
        needs = (
            ("--strength", self.strength, "--image", self.image),
            ("--mask", self.mask, "--image", self.image),
            ("--upscale-steps", self.upscale_steps, "--upscale", self.upscale),
            ("--denoise", self.denoise, "--upscale", self.upscale),
            ("--refiner-at", self.refiner_at, "--refiner", self.refiner),
        )
        for flag, value, other, its in needs:
            if value is not None and its is None:
                raise InputError(f"{flag} needs {other} too; give it, or leave {flag} out")
        apart = (
            ("--mask", self.mask, "--upscale", self.upscale, "what is outside the mask would be drawn over"),
            ("--mask", self.mask, "--refiner", self.refiner, "the refiner draws whole pictures"),
            (
                "--image",
                self.control and self.image,
                "--refiner",
                self.refiner,
                "not beside --control",
            ),
        )
        for flag, value, other, its, why in apart:
            if value and its:
                raise InputError(f"{flag} and {other} do not go together ({why}); leave one out")
        at = REFINER_AT if self.refiner_at is None else self.refiner_at
        if self.image and self.refiner and 1 - self.drawn_strength >= at:
            raise InputError(
                f"--strength {self.drawn_strength:g} begins after the refiner does (--refiner-at {at:g}); raise one"
            )
