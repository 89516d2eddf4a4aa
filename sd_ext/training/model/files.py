"""A model as files: which parts it has, of what kind it is, what identifies their weights; parts load one by one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sd_ext.declared import check
from sd_ext.errors import ModelError
from sd_ext.model_configs import check_plain, parts_in, read_config, read_index
from sd_ext.pretrained import pretrained_path
from sd_ext.schedulers.schedule import Training

ZEROS = "force_zeros_for_empty_prompt"  # in model_index.json
TEXT_PARTS = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}


def part_class(part: str) -> Any:
    """The class that loads a part."""
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


@dataclass(frozen=True)
class ModelFiles:
    """The folders of a model's parts.

    Args:
        parts: "vae", "unet", "text_encoder", "tokenizer", "scheduler", ... -> folder.
        variant: of the weight files, e.g. "fp16"; empty for the plain ones.
        source: what the user called the model.
        zeros_for_no_prompt: of SDXL: whether no negative prompt means zeros in place of the empty prompt's states.
    """

    parts: dict[str, Path]
    variant: str = ""
    source: str = ""
    zeros_for_no_prompt: bool = True

    @property
    def family(self) -> str:
        """ "sd" (one text encoder) or "sdxl" (two)."""
        return "sdxl" if "text_encoder_2" in self.parts else "sd"

    @cached_property
    def base(self) -> str:
        """ "sd15", "sd21" or "sdxl": how LoRA files call their base."""
        if self.family == "sdxl":
            return "sdxl"
        return "sd21" if self.setting("text_encoder", "hidden_size", int) == 1024 else "sd15"

    @property
    def text_parts(self) -> tuple[str, ...]:
        return TEXT_PARTS[self.family]

    @property
    def decisive(self) -> list[str]:
        """The parts on which a result depends."""
        tokenizers = (part.replace("text_encoder", "tokenizer") for part in self.text_parts)
        known = ("vae", "unet", "scheduler", *self.text_parts, *tokenizers)
        return [part for part in known if part in self.parts]

    def config_file(self, part: str) -> Path:
        """The JSON file that describes a part. Raises `ModelError` where there is none."""
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if (self.parts[part] / name).is_file():
                return self.parts[part] / name
        raise ModelError(f"{self.parts[part]} holds no {part} (no config.json there)")

    def config(self, part: str) -> dict[str, Any]:
        """The JSON that describes a part. Raises `ModelError` where it is damaged."""
        return read_config(self.config_file(part))

    def setting(self, part: str, name: str, kind: Any, default: Any = None) -> Any:
        """One value of a part's config, of the declared type; the default where it is not there.

        Raises:
            ModelError: it is of another type.
        """
        config = self.config(part)
        if name not in config:
            return default
        check(config[name], kind, str(self.config_file(part)), name, error=ModelError)
        return config[name]

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels, in height and in width, the autoencoder makes of one latent."""
        levels = self.setting("vae", "block_out_channels", list[int], [64])
        if not 1 <= len(levels) <= 16:
            raise ModelError(f"{self.config_file('vae')}: block_out_channels has {len(levels)} levels")
        return 2 ** (len(levels) - 1)

    def noise(self) -> dict[str, Any]:
        """The noise schedule, as Diffusers' schedulers take it."""
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        given = self.config("scheduler")
        check(given, Training, str(self.config_file("scheduler")), error=ModelError)
        settings = {name: given[name] for name in names if given.get(name) is not None}
        defaults = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
        return settings | {name: given.get(name, default) for name, default in defaults.items()}

    def load(self, part: str, dtype: torch.dtype = torch.float32) -> Any:
        """A part, from safetensors only.

        Raises:
            ModelError: it does not load; says which.
        """
        self.config(part)
        kind, folder = part_class(part), self.parts[part]
        options: dict[str, Any] = {"local_files_only": True}
        if not part.startswith("tokenizer"):
            options |= {"use_safetensors": True, **({"variant": self.variant} if self.variant else {})}
            options["torch_dtype" if part in ("vae", "unet") else "dtype"] = dtype
        try:
            return kind.from_pretrained(folder, **options)
        except Exception as error:  # whatever a library makes of a stranger's files
            raise ModelError(f"{folder} does not load as {kind.__name__}: {error}") from error

    def without_weights(self, part: str) -> Any:
        """A part as its config says, with weights as they come; on the device of the `torch.device` block around it.

        Raises:
            ModelError: its config does not make one.
        """
        kind, config = part_class(part), self.config(part)
        try:
            if part.startswith("text_encoder"):
                return kind(kind.config_class.from_pretrained(self.parts[part]))
            return kind.from_config(config)
        except Exception as error:
            raise ModelError(f"{self.config_file(part)} makes no {kind.__name__}: {error}") from error

    def digest(self, *parts: str) -> str:
        """What identifies these parts: a sha256 over their files' contents, wherever they lie."""
        whole = hashlib.sha256()
        for part in parts:
            for path in sorted(self.parts[part].glob("*")):
                if path.is_file() and path.suffix in (".safetensors", ".json", ".txt"):
                    whole.update(f"{part}/{path.name}\0".encode() + file_digest(path))
        return whole.hexdigest()


def file_digest(path: Path) -> bytes:
    """The sha256 of a file's bytes."""
    running = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            running.update(block)
    return running.digest()


def find_model(model: str, variant: str = "") -> ModelFiles:
    """The files of a pipeline: a folder, a Hub id (downloaded, safetensors only), or "embedded".

    Raises:
        ModelError: no such model, or one of a kind that cannot be trained here; says what can.
    """
    if not model.strip():
        raise ModelError("no model named; give a pipeline folder, a Hub id, or embedded as model")
    root = Path(pretrained_path()) if model == "embedded" else Path(model)
    if (root / "model" / "model_index.json").is_file():  # a finished run
        root = root / "model"
    if not root.is_dir():
        if model.endswith((".safetensors", ".ckpt", ".pt", ".bin")) or model.startswith((".", "/", "~")):
            raise ModelError(f"no pipeline folder at {model}; single files must be converted to a folder first")
        root = download(model, variant)
    index = root / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{root} is no pipeline folder (no model_index.json)")
    listed = read_index(root)
    check_plain(root)
    present = {name: root / name for name in parts_in(listed)}
    refuse_other_kinds(model, listed, present)
    parts = {name: path for name, path in present.items() if path.is_dir()}
    zeros = listed.get(ZEROS, True)
    check(zeros, bool, str(index), ZEROS, error=ModelError)
    files = ModelFiles(parts, variant, model, zeros)
    check_parts(files)
    return files


def check_parts(files: ModelFiles) -> None:
    """Refuse a model that lacks a part, or the weights of one as safetensors."""
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in files.text_parts]
    for part in ("unet", "vae", *files.text_parts, *tokenizers, "scheduler"):
        if part not in files.parts:
            raise ModelError(f"{files.source} has no folder {part}; it is incomplete")
    for part in ("unet", "vae", *files.text_parts):
        check_weights(files.parts[part], files.variant)


def check_weights(folder: Path, variant: str) -> None:
    """Refuse a folder without weights of the variant as safetensors; says what is there instead."""
    own = re.escape(f".{variant}") if variant else ""
    shard = r"(-\d+-of-\d+)?"
    name = re.compile(rf"(diffusion_pytorch_)?model({own}{shard}|{shard}{own})\.safetensors")
    found = sorted(path.name for path in folder.iterdir())
    if any(name.fullmatch(each) for each in found):
        return
    pickles = [each for each in found if each.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    others = [each for each in found if each.endswith(".safetensors")]
    there = f"; {', '.join(pickles)} would be loaded as pickle, which can run anything: convert it" if pickles else ""
    there += f"; there is {', '.join(others)}: give its variant" if others else ""
    raise ModelError(f"{folder} holds no {f'{variant} ' if variant else ''}weights as safetensors{there}")


def refuse_other_kinds(model: str, listed: dict[str, Any], present: dict[str, Path]) -> None:
    """Only Stable Diffusion 1.x, 2.x and XL base models, for text to image."""
    kind = listed.get("_class_name", "an unknown pipeline")
    able = "Stable Diffusion 1.x, 2.x and SDXL (text to image) can be trained"
    if "unet" not in present or "text_encoder" not in present or "vae" not in present:
        raise ModelError(f"{model} is a {kind} without unet, vae and text_encoder; {able}")
    files = ModelFiles(present)
    unet = files.config("unet")
    if unet.get("_class_name", "UNet2DConditionModel") not in ("UNet2DConditionModel",):
        raise ModelError(f"the U-Net of {model} is a {unet['_class_name']}; {able}")
    latent, takes = files.setting("vae", "latent_channels", int, 4), files.setting("unet", "in_channels", int, 4)
    if takes != latent:
        raise ModelError(f"the U-Net of {model} takes {takes} channels, not the latent's {latent}; {able}")


def download(model: str, variant: str) -> Path:
    """The local copy of a Hub model."""
    from diffusers import DiffusionPipeline

    try:
        folder = DiffusionPipeline.download(model, variant=variant or None, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{model} is neither a folder here nor a model on the Hub that loads: {reason}") from error
    return Path(folder)


def find_part(root: str, part: str) -> Path:
    """The folder of a part: `root` itself, or inside a pipeline folder or a finished run.

    Raises:
        ModelError: there is none.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ModelError(f"no model folder at {root}")
    for candidate in (folder / part, folder / "model" / part, folder / "model", folder):
        if (candidate / "config.json").is_file() or (candidate / "tokenizer_config.json").is_file():
            return candidate
    raise ModelError(f"{root} holds no {part} (no config.json there)")


def from_folder(cls: Any, folder: str, part: str) -> Any:
    """`cls.from_pretrained` on a model folder, or on the `part` of a pipeline folder or finished run.

    Raises:
        ModelError: nothing there that loads.
    """
    found = find_part(folder, part)
    options: dict[str, Any] = {} if "okenizer" in cls.__name__ else {"use_safetensors": True}
    try:
        check_plain(found)
        read_config(found / ("config.json" if options else "tokenizer_config.json"))
        return cls.from_pretrained(found, local_files_only=True, **options)
    except ModelError:
        raise
    except Exception as error:  # whatever a library makes of a stranger's files
        raise ModelError(f"{found} does not load as {cls.__name__}: {error}") from error
