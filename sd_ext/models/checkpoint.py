"""What a `.safetensors` file in the original layout holds (see `original`): its parts, their configs and tensors."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .building import build
from .header import NAMES, Header
from .model import Model, part_class
from .original.families import NOISE, UNET, VAE, Family, find_family
from .original.places import find_places, shape_of
from .original.prediction import Prediction, likeness, seen_prediction, told_prediction
from .original.shapes import Shapes
from .original.tokenizer import tokenizer_config
from .original.told import CHECKPOINT, tell
from .weights import StoredTensor, read_tensors

TITLES = {
    "vae": ("autoencoder", "--vae"),
    "text_encoder": ("text encoder", "--text-encoder"),
    "text_encoder_2": ("second text encoder", "--text-encoder"),
}
"""Part that a file may lack -> what it is, and the option of `sd-ext convert checkpoint` that gives it."""
COPIES = "model_ema."
SCALED, SCALES = "scaled_fp8", (".scale_weight", ".scale_input")
log = logging.getLogger(__name__)


class Checkpoint(Model):
    """A Stable Diffusion in one file, as its header tells it; `SingleFile` also loads and writes it.

    Args:
        path: the file.
        name: what the user called it; None means its path.
        prediction_type: what it predicts, if the user says so; see `original.prediction`.
        others: part -> a model to read that part from; for parts that the file lacks, or instead of its own.

    Raises:
        ModelError: it is no Stable Diffusion checkpoint; one sentence that says what it is.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        prediction_type: str | None = None,
        others: Mapping[str, Model] | None = None,
    ):
        told = tell(path)
        if told.kind != CHECKPOINT:
            raise ModelError(told.sentence)
        shapes = {key: entry.shape for key, entry in told.header.tensors.items()}
        with self._about(path):
            layout = find_family(shapes)
        self._set_up(path, name, told.header, layout, prediction_type, others)
        self._shapes = {part: self._of_part(part, shapes) for part in self.layout.beginnings}
        with self._about():
            self.networks = self._read_configs()  # part -> its config, for the networks that the file holds
        self._check_channels()
        self._check_widths()

    def _set_up(
        self,
        path: Path,
        name: str | None,
        header: Header,
        layout: Family,
        prediction_type: str | None = None,
        others: Mapping[str, Model] | None = None,
    ) -> None:
        super().__init__(str(path) if name is None else name)
        self.path, self.entries, self.metadata, self.layout = path, header.tensors, header.metadata, layout
        self.others = {
            part: other.for_family(layout) if isinstance(other, Checkpoint) else other
            for part, other in (others or {}).items()
        }
        self._chosen = prediction_type
        self._check_types()

    def for_family(self, layout: Family) -> Model:
        """This model as the source of a part of a model of another family."""
        return self

    @contextmanager
    def _about(self, path: Path | None = None) -> Iterator[None]:
        """A block in which a `ModelError` is the end of a sentence that begins with this file."""
        try:
            yield
        except ModelError as error:
            raise ModelError(f"{path or self.path} {error}") from None

    def _of_part(self, part: str, shapes: Shapes) -> Shapes:
        """The tensors of a part, their names without the part's beginning; empty if the file lacks the part."""
        for start in self.layout.beginnings[part]:
            if found := {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)}:
                return found
        return {}

    def _read_configs(self) -> dict[str, dict[str, Any]]:
        """The configs of the networks that the file holds."""
        pooled = self._shapes.get("text_encoder_2", {}).get("text_projection", (0,))[-1]
        return {part: self.layout.config(part, shapes, pooled) for part, shapes in self._shapes.items() if shapes}

    def _check_widths(self) -> None:
        if set(self.layout.text) & set(self.missing):
            return
        width = sum(self.setting(part, "hidden_size", int, 0) for part in self.layout.text)
        takes = self.networks["unet"]["cross_attention_dim"]
        if width != takes:
            raise ModelError(
                f"{self.path} has a U-Net that attends to texts {takes} wide, and its text encoders give {width}"
            )

    def _check_channels(self) -> None:
        channels = self.networks["unet"]["in_channels"]
        if str(channels) not in self.layout.pipelines:
            raise ModelError(
                f"{self.path} is {self.layout.title} with {channels} input channels; of that family the "
                f"models with {' or '.join(self.layout.pipelines)} are known"
            )

    def _check_types(self) -> None:
        """Check that the weights are stored in number formats that are read."""
        if SCALED in self.entries or any(name.endswith(SCALES) for name in self.entries):
            raise ModelError(f"{self.path} holds fp8 weights with factors of their own ({SCALED}), which is not read")
        starts = tuple(start for part in self.layout.beginnings.values() for start in part)
        for name, entry in self.entries.items():
            if entry.dtype not in NAMES and name.startswith(starts) and not name.endswith("position_ids"):
                raise ModelError(f"{self.path} has weights of the type {entry.dtype}, which is not read ({name})")

    def _start(self, part: str) -> str:
        """How the names of a part's tensors begin in this file."""
        return next(b for b in self.layout.beginnings[part] if any(name.startswith(b) for name in self.entries))

    # What it consists of.

    @property
    def parts(self) -> Sequence[str]:
        texts = [part for part in self.layout.text if part in self.networks or part in self.others]
        networks = [part for part in ("vae", "unet") if part in self.networks or part in self.others]
        return [
            *networks,
            *texts,
            *(part.replace("text_encoder", "tokenizer") for part in self.layout.text),
            "scheduler",
        ]

    @property
    def missing(self) -> list[str]:
        """The networks that the file lacks and `others` do not give."""
        return [part for part in self.layout.beginnings if part not in self.networks and part not in self.others]

    @property
    def index(self) -> Mapping[str, Any]:
        classes = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}
        made: dict[str, Any] = {
            "_class_name": self.layout.pipelines[str(self.networks["unet"]["in_channels"])],
            "scheduler": ["diffusers", self.layout.scheduler["_class_name"]],
        }
        made |= {part: ["diffusers", name] for part, name in classes.items()}
        for part in self.layout.text:
            kind = "CLIPTextModel" if part == "text_encoder" else "CLIPTextModelWithProjection"
            made |= {part: ["transformers", kind]}
            made |= {part.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"]}
        return made | dict(self.layout.index)

    @property
    def family(self) -> str:
        return self.layout.name.removesuffix("-refiner")

    @cached_property
    def extras(self) -> dict[str, StoredTensor]:
        """Tensors that no part uses and that are no averaged copies, such as `alphas_cumprod`."""
        own = [part for part in self.networks if part not in self.others]
        used = {stored.key for part in own for stored in self.tensors(part).values()}
        given = tuple(start for part in self.others for start in self.layout.beginnings[part])
        return {
            name: StoredTensor(self.path, name, entry.shape)
            for name, entry in self.entries.items()
            if name not in used and not name.startswith((COPIES, *given))
        }

    @property
    def notes(self) -> list[str]:
        """What the file holds that nothing here reads and that may be missed, as sentences without full stops."""
        copies = sum(name.startswith(COPIES) for name in self.entries)
        stray = [name for name in self.extras if name.startswith((UNET, VAE))]
        return [
            *([f"averaged copies of weights ({COPIES}*, {copies} tensors) are left out"] if copies else []),
            *([f"no network here has a place for {len(stray)} of its tensors, such as {stray[0]}"] if stray else []),
        ]

    @property
    def told_prediction(self) -> Prediction | None:
        """What it predicts, as far as the file or its family tells; see `original.prediction`."""
        return told_prediction(self.layout, self.path, self.entries, self.metadata, self._chosen)

    @cached_property
    def prediction(self) -> Prediction:
        """What it predicts. For Stable Diffusion 2.x this may have to load the U-Net. Logged, as a warning, once."""
        found = self.told_prediction or seen_prediction(self.path, self.entries, self._look())
        log.warning("%s is %s and predicts %s", self.name, self.layout.title, found.text)
        return found

    def _look(self) -> float:
        import torch

        stored = {NAMES[self.entries[tensor.key].dtype] for tensor in self.tensors("unet").values()}
        # The CPU computes slowly or not at all in float16 and fp8; bfloat16 needs no more memory than the former.
        dtype = torch.float32 if stored & {"float32", "float64"} else torch.bfloat16
        return likeness(build(self, part_class("unet"), "unet", dtype, self.networks["unet"]))

    # What every `Model` can do.

    def check(self, parts: Sequence[str] | None = None) -> None:
        for part in self.index if parts is None else parts:
            if part in self.missing:
                title, option = TITLES[part]
                raise ModelError(
                    f"{self.path} holds no {title} ({part}); make a pipeline folder of it with "
                    f"`sd-ext convert checkpoint FILE DIR {option} MODEL`, which takes it from another model"
                )
            if part in self.others:
                self.others[part].check_weights(part)
            elif part in self.layout.beginnings:
                self.tensors(part)

    def check_weights(self, part: str) -> None:
        self.check((part,))

    def where(self, part: str) -> str:
        return self.others[part].where(part) if part in self.others else f"{self.path} ({part})"

    def config(self, part: str) -> dict[str, Any]:
        if part in self.others:
            return self.others[part].config(part)
        if part == "scheduler":
            return {**NOISE, **self.layout.scheduler, **self.prediction.scheduler()}
        if part.startswith("tokenizer"):
            return tokenizer_config(self.style(part))
        self.check((part,))
        if part not in self.networks:
            raise ModelError(f"{self.path} holds no {part}")
        config = dict(self.networks[part])
        if part == "unet" and self.layout.name == "sd21" and self.prediction.type != "epsilon":
            config["sample_size"] = 96  # those for v were trained at 768 x 768 pixels
        return config

    def style(self, tokenizer: str) -> str:
        """Whose tokenizer a tokenizer is: "clip" or "open_clip"."""
        return self.layout.text[tokenizer.replace("tokenizer", "text_encoder")].style

    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        if part in self.others:
            return self.others[part].tensors(part)
        if part not in self.networks:
            self.check((part,))
        start, found = self._start(part), {}
        for name, place in find_places(self.layout, part, self.networks[part], self._shapes[part]).items():
            shape = shape_of(place, self._shapes[part][place.key])
            rows = None if place.piece is None else (place.piece * shape[0], (place.piece + 1) * shape[0])
            found[name] = StoredTensor(self.path, start + place.key, shape, rows, place.turned)
        return found

    def contents(self, part: str) -> Iterator[tuple[str, bytes]]:
        yield "config", hashlib.sha256(json.dumps(self.config(part), sort_keys=True).encode()).digest()
        if part in self.layout.beginnings:
            from ..checked import raw  # imports torch

            made = hashlib.sha256()
            for name, tensor in read_tensors(self.tensors(part)):
                made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                made.update(raw(tensor))
            yield "weights", made.digest()

    def check_apart(self, out: Path) -> None:
        if out.resolve() == self.path.resolve():
            raise ModelError(f"{out} is the model itself; choose another name")
        if self.path.resolve().is_relative_to(out.resolve()):
            raise ModelError(f"{out} lies around {self.path}; choose another folder")
