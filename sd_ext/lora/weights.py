"""The base model's weights, of models in memory or of a pipeline folder, one at a time and under canonical names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import whole
from ..errors import InputError, ModelError, UnknownNameError
from ..reading import open_tensors
from ..seams.torch import uncompiled_path
from ..seams.transformers import without_prefix
from .adapter import PARTS, Adapter, ModuleName

ADAPTED = nn.Linear, nn.Conv2d


class Base(Protocol):
    """Weights by module: (out, in) of linear layers, (out, in, k, k) of convolutions."""

    def shapes(self) -> Mapping[ModuleName, torch.Size]: ...

    def weight(self, module: ModuleName) -> Tensor: ...


def canonical(part: str, path: str) -> ModuleName:
    """A module's name without what wrappers and versions of transformers put around it."""
    path = uncompiled_path(path.removeprefix("base_model.model.").replace(".base_layer", ""))
    return ModuleName(part, path if part == "unet" else without_prefix(path))


class ModelBase:
    """Models in memory.

    Args:
        models: a pipeline, or models by part.

    Raises:
        InputError: neither.
    """

    def __init__(self, models: Any):
        self.modules: dict[ModuleName, nn.Linear | nn.Conv2d] = {}
        for part, model in models_by_part(models).items():
            for path, module in model.named_modules():
                # A LoRA's own factors are modules too, inside the layer that carries them.
                if isinstance(module, ADAPTED) and not re.search(r"\.lora_[AB]\.", f"{path}."):
                    self.modules[canonical(part, path)] = module

    def shapes(self) -> Mapping[ModuleName, torch.Size]:
        return {name: module.weight.shape for name, module in self.modules.items()}

    def weight(self, module: ModuleName) -> Tensor:
        return self.modules[module].weight.detach()


class FolderBase:
    """A Diffusers pipeline folder, opened and not loaded.

    Raises:
        ModelError: no such folder, or no safetensors weights in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = whole.recovered(Path(folder).expanduser())
        if not self.folder.is_dir():
            what = "a single file; convert it to a Diffusers folder first" if self.folder.is_file() else "not there"
            raise ModelError(f"a base model is a Diffusers pipeline folder, and {self.folder} is {what}")
        self.keys: dict[ModuleName, tuple[Path, str]] = {}
        self._shapes: dict[ModuleName, torch.Size] = {}
        for part in PARTS:
            for file in weight_files(self.folder / part):
                self._add(part, file)
        if not self.keys:
            raise ModelError(f"{self.folder} has no safetensors weights in {', '.join(PARTS)}")

    def _add(self, part: str, file: Path) -> None:
        with open_tensors(file, ModelError) as opened:
            for key in opened.keys():  # noqa: SIM118  it has no __iter__
                shape = torch.Size(opened.get_slice(key).get_shape())
                if is_adaptable(key, len(shape)):
                    module = canonical(part, key.removesuffix(".weight"))
                    self.keys[module], self._shapes[module] = (file, key), shape

    def shapes(self) -> Mapping[ModuleName, torch.Size]:
        return self._shapes

    def weight(self, module: ModuleName) -> Tensor:
        file, key = self.keys[module]
        with open_tensors(file, ModelError) as opened:
            return opened.get_tensor(key)


def is_adaptable(key: str, dimensions: int) -> bool:
    """Whether a tensor of a model file is a linear layer's or a convolution's weight, judged by name and shape."""
    return key.endswith(".weight") and dimensions in (2, 4) and not key.endswith("_embedding.weight")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part: the plain ones, or where there are none those of a single variant (fp16)."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    plain = [file for file in files if file.name.count(".") == 1]
    variants = {file.name.split(".")[1].split("-")[0] for file in files}
    if not plain and len(variants) > 1:
        raise ModelError(f"{folder} holds several variants ({', '.join(sorted(variants))}) and no plain weights")
    return plain or files


def models_by_part(models: Any) -> dict[str, nn.Module]:
    """The models of a pipeline, or of a mapping, that a LoRA can change."""
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


def open_base(base: Any) -> Base:
    """A folder's or models' weights. What is open already stays as it is."""
    if isinstance(base, (ModelBase, FolderBase)):
        return base
    return FolderBase(base) if isinstance(base, (str, Path)) else ModelBase(base)


def check_fit(shapes: Mapping[ModuleName, torch.Size], adapters: Iterable[tuple[ModuleName, Adapter]]) -> None:
    """Raise `InputError`, naming the module, unless the base has every module, in a shape that fits."""
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
    """Every module and adapter of several LoRAs with strengths."""
    for lora, _ in loras:
        yield from lora.adapters.items()
