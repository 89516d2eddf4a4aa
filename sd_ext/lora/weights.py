"""The weights of a base model, in memory or on disk, one at a time, by the module names that LoRAs use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError, UnknownNameError
from ..models import Model, StoredTensor, find_model
from ..seams.torch import uncompiled_path
from ..seams.transformers import without_prefix
from .adapter import PARTS, Adapter, ModuleName

ADAPTED = nn.Linear, nn.Conv2d


class BaseWeights(Protocol):
    """The weights of a base model: `shapes()` lists the modules, `weight(module)` gives one module's weight.

    Weights are (out, in) for linear layers and (out, in, k, k) for convolutions.
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
        self.modules: dict[ModuleName, nn.Linear | nn.Conv2d] = {}
        for part, model in models_by_part(models).items():
            for path, module in model.named_modules():
                # Skip the factors of peft adapters, which are modules inside of the layer that they change.
                if isinstance(module, ADAPTED) and not re.search(r"\.lora_[AB]\.", f"{path}."):
                    self.modules[canonical(part, path)] = module

    def shapes(self) -> Mapping[ModuleName, torch.Size]:
        return {name: module.weight.shape for name, module in self.modules.items()}

    def weight(self, module: ModuleName) -> Tensor:
        return self.modules[module].weight.detach()


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
                if is_adaptable(name, len(stored.shape)):
                    module = canonical(part, name.removesuffix(".weight"))
                    self.places[module], self._stored[module] = (part, name), stored
        if not self.places:
            raise ModelError(f"{model.name} has no safetensors weights in {', '.join(PARTS)}")

    def shapes(self) -> Mapping[ModuleName, torch.Size]:
        return {module: torch.Size(stored.shape) for module, stored in self._stored.items()}

    def weight(self, module: ModuleName) -> Tensor:
        return self._stored[module].read()


def is_adaptable(key: str, dimensions: int) -> bool:
    """Whether a tensor in a model file is the weight of a linear layer or convolution, judged by its name and shape.

    Args:
        key: the tensor's name.
        dimensions: its number of dimensions.
    """
    return key.endswith(".weight") and dimensions in (2, 4) and not key.endswith("_embedding.weight")


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


def pairs(loras: Iterable[tuple[Any, float]]) -> Iterator[tuple[ModuleName, Adapter]]:
    """Yield (module, adapter) for every adapter of several LoRAs."""
    for lora, _ in loras:
        yield from lora.adapters.items()
