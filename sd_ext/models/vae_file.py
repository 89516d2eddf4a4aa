"""An autoencoder alone in a `.safetensors` file, in the original layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .checkpoint import log
from .header import read_header
from .original.families import VAE, Family, families
from .original.prediction import Prediction
from .single_file import SingleFile


class VaeFile(SingleFile):
    """An autoencoder in one file. It does not say by what its latents are scaled.

    Args:
        path: the file.
        name: what the user called it; None means its path.
        layout: the family of the model it is for, which decides the scale; None for that of Stable Diffusion 1.x.

    Raises:
        ModelError: it is no autoencoder of Stable Diffusion.
    """

    def __init__(self, path: Path, name: str | None = None, layout: Family | None = None):
        header = read_header(path)
        shapes = {key: entry.shape for key, entry in header.tensors.items()}
        self._beginning = VAE if any(key.startswith(VAE) for key in shapes) else ""
        self._set_up(path, name, header, layout or families()["sd15"])
        self._said = layout is not None
        self._shapes = {"vae": {key.removeprefix(self._beginning): shape for key, shape in shapes.items()}}
        with self._about():
            self.networks = {"vae": self.layout.config("vae", self._shapes["vae"])}

    def for_family(self, layout: Family) -> VaeFile:
        """The same file, scaled as a family's autoencoders are."""
        return VaeFile(self.path, self.name, layout)

    @property
    def parts(self) -> Sequence[str]:
        return ["vae"]

    @property
    def missing(self) -> list[str]:
        return []

    @property
    def index(self) -> Mapping[str, Any]:
        return {"vae": ["diffusers", "AutoencoderKL"]}

    @cached_property
    def prediction(self) -> Prediction:
        raise ModelError(f"{self.path} holds an autoencoder alone, which predicts nothing")

    def config(self, part: str) -> dict[str, Any]:
        if part != "vae":
            raise ModelError(f"{self.path} holds an autoencoder alone, no {part}")
        if not self._said:
            self._said = True
            scale = self.layout.vae["scaling_factor"]
            log.warning("%s does not say the scale of its latents; that of %s is taken: %s", self.name,
                        self.layout.title, scale)  # fmt: skip
        return dict(self.networks["vae"])

    def _start(self, part: str) -> str:
        return self._beginning
