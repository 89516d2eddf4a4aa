"""Adding LoRAs to weights: for a while (`apply_lora`), or for good, in memory or into a new folder (`merge_into`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import whole
from ..errors import InputError
from ..reading import open_tensors
from .adapter import PARTS, ModuleName
from .formats.files import PICKLES
from .lora import Lora
from .weights import Base, FolderBase, ModelBase, check_fit, pairs, weight_files

Loras = Sequence[tuple[Lora, float]]
OnModule = Callable[[int, int, ModuleName], object]


def quiet(done: int, total: int, module: ModuleName) -> None:
    """Progress that nobody watches."""


class Applied:
    """LoRAs that are in a model's weights. `undo()`, or leaving a `with` block, restores the weights bit by bit."""

    def __init__(self, base: ModelBase, originals: dict[ModuleName, Tensor]):
        self._base, self._originals = base, originals

    def undo(self) -> None:
        """Put the original weights back. A second time does nothing."""
        with torch.no_grad():
            while self._originals:
                module, weight = self._originals.popitem()
                self._base.modules[module].weight.copy_(weight)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def fused(
    base: Base, loras: Loras, modules: Sequence[ModuleName], on_module: OnModule = quiet
) -> Iterator[tuple[ModuleName, Tensor, Tensor]]:
    """The modules with their weights before and after, in the weights' type; all LoRAs see the same base.

    Raises:
        InputError: a new weight that is not finite; names the module.
    """
    for i, module in enumerate(modules, 1):
        weight = base.weight(module)
        after = weight.float()
        for lora, strength in loras:
            if module in lora.adapters:
                after = after + strength * lora.delta(module, weight)
        after = after.to(weight.dtype)
        if not after.isfinite().all():
            raise InputError(f"{module}: the sum does not fit {weight.dtype}; choose a smaller strength")
        yield module, weight, after
        on_module(i, len(modules), module)


def changed_modules(base: Base, loras: Loras) -> list[ModuleName]:
    """The modules that LoRAs change. Raises `InputError` for one that the base lacks or that does not fit."""
    check_fit(base.shapes(), pairs(loras))
    return sorted({module for module, _ in pairs(loras)})


def apply_lora(models: Any, lora: Lora, strength: float = 1.0) -> Applied:
    """Add a LoRA to the weights of models in memory; `undo()` of what is returned takes it out again, exactly.

    Args:
        models: a pipeline, or models by part: `{"unet": model, ...}`.
        lora: what to add.
        strength: W + strength * (W' - W), for DoRA too.

    Raises:
        InputError: a module that the base lacks or that does not fit; nothing is changed then.
    """
    return apply_loras(models, [(lora, strength)])


def apply_loras(models: Any, loras: Loras, on_module: OnModule = quiet) -> Applied:
    """Add several LoRAs, each with a strength; all see the original weights. See `apply_lora`."""
    base = ModelBase(models)
    modules = changed_modules(base, loras)
    applied = Applied(base, {})
    try:
        with torch.no_grad():
            for module, weight, after in fused(base, loras, modules, on_module):
                applied._originals[module] = weight.clone()
                weight.copy_(after)
    except BaseException:
        applied.undo()
        raise
    return applied


def merge_into(
    target: Any, loras: Loras, out: str | Path | None = None, on_module: OnModule = quiet, overwrite: bool = False
) -> None:
    """Add LoRAs to a base for good.

    Args:
        target: a pipeline or models by part, changed in place; or a Diffusers folder, copied to `out`.
        loras: with strengths. All see the original base, in any order.
        out: the new folder. It appears whole, with the weights' types and files as in `target`.
        on_module: told (done, total, module).
        overwrite: replace a pipeline folder that is at `out`.

    Raises:
        InputError: a module that the base lacks or that does not fit, or `out` exists; nothing is changed then.
    """
    if not isinstance(target, (str, Path)):
        apply_loras(target, loras, on_module)
        return
    if out is None:
        raise InputError("a folder is merged into a new one; say where with out")
    _merge_folder(FolderBase(target), loras, Path(out).expanduser(), on_module, overwrite)


def _merge_folder(base: FolderBase, loras: Loras, out: Path, on_module: OnModule, overwrite: bool) -> None:
    whole.recovered(out)
    replaces = overwrite and (out / "model_index.json").is_file()
    if out.exists() and not replaces:
        raise InputError(f"{out} exists; choose another folder")
    if out.resolve().is_relative_to(base.folder.resolve()) or base.folder.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out} lies in or around {base.folder}; choose another folder")
    modules = changed_modules(base, loras)
    with whole.folder(out, overwrite=replaces) as new:
        shutil.copytree(base.folder, new, ignore=_left_out(base.folder), dirs_exist_ok=True)
        done = 0
        for file in sorted({base.keys[module][0] for module in modules}):
            inside = [module for module in modules if base.keys[module][0] == file]
            after = fused(base, loras, inside, lambda i, _, m, done=done: on_module(done + i, len(modules), m))
            _rewrite(file, new / file.relative_to(base.folder), {base.keys[m][1]: weight for m, _, weight in after})
            done += len(inside)


def _rewrite(source: Path, new: Path, changed: dict[str, Tensor]) -> None:
    """The same safetensors file with some tensors exchanged."""
    with open_tensors(source) as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name not in changed}  # noqa: SIM118
        metadata = file.metadata()
    save_file({**kept, **changed}, new, metadata)


def _left_out(root: Path) -> Callable[[str, list[str]], set[str]]:
    """What is not copied: temporaries of writers; other weights, and pickles, of parts that a LoRA changes."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        path = Path(folder)
        if path.parent != root or path.name not in PARTS:
            return set(filter(whole.is_temporary, names))
        kept = {file.name for file in weight_files(path)}
        weights = {name for name in names if Path(name).suffix in {".safetensors", *PICKLES}}
        return weights - kept

    return ignore
