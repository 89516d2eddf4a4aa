"""Write a model as a single `.safetensors` file in the original layout, every tensor to the bit.

Programs that read such files take many numbers for granted: attention heads, noise schedule, activations. A model with
others would be misread by all of them, so it is refused, with the number named.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..seams.transformers import with_prefix
from .folder import Folder
from .header import read_header
from .hub import OnHub
from .model import Change, Model, Stored, part_class
from .original.families import NOISE, Family, families
from .original.places import Place, original_shape, place_of, renaming
from .original.prediction import V
from .original.vae_names import modern
from .single_file import SingleFile
from .to_folder import EXTRAS
from .weights import StoredTensor, read_tensors, stored_tensors

if TYPE_CHECKING:
    from torch import Tensor

FREE = {"sample_size", "upcast_attention", "force_upcast", "projection_dim"}
"""Numbers of a config that change no picture, or that every reader finds out."""
TEXT = "hidden_act", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings", "vocab_size"
PER_LEVEL = "attention_head_dim", "transformer_layers_per_block", "layers_per_block", "cross_attention_dim"
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1",
    "sd21": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}
V_OF_2 = "stable-diffusion-v2-768-v"
SAYS_V, SAYS_ZERO = "v_pred", "ztsnr"


def write_file(model: Model, new: Path, parts: Sequence[str], change: Change) -> list[str]:
    """Write a model as one file.

    Args:
        model: a complete model of one of the families.
        new: the file, as `sd_ext.whole.file` yields it.
        parts: those that may change.
        change: see `Model.write_changed`; called once for every part that may change.

    Returns:
        What was left out or added, as sentences without full stops.

    Raises:
        ModelError: the model is of another kind, or the layout has no place for a tensor or number of it.
    """
    from safetensors.torch import save_file

    model.check()
    family = family_of(model)
    _check_noise(model)
    tensors, metadata, notes = _extras(model)
    for part in family.beginnings:
        stored = model.tensors(part)
        placed = dict(_placed(model, family, part, stored))
        _check_numbers(model, family, part, placed, stored)
        read = dict(read_tensors(stored))
        if part in parts:
            given: Stored = {(part, name): tensor for name, tensor in stored.items()}
            read |= {name: tensor for (_, name), tensor in change(given).items()}
        start = family.beginnings[part][0]
        tensors |= {start + key: tensor for key, tensor in _gathered(placed, read).items()}
    if family.unused_layers:
        notes += _with_last_layer(model, family, tensors)
    _say_prediction(model, family, tensors, metadata)
    notes += [f"{name}, which such a file has no place for, is left out" for name in _without_place(model, family)]
    save_file(tensors, new, metadata)
    return notes


def family_of(model: Model) -> Family:
    """The family that a model is of. Raises `ModelError` if its U-Net or its parts are of none."""
    if isinstance(model, SingleFile):
        return model.layout
    kind = model.setting("unet", "_class_name", str, "UNet2DConditionModel") if "unet" in model.parts else "none"
    if "vae" not in model.parts or not {"text_encoder", "text_encoder_2"} & set(model.parts):
        raise ModelError(
            f"{model.name} is no Stable Diffusion with unet, vae and text encoder; only those fit one file"
        )
    if not kind.endswith("UNet2DConditionModel"):
        raise ModelError(f"the U-Net of {model.name} is a {kind}, which the original layout does not know")
    if "text_encoder_2" in model.parts:
        return families()["sdxl" if "text_encoder" in model.parts else "sdxl-refiner"]
    open_clip = model.setting("text_encoder", "hidden_act", str, "quick_gelu") == "gelu"
    return families()["sd21" if open_clip else "sd15"]


def _check_noise(model: Model) -> None:
    noise = {"trained_betas": None, **model.noise()}
    if noise["prediction_type"] not in ("epsilon", V):
        raise ModelError(f"{model.name} predicts {noise['prediction_type']}, which a single file cannot say")
    for name, usual in {**NOISE, "trained_betas": None}.items():
        if name in noise and noise[name] != usual:
            raise ModelError(
                f"the noise schedule of {model.name} has {name} {noise[name]}, not {usual}; a single file cannot say it"
            )


def _placed(model: Model, family: Family, part: str, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Place]]:
    """Yield (name of a tensor, its place in the file)."""
    names = renaming(family, part, model.config(part))
    for name in stored:
        if name.endswith("position_ids"):  # 0, 1, 2, ...: older versions of transformers save them
            continue
        usual = with_prefix(name) if part in family.text else modern(name) if part == "vae" else name
        place = place_of(family, part, names, usual)
        if place is None:
            raise ModelError(
                f"the original layout has no place for {name} of the {part} of {model.name}, so the model stays a "
                "folder"
            )
        yield name, place


def _gathered(placed: Mapping[str, Place], read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part by their names in the file, after the part's beginning."""
    import torch

    made: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    for name, place in placed.items():
        tensor = read[name]
        if place.piece is not None:
            joined.setdefault(place.key, {})[place.piece] = tensor
        else:
            tensor = tensor.T if place.turned else tensor
            tensor = tensor[:, :, None, None] if place.pointwise and tensor.ndim == 2 else tensor
            made[place.key] = tensor.contiguous()
    return made | {key: torch.cat([tensor for _, tensor in sorted(thirds.items())]) for key, thirds in joined.items()}


def _check_numbers(
    model: Model, family: Family, part: str, placed: Mapping[str, Place], stored: Mapping[str, StoredTensor]
) -> None:
    """Check that a reader of the file would find the numbers of the model's config."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, place in placed.items():
        shapes[place.key] = original_shape(place, stored[name].shape)
    try:
        pooled = model.setting("text_encoder_2", "projection_dim", int, 0) if "text_encoder_2" in family.text else 0
        found = family.config(part, shapes, pooled)
    except ModelError as error:
        raise ModelError(f"{model.name} {error}") from None
    given = model.config(part)
    if part in family.text:
        wanted = {name: (given[name], found[name]) for name in TEXT if name in given}
    else:
        usual = _defaults(part)
        wanted = {
            name: (_per_level(name, {**usual, **given}), _per_level(name, {**usual, **found}))
            for name in usual
            if name not in FREE
        }
    for name, (own, read) in wanted.items():
        if own != read:
            raise ModelError(
                f"{model.where(part)}: {name} is {own}; readers of a single file take it to be {read}, so the model "
                "stays a folder"
            )


def _defaults(part: str) -> dict[str, Any]:
    parameters = inspect.signature(part_class(part).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _per_level(name: str, config: Mapping[str, Any]) -> Any:
    """A setting with one value for each level, whichever way it is written; None for levels where it has no effect."""
    value = config[name]
    if name in PER_LEVEL and "down_block_types" in config:
        kinds = config["down_block_types"]
        each = [value] * len(kinds) if isinstance(value, int) else list(value)
        if name == "layers_per_block":
            return each
        return [
            v if "CrossAttn" in kind or i == len(kinds) - 1 else None
            for i, (v, kind) in enumerate(zip(each, kinds, strict=True))
        ]
    return list(value) if isinstance(value, tuple) else value


def _extras(model: Model) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """What a file in the original layout held besides the parts: tensors, header, and notes on what is left out."""
    if isinstance(model, SingleFile):
        return dict(read_tensors(model.extras)), dict(model.metadata), model.notes
    root = model.folder.root if isinstance(model, OnHub) else model.root if isinstance(model, Folder) else None
    if root is None or not (root / EXTRAS).is_file():
        return {}, {}, []
    header = read_header(root / EXTRAS)
    return (
        dict(read_tensors({stored.key: stored for stored in stored_tensors([root / EXTRAS])})),
        dict(header.metadata),
        [],
    )


def _with_last_layer(model: Model, family: Family, tensors: dict[str, Tensor]) -> list[str]:
    """Add a last layer to the text encoder if there is none to be left out, since every reader leaves one out."""
    start = f"{family.beginnings['text_encoder'][0]}transformer.resblocks."
    count = model.config("text_encoder")["num_hidden_layers"]
    if any(name.startswith(f"{start}{count}.") for name in tensors):
        return []
    before = f"{start}{count - 1}."
    for name in [name for name in tensors if name.startswith(before)]:
        tensors[f"{start}{count}.{name.removeprefix(before)}"] = tensors[name].clone()
    return [f"layer {count} of the text encoder, which readers leave out, is written as a copy of layer {count - 1}"]


def _say_prediction(model: Model, family: Family, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Let the file say what the model predicts, by keys and header."""
    import torch

    noise = model.noise()
    v, zero = noise["prediction_type"] == V, bool(noise["rescale_betas_zero_snr"])
    for name, wanted in ((SAYS_V, v), (SAYS_ZERO, zero)):
        if not wanted:
            tensors.pop(name, None)
        elif name not in tensors:
            tensors[name] = torch.zeros(0)
    architecture = V_OF_2 if v and family.name == "sd21" else ARCHITECTURES[family.name]
    metadata.setdefault("format", "pt")
    metadata.setdefault("modelspec.sai_model_spec", "1.0.0")
    metadata.setdefault("modelspec.architecture", architecture)
    metadata["modelspec.prediction_type"] = "v" if v else "epsilon"


def _without_place(model: Model, family: Family) -> list[str]:
    """The parts of a model that the file cannot hold, such as a safety checker."""
    known = {*family.beginnings, "scheduler", *(part.replace("text_encoder", "tokenizer") for part in family.text)}
    return [part for part in model.parts if part not in known]
