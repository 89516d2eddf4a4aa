"""What can be asked of a model on disk, whatever form it is stored in."""

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
ZEROS = "force_zeros_for_empty_prompt"  # in model_index.json
NOISE = "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"

Stored = Mapping[tuple[str, str], StoredTensor]
"""(part, name of the tensor in that part) -> where it is."""
Change = Callable[[Stored], Mapping[tuple[str, str], "Tensor"]]
"""What the tensors that it returns are exchanged for, asked of the tensors of one file at a time."""


def part_class(part: str) -> Any:
    """The class that loads a part of Stable Diffusion."""
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
    """A model on disk. Making one reads no weights and imports no torch.

    Every method raises `ModelError`, in one sentence that says where, for what is missing, damaged or unsafe to read.

    Args:
        name: what the user called it.
    """

    def __init__(self, name: str):
        self.name = name

    # What each form of storage says for itself.

    @property
    @abstractmethod
    def parts(self) -> Sequence[str]:
        """What it is made of: "unet", "vae", "text_encoder", "tokenizer", "scheduler", ..."""

    @property
    @abstractmethod
    def index(self) -> Mapping[str, Any]:
        """What it says of the pipeline as a whole, as a model_index.json would: class, options, parts."""

    @abstractmethod
    def check(self, parts: Sequence[str] | None = None) -> None:
        """See that it is a whole pipeline of which some parts (None: all) are there, and not only as pickles."""

    @abstractmethod
    def check_weights(self, part: str) -> None:
        """See that the weights of a part are there as safetensors."""

    @abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """The JSON that describes a part."""

    @abstractmethod
    def where(self, part: str) -> str:
        """Where a part's config is, for messages."""

    @abstractmethod
    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """A part, from safetensors only.

        Args:
            part: one that `part_class` knows.
            dtype: of its weights; None is float32. Tokenizers have none.
        """

    @abstractmethod
    def pipeline(self, **options: Any) -> Any:
        """The whole as a Diffusers pipeline; options are those of `DiffusionPipeline.from_pretrained`.

        Raises whatever Diffusers raises; `load_pipeline` turns that into a sentence.
        """

    @abstractmethod
    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        """The weights of a part by the name that its Diffusers or transformers class gives them; none is read."""

    @abstractmethod
    def contents(self, part: str) -> Iterator[tuple[str, bytes]]:
        """(name, sha256) of the files that make up a part, in order of their names."""

    @abstractmethod
    def check_apart(self, out: Path) -> None:
        """See that a folder that is to be written lies neither in the model nor around it."""

    @abstractmethod
    def write_changed(self, new: Path, parts: Sequence[str], change: Change) -> None:
        """Fill an empty folder with a copy in which some tensors are exchanged.

        Types, shapes and files stay. Of the parts that may change, other variants and pickles are not copied, since
        they would still be what they were.

        Args:
            new: the folder.
            parts: those that may change.
            change: called for every file with tensors of these parts.
        """

    # What follows from that.

    @property
    def pipeline_class(self) -> str:
        """The Diffusers pipeline it is made for, such as "StableDiffusionPipeline"; "" where it does not say."""
        name = self.index.get("_class_name", "")
        return str(name[-1] if isinstance(name, list) and name else name)  # a list: a class of the repository's own

    @property
    def zeros_for_no_prompt(self) -> bool:
        """Of SDXL: whether no negative prompt means zeros in place of the empty prompt's states."""
        zeros = self.index.get(ZEROS, True)
        check(zeros, bool, f"model_index.json of {self.name}", ZEROS, error=ModelError)
        return zeros

    @property
    def family(self) -> str:
        """ "sd15", "sd21" or "sdxl", as LoRA files too call their base."""
        if "text_encoder_2" in self.parts:
            return "sdxl"
        return "sd21" if self.setting("text_encoder", "hidden_size", int) == 1024 else "sd15"

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The text encoders."""
        return ("text_encoder", "text_encoder_2") if "text_encoder_2" in self.parts else ("text_encoder",)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The tokenizers, in the order of `text_parts`."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.text_parts)

    @property
    def decisive(self) -> list[str]:
        """The parts on which a result depends."""
        return [part for part in ("vae", "unet", "scheduler", *self.text_parts, *self.tokenizers) if part in self.parts]

    def setting(self, part: str, name: str, kind: Any, default: Any = None) -> Any:
        """One value of a part's config.

        Args:
            part: the part.
            name: the key.
            kind: its declared type; see `sd_ext.declared`.
            default: what it is where the config lacks it.

        Raises:
            ModelError: it is of another type.
        """
        config = self.config(part)
        if name not in config:
            return default
        check(config[name], kind, self.where(part), name, error=ModelError)
        return config[name]

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels, in height and in width, the autoencoder makes of one latent."""
        levels = self.setting("vae", "block_out_channels", list[int], [64])
        if not 1 <= len(levels) <= 16:
            raise ModelError(f"{self.where('vae')}: block_out_channels has {len(levels)} levels")
        return 2 ** (len(levels) - 1)

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""
        return self.noise()["prediction_type"]

    def noise(self) -> dict[str, Any]:
        """The noise schedule, as Diffusers' schedulers take it, `prediction_type` included."""
        from ..schedulers.schedule import Training

        given = self.config("scheduler")
        check(given, Training, self.where("scheduler"), error=ModelError)
        settings = {name: given[name] for name in NOISE if given.get(name) is not None}
        defaults = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
        return settings | {name: given.get(name, default) for name, default in defaults.items()}

    def without_weights(self, part: str) -> Any:
        """A part as its config says, with weights as they come; on the device of the `torch.device` block around it."""
        kind, config = part_class(part), self.config(part)
        try:
            if part in self.text_parts:
                settings = kind.config_class
                return kind(settings.from_dict(config.get(settings.base_config_key, config)))
            return kind.from_config(config)
        except Exception as error:  # whatever a library makes of a stranger's config
            raise ModelError(f"{self.where(part)} makes no {kind.__name__}: {error}") from error

    def digest(self, *parts: str) -> str:
        """What identifies these parts, wherever they lie: a sha256 over the contents of their files."""
        whole = hashlib.sha256()
        for part in parts:
            for name, contents in self.contents(part):
                whole.update(f"{part}/{name}\0".encode() + contents)
        return whole.hexdigest()
