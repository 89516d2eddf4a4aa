"""`Model`: what every model on disk can do, whatever form it is stored in."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..declared import check
from ..errors import ModelError
from .weights import StoredTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FAMILIES = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
ZEROS = "force_zeros_for_empty_prompt"  # a setting in model_index.json
NOISE = "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"

Stored = Mapping[tuple[str, str], StoredTensor]
"""(part, name of the tensor in that part) -> where it is stored."""
Change = Callable[[Stored], Mapping[tuple[str, str], "Tensor"]]
"""A function that gets the tensors of one file or part and returns new values for those that shall change."""


def part_class(part: str) -> Any:
    """The Diffusers or transformers class that loads a part of Stable Diffusion, such as "unet".

    Unknown parts: KeyError.
    """
    import diffusers
    import transformers

    return {
        "vae": diffusers.AutoencoderKL,
        "unet": diffusers.UNet2DConditionModel,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "tokenizer": transformers.CLIPTokenizer,
        "tokenizer_2": transformers.CLIPTokenizer,
    }[part]


class Model(ABC):
    """A model on disk. Creating one reads no weights and does not import torch.

    Every method raises `ModelError`, one sentence that names the place, for what is missing, damaged or unsafe to read.

    Args:
        name: what the user called it.
    """

    def __init__(self, name: str):
        self.name = name

    # To be implemented for each form of storage.

    @property
    @abstractmethod
    def parts(self) -> Sequence[str]:
        """The names of its parts: "unet", "vae", "text_encoder", "tokenizer", "scheduler", ..."""

    @property
    @abstractmethod
    def index(self) -> Mapping[str, Any]:
        """The settings of the pipeline as a whole, as in model_index.json: its class, options and parts."""

    @abstractmethod
    def check(self, parts: Sequence[str] | None = None) -> None:
        """Check that this is a pipeline whose parts exist, and not only as pickles.

        Args:
            parts: the parts that are needed; None means all.
        """

    @abstractmethod
    def check_weights(self, part: str) -> None:
        """Check that the weights of a part exist as safetensors."""

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The JSON object that describes a part."""

    @abstractmethod
    def where(self, part: str) -> str:
        """The place of a part's config, for messages."""

    @abstractmethod
    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """Load a part, from safetensors only.

        Args:
            part: one that `part_class` knows.
            dtype: of its weights; None is float32. Tokenizers ignore it.
        """

    @abstractmethod
    def load_as(self, kind: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        """Load a part as an object of a given class.

        Args:
            kind: a Diffusers or transformers class.
            part: the part.
            dtype: of the weights; None is the class's default.
        """

    @abstractmethod
    def pipeline(self, **options: Any) -> Any:
        """Load all parts as a Diffusers pipeline.

        This raises whatever Diffusers raises; `load_pipeline` turns that into one sentence.

        Args:
            options: arguments of `DiffusionPipeline.from_pretrained`.
        """

    @abstractmethod
    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        """The weights of a part, not read yet, by the names that its Diffusers or transformers class has for them."""

    @abstractmethod
    def contents(self, part: str) -> Iterator[tuple[str, bytes]]:
        """Yield (name, SHA-256 digest as bytes) of the files that make up a part, sorted by name."""

    @abstractmethod
    def check_apart(self, out: Path) -> None:
        """Check that the folder `out`, which is to be written, neither lies in this model's folder nor contains it."""

    @abstractmethod
    def write_changed(self, new: Path, parts: Sequence[str], change: Change) -> None:
        """Fill an empty folder with a copy of the model in which some tensors are replaced.

        Dtypes and shapes stay, and a folder's file names. In the parts that may change, other variants and pickles are
        not copied, since they would still hold the old weights. A single file becomes a folder.

        Args:
            new: the folder.
            parts: those that may change.
            change: called once for every file, or every part, with tensors of these parts; returns the new tensors.
        """

    # The same for every form of storage.

    @property
    def pipeline_class(self) -> str:
        """The Diffusers pipeline class it is for, such as "StableDiffusionPipeline"; "" if its index does not say."""
        name = self.index.get("_class_name", "")
        return str(
            name[-1] if isinstance(name, list) and name else name
        )  # a list [file, class] names a class in the repository

    @property
    def zeros_for_no_prompt(self) -> bool:
        """For SDXL: whether a missing negative prompt is encoded as zeros instead of as the empty prompt."""
        zeros = self.index.get(ZEROS, True)
        check(zeros, bool, f"model_index.json of {self.name}", ZEROS, error=ModelError)
        return zeros

    @property
    def family(self) -> str:
        """ "sd15", "sd21" or "sdxl": the same names as for the base model of a LoRA file."""
        if "text_encoder_2" in self.parts:
            return "sdxl"
        return "sd21" if self.setting("text_encoder", "hidden_size", int) == 1024 else "sd15"

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The names of its text encoders."""
        if "text_encoder_2" not in self.parts:
            return ("text_encoder",)
        return ("text_encoder", "text_encoder_2") if "text_encoder" in self.parts else ("text_encoder_2",)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The names of its tokenizers, in the order of `text_parts`."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.text_parts)

    @property
    def decisive(self) -> list[str]:
        """The parts that influence a generated picture."""
        return [part for part in ("vae", "unet", "scheduler", *self.text_parts, *self.tokenizers) if part in self.parts]

    def setting(self, part: str, name: str, kind: Any, default: Any = None) -> Any:
        """Read one value of a part's config.

        Args:
            part: the part.
            name: the key.
            kind: the declared type; see `sd_ext.declared`.
            default: the value if the config lacks the key.

        Raises:
            ModelError: the value is of another type.
        """
        config = self.config(part)
        if name not in config:
            return default
        check(config[name], kind, self.where(part), name, error=ModelError)
        return config[name]

    @property
    def pixels_per_latent(self) -> int:
        """The autoencoder's scale: how many pixels, in height and in width, correspond to one latent."""
        levels = self.setting("vae", "block_out_channels", list[int], [64])
        if not 1 <= len(levels) <= 16:
            raise ModelError(f"{self.where('vae')}: block_out_channels has {len(levels)} levels")
        return 2 ** (len(levels) - 1)

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""
        return self.noise()["prediction_type"]

    def noise(self) -> dict[str, Any]:
        """The noise schedule as keyword arguments of Diffusers' schedulers, including `prediction_type`."""
        from ..schedulers.processes.reading import ProcessOptions

        given = self.config("scheduler")
        check(given, ProcessOptions, self.where("scheduler"), error=ModelError)
        settings = {name: given[name] for name in NOISE if given.get(name) is not None}
        defaults = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
        return settings | {name: given.get(name, default) for name, default in defaults.items()}

    def without_weights(self, part: str, config: Mapping[str, Any] | None = None) -> Any:
        """Build a part from its config, with random weights (on the device of the surrounding `torch.device` block).

        Args:
            part: one that `part_class` knows.
            config: its config; None for that of the model.

        Raises:
            ModelError: the class refuses the config.
        """
        kind, config = part_class(part), self.config(part) if config is None else dict(config)
        try:
            if part in self.text_parts:
                settings = kind.config_class
                return kind(settings.from_dict(config.get(settings.base_config_key, config)))
            return kind.from_config(config)
        except Exception as error:  # libraries raise all kinds of errors for malformed configs
            raise ModelError(f"{self.where(part)} makes no {kind.__name__}: {error}") from error

    def digest(self, *parts: str) -> str:
        """SHA-256 (hexadecimal) over the contents of the files of these parts, independent of where they are stored."""
        whole = hashlib.sha256()
        for part in parts:
            for name, contents in self.contents(part):
                whole.update(f"{part}/{name}\0".encode() + contents)
        return whole.hexdigest()
