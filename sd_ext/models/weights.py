"""The weight files of one part: which of the files in a folder belong together, and the tensors in them.

    diffusion_pytorch_model.safetensors                     plain: without a variant
    diffusion_pytorch_model.fp16.safetensors                the variant fp16; a folder may hold several variants
    diffusion_pytorch_model-00001-of-00002.safetensors      the first of two pieces, which are listed in
    diffusion_pytorch_model.safetensors.index.json

transformers calls its files model.safetensors. In the name of a piece the variant stands before or after the numbers.
Pickles are never opened, since reading one can run any code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, ModelError
from ..reading import open_tensors, read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
AT_ONCE = 2**26  # numbers that are read before a file is opened anew
STEMS = "diffusion_pytorch_model", "model"  # as Diffusers and transformers write them
NAME = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<before>[^.]+?))?(-(?P<number>\d+)-of-(?P<count>\d+))?(\.(?P<after>[^.]+))?\.safetensors"
)


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file, not read yet.

    Args:
        file: the file.
        key: the tensor's name in the file.
        shape: the tensor's shape.
        rows: (first, end) if it is only these rows of the file's tensor.
        turned: whether the file has it transposed.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    turned: bool = False

    def read(self) -> Tensor:
        """Read the tensor, to the CPU. Raises `ModelError` if the file is damaged."""
        with open_tensors(self.file, ModelError) as opened:
            return self.read_from(opened)

    def read_from(self, opened: Any) -> Tensor:
        """Read the tensor from its file, opened by `open_tensors`."""
        if self.rows is None:
            tensor = opened.get_tensor(self.key)
        else:
            tensor = opened.get_slice(self.key)[self.rows[0] : self.rows[1]]
        return (tensor.T.contiguous() if self.turned else tensor).reshape(self.shape)


@dataclass(frozen=True)
class _File:
    """What a weight file's name says: stem, variant ("" for none), and number and count of pieces (0, 0 if whole)."""

    path: Path
    stem: str
    variant: str
    number: int
    count: int


def refuse_pickle(path: Path, error: type[InputError] = InputError) -> InputError:
    """Make the error, of class `error`, for a file that could only be read by unpickling it."""
    return error(
        f"{path} is a pickle, which can run any code when it is read, and is not opened; "
        "ask its maker for a .safetensors file"
    )


def pickles_in(folder: Path) -> list[str]:
    """The names of the pickles in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)


def variants_in(folder: Path) -> set[str]:
    """The variants of the weight files in a folder; "" stands for files without a variant."""
    return {file.variant for file in _files(folder)}


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files that hold the weights of a part.

    Args:
        folder: the part's folder.
        variant: "fp16", ..., or "" for files without a variant. None means those without a variant or, if there are
            none, the only variant.

    Returns:
        One file, or all pieces in order.

    Raises:
        ModelError: no such files, or several variants to choose from; a piece is missing; or the weights exist both in
            one file and in pieces. The message lists what is there.
    """
    files = _files(folder)
    if variant is None:
        variants = {file.variant for file in files}
        if "" not in variants and len(variants) > 1:
            raise ModelError(f"{folder} holds several variants ({', '.join(sorted(variants))}) and no plain weights")
        variant = "" if "" in variants or not variants else variants.pop()
    chosen = [file for file in files if file.variant == variant]
    if not chosen:
        raise ModelError(
            f"{folder} holds no {f'{variant} ' if variant else ''}weights as safetensors{_instead(folder)}"
        )
    for stem in {file.stem for file in chosen}:
        _check_pieces(folder, [file for file in chosen if file.stem == stem], variant)
    return [file.path for file in chosen]


def _files(folder: Path) -> list[_File]:
    """The weight files of a folder, sorted by name. Files with unusual names count only if there are no others."""
    made = []
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        if found := NAME.fullmatch(path.name):
            variant = found["before"] or found["after"] or ""
            made.append(_File(path, found["stem"], variant, int(found["number"] or 0), int(found["count"] or 0)))
    return [file for file in made if file.stem in STEMS] or made


def _instead(folder: Path) -> str:
    """What a folder holds instead of the weights looked for, as the end of a sentence."""
    pickles, others = pickles_in(folder) if folder.is_dir() else [], [file.path.name for file in _files(folder)]
    there = f"; there is {', '.join(others)}: give its variant" if others else ""
    if pickles:
        there += f"; {', '.join(pickles)} would be read as pickle, which can run any code: convert it to safetensors"
    return there


def _check_pieces(folder: Path, files: list[_File], variant: str) -> None:
    """Raise `ModelError` if pieces are missing, or if the weights exist both whole and in pieces."""
    whole, pieces = [file for file in files if not file.count], [file for file in files if file.count]
    if whole and pieces:
        raise ModelError(f"{folder} holds weights twice: {whole[0].path.name}, and in pieces; remove one of the two")
    if not pieces:
        return
    count = pieces[0].count
    missing = sorted({*range(1, count + 1)} - {file.number for file in pieces})
    if missing or {file.count for file in pieces} != {count}:
        raise ModelError(f"{folder} lacks pieces of {files[0].stem}: {', '.join(map(str, missing))} of {count}")
    for name in ("safetensors.index.json", f"safetensors.index.{variant}.json"):
        index = folder / f"{files[0].stem}.{name}"
        if index.is_file():
            _check_index(index, {file.path.name for file in pieces})


def _check_index(index: Path, there: Iterable[str]) -> None:
    """Raise `ModelError` if a file that lists the pieces is malformed or names a file that is missing."""
    listed = read_json(index, error=ModelError)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} does not say which file holds which tensor (weight_map)")
    if lost := sorted({*names.values()} - {*there}):
        raise ModelError(f"{index} lists {lost[0]}, which is not there")


def read_tensors(stored: Mapping[str, StoredTensor], dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for stored tensors, one at a time.

    What has been read of an open file counts as memory of this process. So the file is opened anew from time to time;
    tensors that need no conversion stay where they are in the file until they are used.

    Args:
        stored: name -> tensor.
        dtype: convert them to it; None leaves them as they are.

    Raises:
        ModelError: a file is damaged.
    """
    for batch in _batches(stored):
        with open_tensors(stored[batch[0]].file, ModelError) as opened:
            for name in batch:
                tensor = stored[name].read_from(opened)
                yield name, tensor if dtype is None else tensor.to(dtype)
                del tensor


def _batches(stored: Mapping[str, StoredTensor]) -> Iterator[list[str]]:
    """The names of stored tensors in batches: each of one file, and of at most `AT_ONCE` numbers or one tensor."""
    batch: list[str] = []
    size = 0
    for name in sorted(stored, key=lambda name: stored[name].file):
        count = math.prod(stored[name].shape)
        if batch and (stored[name].file != stored[batch[0]].file or size + count > AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += count
    if batch:
        yield batch


def stored_tensors(files: Iterable[Path]) -> Iterator[StoredTensor]:
    """Yield every tensor of some safetensors files without reading it. Raises `ModelError` if a file is damaged."""
    for file in files:
        with open_tensors(file, ModelError) as opened:
            for key in opened.keys():  # noqa: SIM118  it has no __iter__
                yield StoredTensor(file, key, tuple(opened.get_slice(key).get_shape()))
