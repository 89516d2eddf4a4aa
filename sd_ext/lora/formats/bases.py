"""Find out which Stable Diffusion a LoRA is for: from its modules, and where these leave a choice, from its header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Size

from ...errors import InputError
from ...models.original.families import families
from ...models.original.modules import CONV, LINEAR
from ..adapter import Adapter, ModuleName
from .names import Place, kinds_of_modules

ARCHITECTURES = {
    "stable-diffusion-v1": "sd15", "stable-diffusion-v2": "sd21", "stable-diffusion-xl-v1-refiner": "sdxl-refiner",
    "stable-diffusion-xl": "sdxl",
}  # fmt: skip
VERSIONS = {
    "sdxl_refiner": "sdxl-refiner",
    "sdxl": "sdxl",
    "sd_v2": "sd21",
    "sd_2": "sd21",
    "sd_v1": "sd15",
    "sd_1": "sd15",
}
TEXT_WIDTHS = {
    ("text_encoder", 768): {"sd15", "sdxl"}, ("text_encoder", 1024): {"sd21"},
    ("text_encoder_2", 1280): {"sdxl", "sdxl-refiner"},
}  # fmt: skip
"""A text encoder and the width of its states -> the families that have it."""
OF_BASE = "ss_v2", "ss_base_model_version", "modelspec.architecture", "modelspec.implementation", "modelspec.resolution"
"""Entries of a header that follow from the base."""
LIKELIEST = "sd15", "sd21", "sdxl", "sdxl-refiner"


class Decided(NamedTuple):
    """The base model of a LoRA.

    Args:
        base: the family's name; None if the modules fit several and nothing else tells.
        notes: sentences on what the header says otherwise, and on what was guessed.
    """

    base: str | None
    notes: list[str]


def base_from_header(metadata: Mapping[str, str]) -> str | None:
    """The base model ("sd15", ...) that a header's modelspec or kohya entries name; None if none."""
    architecture = metadata.get("modelspec.architecture", "")
    for beginning, base in ARCHITECTURES.items():
        if architecture.startswith(beginning):
            return base
    version = metadata.get("ss_base_model_version", "").lower()
    if metadata.get("ss_v2") == "True" and not version.startswith("sdxl"):
        return "sd21"
    return next((base for beginning, base in VERSIONS.items() if version.startswith(beginning)), None)


def true_of(header: Mapping[str, str], base: str | None) -> dict[str, str]:
    """A header without what it says of its base, if that is another than `base`."""
    wrong = OF_BASE if base is not None and base_from_header(header) not in (None, base) else ()
    return {key: value for key, value in header.items() if key not in wrong}


def decide_base(
    adapters: Mapping[ModuleName, Adapter],
    places: Iterable[Place] | None = None,
    header: Mapping[str, str] | None = None,
) -> Decided:
    """Decide which base a LoRA is for.

    The modules decide: a family that lacks one of them is out, and so is one of other widths. Only then the header is
    asked, then the names, since kohya's trainer calls SDXL's modules otherwise than those of SD 1.x.

    Args:
        adapters: the adapters by module.
        places: what the names in the file mean; None if there is no file.
        header: the file's header.

    Raises:
        InputError: some are as wide as those of one family, and others as those of another.
    """
    known = list(places) if places is not None else [_place(module) for module in adapters]
    told, as_wide = base_from_header(header or {}), _by_width(adapters)
    fitting = set(families()).intersection(*(place.families for place in known)) if known else set()
    if not fitting:  # of a model of its own, such as the embedded one
        return Decided(told, [])
    fitting = (fitting & as_wide) or fitting
    if told in fitting:
        return Decided(told, [])
    base = _likeliest(fitting, known, adapters)
    if told is None:
        return Decided(base, [])
    theirs = _titles({base} if base else fitting)
    return Decided(base, [f"its header says {families()[told].title}, and its modules are those of {theirs}"])


def _place(module: ModuleName) -> Place:
    named = [name for name in LIKELIEST if module in kinds_of_modules(name)]
    return Place(module, frozenset(named), False)


def _likeliest(fitting: set[str], places: list[Place], adapters: Mapping[ModuleName, Adapter]) -> str | None:
    if len(fitting) > 1:
        fitting = fitting - {"sdxl-refiner"}
    numbered = any(place.original for place in places) or any(m.part == "text_encoder_2" for m in adapters)
    if numbered and "sdxl" in fitting:
        return "sdxl"
    if fitting == {"sd15", "sd21"}:  # the same names; their files differ in widths, and in these layers' shapes
        flat = [len(a.shape) for m, a in adapters.items() if m.path.endswith(("proj_in", "proj_out")) and a.shape]
        return "sd21" if flat and max(flat) == 2 else "sd15"
    return fitting.pop() if len(fitting) == 1 else None


def _by_width(adapters: Mapping[ModuleName, Adapter]) -> set[str]:
    """The families with weights as wide as those that the adapters are made for; all if no width tells."""
    left, told = set(families()), dict[frozenset[str], ModuleName]()
    for module, adapter in adapters.items():
        if (fitting := _as_wide(module, adapter.shape)) is None:
            continue
        told.setdefault(frozenset(fitting), module)
        if not left & fitting:
            what = [f"{_titles(names)} ({module})" for names, module in told.items()]
            raise InputError(f"it holds modules of several models, and none takes all: {' and '.join(what)}")
        left &= fitting
    return left


def _as_wide(module: ModuleName, shape: Size | None) -> set[str] | None:
    """The families whose module is as wide as this one; None if its width does not tell."""
    if shape is None or len(shape) < 2:
        return None
    if module.part == "unet" and module.path.endswith(("attn2.to_k", "attn2.to_v")):
        return {name for name, family in families().items() if family.context == shape[1]} or None
    if ".self_attn." in module.path and shape[0] == shape[1]:
        return TEXT_WIDTHS.get((module.part, shape[0]))
    return None


def _titles(names: Iterable[str]) -> str:
    return " or ".join(families()[name].title for name in LIKELIEST if name in names)


def wrong_shape(module: ModuleName, adapter: Adapter, base: str | None) -> bool:
    """Whether an adapter is made for a 1 x 1 convolution where the base has a linear layer, or the other way round.

    Such are the attention blocks' `proj_in` and `proj_out`, which SD 1.x has as convolutions and others as linear
    layers.
    """
    shape = adapter.shape
    if base is None or shape is None or any(side != 1 for side in shape[2:]):
        return False
    return kinds_of_modules(base).get(module) == {2: CONV, 4: LINEAR}.get(len(shape)) and module.path.endswith(
        ("proj_in", "proj_out")
    )
