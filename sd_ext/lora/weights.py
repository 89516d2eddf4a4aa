"""The weights of a base model, in memory or on disk, one at a time, by the module names that LoRAs use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError, UnknownNameError
from ..models import Model, StoredTensor, find_model
from ..models.original.families import families
from ..seams.torch import uncompiled_path
from ..seams.transformers import without_prefix
from .adapter import PARTS, Adapter, ModuleName
from .strength import Strength, Weighed

PARAMETERS = "weight", "bias"
INSIDE = re.compile(r"\.(lora|hada|lokr|ia3|oft|boft)_\w+\.")  # peft's adapters are inside of the layer they change


class BaseWeights(Protocol):
    """The weights of a base model: `shapes()` lists the modules, `weight(module)` gives one module's weight.

    Weights are (out, in) for linear layers and (out, in, k, k) for convolutions, (n,) for norms. Biases (n,) are listed
    too, by names that end in `.bias`.
    """

    def shapes(self) -> Mapping[ModuleName, torch.Size]: ...

    def weight(self, module: ModuleName) -> Tensor: ...


def canonical(part: str, path: str) -> ModuleName:
    """A module's name without the prefixes that `torch.compile`, peft and transformers' versions add to its path."""
    path = uncompiled_path(path.removeprefix("base_model.model.").replace(".base_layer", ""))
    return ModuleName(part, path if part == "unet" else without_prefix(path))


class ModelWeights:
    """The weights of models in memory.

    Args:
        models: a pipeline, or models by part.

    Raises:
        InputError: it is neither.
    """

    def __init__(self, models: Any):
        self.parameters: dict[ModuleName, nn.Parameter] = {}
        for part, model in models_by_part(models).items():
            for name, parameter in model.named_parameters():
                path, _, kind = name.rpartition(".")
                if kind in PARAMETERS and not INSIDE.search(f"{name}."):
                    self.parameters[named(part, path, kind)] = parameter

    def shapes(self) -> Mapping[ModuleName, torch.Size]:
        return {name: parameter.shape for name, parameter in self.parameters.items()}

    def weight(self, module: ModuleName) -> Tensor:
        return self.parameters[module].detach()


def named(part: str, path: str, kind: str) -> ModuleName:
    """The name of a module's weight (`kind` "weight") or bias (`kind` "bias")."""
    module = canonical(part, path)
    return module if kind == "weight" else ModuleName(part, f"{module.path}.bias")


class StoredWeights:
    """The weights of a model on disk, each read when it is asked for.

    Args:
        model: see `sd_ext.models.find_model`.

    Raises:
        ModelError: the model has none of the parts that a LoRA can change, or its weights cannot be read.
    """

    def __init__(self, model: Model):
        self.model = model
        self.parts = [part for part in PARTS if part in model.parts]
        self.places: dict[ModuleName, tuple[str, str]] = {}
        self._stored: dict[ModuleName, StoredTensor] = {}
        for part in self.parts:
            for name, stored in model.tensors(part).items():
                path, _, kind = name.rpartition(".")
                if kind in PARAMETERS:
                    module = named(part, path, kind)
                    self.places[module], self._stored[module] = (part, name), stored
        if not self.places:
            raise ModelError(f"{model.name} has no safetensors weights in {', '.join(PARTS)}")

    def shapes(self) -> Mapping[ModuleName, torch.Size]:
        return {module: torch.Size(stored.shape) for module, stored in self._stored.items()}

    def weight(self, module: ModuleName) -> Tensor:
        return self._stored[module].read()


def is_matrix(module: ModuleName, shape: torch.Size) -> bool:
    """Whether this is the weight of a linear layer or convolution, which a LoRA can change.

    Others are biases, the weights of norms, and tables of words and positions.
    """
    return len(shape) in (2, 4) and not module.path.endswith("_embedding")


def models_by_part(models: Any) -> dict[str, nn.Module]:
    """The models of a pipeline, or of a mapping by part, that a LoRA can change.

    Raises `InputError` for anything else.
    """
    if isinstance(models, Mapping):
        for part in models:
            if part not in PARTS:
                raise UnknownNameError("part of a pipeline", part, PARTS)
        found = dict(models)
    else:
        found = {part: getattr(models, part, None) for part in PARTS}
    found = {part: model for part, model in found.items() if model is not None}
    if not found or not all(isinstance(model, nn.Module) for model in found.values()):
        raise InputError(f"{type(models).__name__} is neither a pipeline nor models by part ({', '.join(PARTS)})")
    return found


def open_base(base: Any) -> BaseWeights:
    """Open the weights of a base model; none are read yet.

    Args:
        base: a pipeline, models by part, a `Model` on disk or a name for one; weights that are open already are
            returned unchanged.

    Raises:
        InputError: no such model; see `sd_ext.models.find_model`.
    """
    if isinstance(base, (ModelWeights, StoredWeights)):
        return base
    if isinstance(base, (str, Path)):
        base = find_model(base)
    return StoredWeights(base) if isinstance(base, Model) else ModelWeights(base)


def family_of(shapes: Mapping[ModuleName, torch.Size]) -> str | None:
    """The family of the model that these weights are of, as far as its text encoders and widths tell."""
    contexts = {family.context: name for name, family in families().items()}
    widths = {shape[1] for module, shape in shapes.items() if module.path.endswith("attn2.to_k")}
    if len(widths) == 1 and (found := contexts.get(widths.pop())):
        return found
    large = any(module.part == "text_encoder_2" or module.path.startswith("add_embedding") for module in shapes)
    return "sdxl" if large else None


def check_loras(shapes: Mapping[ModuleName, torch.Size], loras: Iterable[Weighed]) -> None:
    """As `check_fit`, for every adapter of several LoRAs that acts. The message says if one is for another family."""
    for lora, strengths in loras:
        try:
            check_fit(shapes, ((module, lora.adapters[module]) for module in strengths))
        except InputError as error:
            family = family_of(shapes)
            if not (family and lora.base and family != lora.base):
                raise
            ours, theirs = families()[lora.base].title, families()[family].title
            raise InputError(f"the LoRA is for {ours}, and the base is {theirs}: {error}") from None


def check_strengths(loras: Iterable[tuple[Any, Any]]) -> None:
    """Raise `InputError` unless every strength is a `Strength` or a finite number."""
    for _, strength in loras:
        number = isinstance(strength, (int, float)) and not isinstance(strength, bool) and math.isfinite(strength)
        if not number and not isinstance(strength, Strength):
            raise InputError(f"a strength is {strength!r}; give a finite number")


def check_fit(shapes: Mapping[ModuleName, torch.Size], adapters: Iterable[tuple[ModuleName, Adapter]]) -> None:
    """Raise `InputError`, naming the module, unless the base has every adapter's module, in a shape that fits.

    Args:
        shapes: the shapes of the base's weights.
        adapters: (module, adapter) pairs.
    """
    for module, adapter in adapters:
        if module not in shapes:
            near = [name for name in shapes if name.part == module.part]
            if not near:
                raise InputError(f"{module}: the base has no {module.part}")
            raise UnknownNameError("module of the base", str(module), map(str, near))
        try:
            adapter.check_weight(shapes[module])
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
