"""A pipeline folder as Diffusers saves it: model_index.json, and one folder for each part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import whole
from ..errors import ModelError
from ..model_configs import check_plain, parts_in, read_config, read_index
from ..reading import open_tensors
from .model import Change, Model, part_class
from .weights import PICKLES, StoredTensor, pickles_in, stored_tensors, variants_in, weight_files

if TYPE_CHECKING:
    import torch

INDEX = "model_index.json"
CONFIGS = "config.json", "scheduler_config.json", "tokenizer_config.json"
IDENTIFYING = ".safetensors", ".json", ".txt"  # the files whose contents identify a part (`contents`)
NETWORKS = "unet", "transformer", "prior"  # the first of these that exists decides the variant of the pipeline


class Folder(Model):
    """A pipeline folder. It may also hold only some parts, without a model_index.json, for callers that need no more.

    Args:
        root: the folder.
        name: what the user called it; None means the folder's path.
        variant: which weight files to read; see `find_model`.
        parts: part -> its folder, if known; None means those that model_index.json names.
    """

    def __init__(
        self,
        root: Path,
        name: str | None = None,
        variant: str | None = None,
        parts: Mapping[str, Path] | None = None,
    ):
        super().__init__(str(root) if name is None else name)
        self.root, self.variant = root, variant
        self._index = read_index(root) if parts is None and (root / INDEX).is_file() else {}
        self._folders = dict(parts) if parts is not None else self._listed()

    def _listed(self) -> dict[str, Path]:
        """Part -> folder, for the parts that model_index.json names, even missing ones; without it, all subfolders."""
        if not self._index:
            return {path.name: path for path in sorted(self.root.glob("*")) if path.is_dir()}
        return {name: self.root / name for name in parts_in(self._index)}

    @property
    def parts(self) -> Sequence[str]:
        return list(self._folders)

    @property
    def index(self) -> Mapping[str, Any]:
        return self._index

    def folder(self, part: str) -> Path:
        """A part's folder. Raises `ModelError` if it does not exist."""
        folder = self._folders.get(part, self.root / part)
        if not folder.is_dir():
            raise ModelError(f"{self.name} is incomplete: it has no folder {part}")
        return folder

    def check(self, parts: Sequence[str] | None = None) -> None:
        if not (self.root / INDEX).is_file():
            raise ModelError(f"{self.root} is not a pipeline: it has no {INDEX}")
        check_plain(self.root)
        for part in self.parts if parts is None else parts:
            folder = self.folder(part)
            for config in folder.glob("*config.json"):
                read_config(config)
            if pickles_in(folder) and not any(folder.glob("*.safetensors")):
                weight_files(folder, self.variant)  # raises the error

    def check_weights(self, part: str) -> None:
        weight_files(self.folder(part), self.variant)

    def where(self, part: str) -> str:
        return str(self._config_file(part))

    def _config_file(self, part: str) -> Path:
        """The file that describes a part. Raises `ModelError` if there is none."""
        folder = self.folder(part)
        for name in CONFIGS:
            if (folder / name).is_file():
                return folder / name
        raise ModelError(f"{folder} holds no {part} (no config.json there)")

    def config(self, part: str) -> dict[str, Any]:
        return read_config(self._config_file(part))

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        import torch

        return self.load_as(part_class(part), part, dtype or torch.float32)

    def load_as(self, kind: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        """Load a part as an object of a given class.

        Args:
            kind: a Diffusers or transformers class.
            part: the part.
            dtype: of the weights; None is the default of `from_pretrained`.

        Raises:
            ModelError: the class cannot load the part.
        """
        self.config(part)
        check_plain(self.folder(part))
        options: dict[str, Any] = {"local_files_only": True}
        if not part.startswith("tokenizer"):
            options["use_safetensors"] = True
            if variant := self._variant(part):
                options["variant"] = variant
            if dtype is not None:
                options["torch_dtype" if part in ("vae", "unet", "controlnet") else "dtype"] = dtype
        try:
            return kind.from_pretrained(self.folder(part), **options)
        except Exception as error:  # libraries raise all kinds of errors for malformed files
            raise ModelError(f"{self.folder(part)} does not load as {kind.__name__}: {error}") from error

    def _variant(self, part: str) -> str:
        """The variant of a part's weight files that is read; "" for files without a variant."""
        if self.variant is not None:
            return self.variant
        variants = variants_in(self.folder(part))
        return variants.pop() if len(variants) == 1 else ""

    def pipeline(self, **options: Any) -> Any:
        from diffusers import DiffusionPipeline

        networks = [part for part in NETWORKS if part in self.parts and variants_in(self.folder(part))]
        if networks and (variant := self._variant(networks[0])):
            options["variant"] = variant
        return DiffusionPipeline.from_pretrained(str(self.root), local_files_only=True, **options)

    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        return {stored.key: stored for stored in stored_tensors(weight_files(self.folder(part), self.variant))}

    def contents(self, part: str) -> Iterator[tuple[str, bytes]]:
        from .digests import quick_digest  # imports torch

        for path in sorted(self.folder(part).glob("*")):
            if path.is_file() and path.suffix in IDENTIFYING:
                yield path.name, bytes.fromhex(quick_digest(path))

    def check_apart(self, out: Path) -> None:
        ours, theirs = self.root.resolve(), out.resolve()
        if theirs.is_relative_to(ours) or ours.is_relative_to(theirs):
            raise ModelError(f"{out} lies in or around {self.root}; choose another folder")

    def write_changed(self, new: Path, parts: Sequence[str], change: Change) -> None:
        stored = {(part, name): tensor for part in parts for name, tensor in self.tensors(part).items()}
        shutil.copytree(self.root, new, ignore=self._left_out({tensor.file for tensor in stored.values()}, parts),
                        dirs_exist_ok=True)  # fmt: skip
        for file in sorted({tensor.file for tensor in stored.values()}):
            inside = {place: tensor for place, tensor in stored.items() if tensor.file == file}
            changed = {inside[place].key: tensor for place, tensor in change(inside).items()}
            if changed:
                _rewrite(file, new / file.relative_to(self.root), changed)

    def _left_out(self, kept: set[Path], parts: Sequence[str]) -> Callable[[str, list[str]], set[str]]:
        """An `ignore` function for `shutil.copytree`, for a copy in which some parts may change.

        It leaves out writers' temporary folders, and in the parts that may change, pickles and weight files other than
        `kept`.
        """
        changing = {self.folder(part) for part in parts}

        def ignore(folder: str, names: list[str]) -> set[str]:
            path, gone = Path(folder), {name for name in names if whole.is_temporary(name)}
            if path not in changing:
                return gone
            weights = {name for name in names if Path(name).suffix.lower() in {".safetensors", *PICKLES}}
            return gone | {name for name in weights if path / name not in kept}

        return ignore


def _rewrite(source: Path, new: Path, changed: Mapping[str, Any]) -> None:
    """Write a copy of the safetensors file `source` to `new`, with the tensors in `changed` replaced."""
    from safetensors.torch import save_file

    with open_tensors(source, ModelError) as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name not in changed}  # noqa: SIM118
        metadata = file.metadata()
    save_file({**kept, **changed}, new, metadata)
