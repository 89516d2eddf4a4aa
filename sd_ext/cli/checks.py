"""Checks of command line arguments that need neither torch nor a model, so that mistakes are reported at once."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from ..errors import InputError

MAX_STEPS = 1000  # the timesteps a Diffusers model is trained on
MAX_GUIDANCE = 100.0
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 16, 4096, 8
MAX_LAYERS = 32  # of OpenCLIP's bigG, in Stable Diffusion XL
MAX_PICTURES = 1000
MAX_SEED = 2**64 - 1  # the most a torch.Generator takes


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise `InputError` unless there is a prompt, none is empty, and all are valid Unicode."""
    if not prompts:
        raise InputError('no prompt given; try: sd-ext generate "red apple"')
    for prompt in prompts:
        if not prompt.strip():
            raise InputError("a prompt is empty; say in words what to draw")
        check_text("prompt", prompt)


def check_text(what: str, text: str) -> None:
    """Raise `InputError` for text that is not valid Unicode, as when a command line was not UTF-8.

    Args:
        what: what the text is, for the message.
        text: the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the {what} {text!r} is not valid UTF-8 text") from None


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Raise `InputError` unless `value` is one of those that the option knows."""
    if value not in known:
        raise InputError(f"{option} {value!r} is not known; choose {', '.join(known[:-1])} or {known[-1]}")


def split_option(text: str) -> tuple[str, str]:
    """Split `"pag_scale=3"` into name and value. Raises `InputError` if it does not read so."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals or not value.strip():
        raise InputError(f"--unet-option {text!r} cannot be read; write NAME=VALUE, such as pag_scale=3")
    return name.strip(), value.strip()


def check_steps(steps: int) -> None:
    """Raise `InputError` unless `steps` is 1 to 1000."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"--steps {steps} cannot work; choose 1 to {MAX_STEPS} (20 is usual)")


def check_guidance(guidance: float | None) -> None:
    """Raise `InputError` unless `guidance` is None (the model's default) or 0 to 100."""
    if guidance is not None and not (math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise InputError(f"--guidance {guidance:g} cannot work; choose 0 to {MAX_GUIDANCE:g} (1 turns it off)")


def check_clip_skip(number: int) -> None:
    """Raise `InputError` unless `number` is 1 to 32, the layers of the largest text encoder."""
    if not 1 <= number <= MAX_LAYERS:
        raise InputError(f"--clip-skip {number} cannot work; 1 is all layers, 2 without the last one")


def check_number(number: int, prompts: int) -> None:
    """Raise `InputError` unless there are 1 to 1000 pictures in all.

    Args:
        number: pictures for each prompt.
        prompts: how many prompts there are.
    """
    if prompts > MAX_PICTURES:
        raise InputError(f"{prompts} pictures are too many for one command; at most {MAX_PICTURES} are drawn")
    if number < 1 or number * prompts > MAX_PICTURES:
        raise InputError(f"--num {number} cannot work; choose 1 to {MAX_PICTURES // prompts}")


def resolve_seed(seed: int, number: int) -> int:
    """The first picture's seed; pictures have consecutive seeds.

    Args:
        seed: as given; -1 means a random one.
        number: how many seeds are needed.

    Raises:
        InputError: the seeds are outside of what torch accepts.
    """
    if seed == -1:
        return random.SystemRandom().randrange(2**32)
    if not 0 <= seed <= MAX_SEED - number + 1:
        raise InputError(f"--seed {seed} cannot work; choose 0 to {MAX_SEED - number + 1}, or -1 to draw one")
    return seed


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Parse `"512x768"` as (width, height) in pixels; None, which means the model's own size, stays None.

    Raises:
        InputError: it cannot be parsed, or a side is out of range or no multiple of 8.
    """
    if size is None:
        return None
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", size.strip())
    if not match:
        raise InputError(f"--size {size!r} cannot be read; write WIDTHxHEIGHT, such as 64x64")
    width, height = int(match[1]), int(match[2])
    check_sides((width, height), "--size")
    return width, height


def check_sides(sides: tuple[int, int], flag: str) -> None:
    """Raise `InputError` unless a picture may have these sides.

    Args:
        sides: (width, height) in pixels.
        flag: the option that makes them so.
    """
    for side in sides:
        if not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_MULTIPLE:
            raise InputError(
                f"{flag} {sides[0]}x{sides[1]} cannot work; each side must be a multiple of {SIDE_MULTIPLE} "
                f"from {MIN_SIDE} to {MAX_SIDE}"
            )
