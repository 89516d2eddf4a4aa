"""Pictures and texts as a frozen autoencoder and frozen text encoders see them, made once and kept on disk.

Of a latent the posterior's mean and standard deviation are kept, so that every step draws a fresh sample. Entries are
found by the content of picture or text and of the encoders' weights; where all are there, no encoder is ever loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sd_ext.models import Model
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.encoding.cache import Cache, Cached, Entry
from sd_ext.training.encoding.keys import latent_key, text_key
from sd_ext.training.encoding.settings import CacheSettings
from sd_ext.training.model.text_encoders import TextTowers

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
TEXTS_AT_ONCE = 64
# Not the run's batch size, on which an encoder's last bits depend, and so would a cached latent's. A CPU is no quicker
# with more at once, it only takes more memory.
PIXELS_AT_ONCE = {"cpu": 2**14, "cuda": 2**19}


class Encoded:
    """The encoders' side of a run.

    Args:
        settings: what is cached, and where.
        files: of the model.
        accelerator: the device encoders run on, and the processes that share the work.
        out: the run's folder, for a cache of its own.
        flip: whether mirror images are needed too.
        side: of the largest resolution, in pixels: what an encoder takes at once depends on it.
        workers: threads that read pictures ahead.

    Raises:
        InputError: the cache's folder cannot be written to.
    """

    def __init__(
        self,
        settings: CacheSettings,
        files: Model,
        accelerator: Accelerator,
        *,
        out: str,
        flip: bool,
        side: int,
        workers: int,
    ):
        self.settings, self.files, self.accelerator = settings, files, accelerator
        self.flip, self.workers = flip, workers
        self.at_once = max(1, PIXELS_AT_ONCE.get(accelerator.device.type, 2**19) // side**2)
        self.dtype = DTYPES[settings.cache_dtype]
        self.cache = Cache(Path(settings.cache_dir or Path(out) / "cache"))
        self._vae: Any = None
        self._latents: dict[int, Cached] = {}

    def prepare(self, sets: Sequence[Pictures], texts: Sequence[str]) -> None:
        """Encode what is not in the cache yet: texts, and pictures unless they are encoded each step."""
        self.vae_digest, self.text_digest = self.files.digest("vae"), self.files.digest(*self._text_files())
        if self.settings.cache:
            for pictures in sets:
                self.fill_latents(pictures)
        self.add_texts(texts)
        if self.settings.cache:
            self.release()

    def _text_files(self) -> list[str]:
        return [*self.files.text_parts, *(part.replace("text_encoder", "tokenizer") for part in self.files.text_parts)]

    def release(self) -> None:
        """Give the autoencoder's memory back, if it was loaded."""
        if self._vae is None:
            return
        self._vae = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def vae(self) -> Any:
        """The autoencoder, in float32: in float16 SDXL's overflows."""
        if self._vae is None:
            self._vae = self.files.load("vae").eval().requires_grad_(False).to(self.accelerator.device)
        return self._vae

    # Latents

    def fill_latents(self, pictures: Pictures) -> None:
        """Encode every sample, and its mirror image where samples are mirrored."""
        flips = (False, True) if self.flip else (False,)
        places = [(i, flip) for i in range(len(pictures)) for flip in flips]
        keys = {place: latent_key(*pictures.content(*place), self.vae_digest, self.dtype) for place in places}
        jobs = {key: (pictures.sizes[place[0]], (pictures, *place)) for place, key in keys.items()}
        self.fill(jobs, self._encode_pictures, self.at_once, "pictures", lambda job: job[0].pixels(*job[1:]))
        self._latents[id(pictures)] = Cached(self.cache, keys)

    def _encode_pictures(self, pixels: Sequence[Tensor]) -> list[Entry]:
        moments = self.encode(torch.stack(list(pixels)).to(self.accelerator.device)).to(self.dtype)
        return [{"moments": each} for each in moments.cpu()]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Mean and standard deviation of the scaled latents of pixels (b, 3, H, W): (b, 2, c, h, w)."""
        vae = self.vae()
        posterior = vae.encode(pixels.to(next(vae.parameters()).dtype)).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1) * vae.config.scaling_factor

    def moments(self, pictures: Pictures, samples: Sequence[int], flips: Sequence[bool]) -> Tensor:
        """Mean and standard deviation of samples' latents, (b, 2, c, h, w)."""
        if not self.settings.cache:
            pixels = [pictures.pixels(i, flip) for i, flip in zip(samples, flips, strict=True)]
            return self.encode(torch.stack(pixels).to(self.accelerator.device)).cpu()
        return self._latents[id(pictures)].stack(list(zip(samples, flips, strict=True)))["moments"].float()

    # Texts

    def add_texts(self, texts: Sequence[str]) -> None:
        """Make the states of texts available, those and no others."""
        towers: list[TextTowers] = []  # loaded when the first text is missing

        @torch.no_grad()
        def encode(texts: Sequence[str]) -> list[Entry]:
            if not towers:
                towers.append(TextTowers.load(self.files).to(self.accelerator.device))
            tokens = towers[0].tokenize(texts).to(self.accelerator.device)
            found = {name: value.to(self.dtype).cpu() for name, value in towers[0](tokens).items()}
            return [{name: value[i] for name, value in found.items()} for i in range(len(texts))]

        keys = {text: text_key(text, self.text_digest, self.dtype) for text in texts}
        self.fill({key: ("texts", text) for text, key in keys.items()}, encode, TEXTS_AT_ONCE, "texts")
        self._states = Cached(self.cache, keys)

    def states(self, texts: Sequence[str]) -> Entry:
        """States of texts (b, n, d), and pooled (b, p) for SDXL, in float32."""
        return {name: value.float() for name, value in self._states.stack(texts).items()}

    @property
    def text_width(self) -> int:
        """Features of a text's states."""
        return self.states([""])["states"].shape[-1]

    def fill(
        self,
        jobs: dict[str, tuple[Any, Any]],
        make: Callable,
        batch_size: int,
        title: str,
        load: Callable | None = None,
    ) -> None:
        """Make the entries that are missing; processes share the work and wait for one another."""
        a = self.accelerator
        self.cache.fill(
            jobs, make, batch_size, f"encoding {title}", load=load, threads=self.workers,
            process=a.process_index, processes=a.num_processes,
        )  # fmt: skip
        a.wait_for_everyone()
