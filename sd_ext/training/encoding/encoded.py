"""The latents of a run's pictures and the states of its texts, encoded once by frozen encoders and cached on disk.

A latent is stored as the mean and standard deviation of the autoencoder's posterior, so that every step can draw a
fresh sample. If all entries are in the cache already, no encoder is loaded.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sd_ext.models import Model
from sd_ext.training.data.known import Known
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.encoding.cache import Cache, Cached, Entry
from sd_ext.training.encoding.keys import key, latent_key, text_key
from sd_ext.training.encoding.settings import CacheSettings
from sd_ext.training.model import chunked
from sd_ext.training.model.chunked import Length
from sd_ext.training.model.text_encoders import TextTowers

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
TEXTS_AT_ONCE = 64
# Most pixels that are encoded in one batch. The run's batch size is not used, since the last bits of a latent depend
# on the batch, and cached latents would then depend on that setting. On a CPU, larger batches take more memory but are
# no faster.
PIXELS_AT_ONCE = {"cpu": 2**14, "cuda": 2**19}

NAMED = 5  # pictures with a wide posterior that are named
SPREAD = 0.5  # latents have about unit size: a posterior wider than this is noise more than picture

log = logging.getLogger(__name__)


def settled(moments: Tensor) -> Tensor:
    """Moments with the standard deviation of pictures whose posterior is wider than `SPREAD` set to 0.

    Args:
        moments: mean and standard deviation of latents, (b, 2, c, h, w).

    Returns:
        Of the same shape.
    """
    wide = moments[:, 1].flatten(1).amax(1) > SPREAD
    mean, deviation = moments.unbind(1)
    return torch.stack([mean, deviation.masked_fill(wide[:, None, None, None], 0)], dim=1)


def spread_of(entry: Entry) -> float:
    """The largest standard deviation in a latent."""
    return float(entry["moments"][1].max())


class Encoded:
    """The encoded pictures and texts of a run.

    Args:
        settings: what is cached, and where.
        files: the base model, whose encoders are used.
        accelerator: the device that encoders run on, and the processes that share the work.
        out: the run's folder; the cache lies in it unless the settings name another folder.
        clip_skip: which layer of the text encoder is read, see `TextTowers`.
        chunks: in how many chunks texts are read, see `TextTowers`.
        side: the largest resolution, in pixels; the encoder's batch size is chosen by it.
        workers: threads that read pictures ahead.
        known: what is known of entries of the cache that have not changed.

    Attributes:
        spreads: the largest standard deviation in the latent of each picture that was encoded, by the picture's name.

    Raises:
        InputError: the cache's folder cannot be made.
    """

    def __init__(
        self,
        settings: CacheSettings,
        files: Model,
        accelerator: Accelerator,
        *,
        out: str,
        clip_skip: int = 1,
        chunks: int = 1,
        side: int,
        workers: int,
        known: Known | None = None,
    ):
        self.settings, self.files, self.accelerator = settings, files, accelerator
        self.workers, self.clip_skip, self.chunks = workers, clip_skip, chunks
        self.at_once = max(1, PIXELS_AT_ONCE.get(accelerator.device.type, 2**19) // side**2)
        self.dtype = DTYPES[settings.cache_dtype]
        self.cache = Cache(settings.folder(out), known)
        self._vae: Any = None
        self._latents: dict[int, Cached] = {}
        self.spreads: dict[str, float] = {}

    def prepare(self, sets: Sequence[Pictures], texts: Sequence[str]) -> None:
        """Encode what is not in the cache yet. Without the setting `cache`, pictures are encoded each step instead.

        Args:
            sets: the pictures to encode, such as those to train on and those to validate with.
            texts: the texts to encode.
        """
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
        """Free the memory of the autoencoder, if it was loaded."""
        if self._vae is None:
            return
        self._vae = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def vae(self) -> Any:
        """The autoencoder, loaded when first asked for; in float32, since SDXL's overflows in float16."""
        if self._vae is None:
            self._vae = self.files.load("vae").eval().requires_grad_(False).to(self.accelerator.device)
        return self._vae

    # Latents

    def fill_latents(self, pictures: Pictures) -> None:
        """Encode and cache the latent of every sample, and of the mirror image if it is mirrored; name wide ones."""
        flips = [(False, True) if sample.item.flip else (False,) for sample in pictures.samples]
        places = [(i, flip) for i, both in enumerate(flips) for flip in both]
        keys = {place: latent_key(*pictures.content(*place), self.vae_digest, self.dtype) for place in places}
        jobs = {key: (pictures.sizes[place[0]], (pictures, *place)) for place, key in keys.items()}
        self.fill(jobs, self._encode_pictures, self.at_once, "pictures", lambda job: job[0].pixels(*job[1:]))
        cached = self._latents[id(pictures)] = Cached(self.cache, keys)
        self.note_spreads(
            {
                sample.item.name: self.cache.fact("spread", keys[i, False], lambda i=i: spread_of(cached[i, False]))
                for i, sample in enumerate(pictures.samples)
            }
        )

    def note_spreads(self, spreads: Mapping[str, float]) -> None:
        """Remember the spread of pictures, and name those that are wide for the first time.

        Args:
            spreads: the largest standard deviation in a picture's latent, by the picture's name.
        """
        known = self.wide
        self.spreads |= spreads
        if new := [name for name in self.wide if name not in known][: max(0, NAMED - len(known))]:
            more = " and others, not named here" if len(self.wide) > NAMED else ""
            log.warning(
                "the autoencoder is unsure of %s%s (spread above %s): the mean of the latent is taken",
                ", ".join(new), more, SPREAD,
            )  # fmt: skip

    @property
    def wide(self) -> list[str]:
        """The pictures whose posterior is wider than `SPREAD`."""
        return [name for name, spread in self.spreads.items() if spread > SPREAD]

    def _encode_pictures(self, pixels: Sequence[Tensor]) -> list[Entry]:
        moments = self.encode(torch.stack(list(pixels)).to(self.accelerator.device)).to(self.dtype)
        return [{"moments": each} for each in moments.cpu()]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures with the autoencoder.

        Args:
            pixels: (b, 3, H, W) in [-1, 1], on the autoencoder's device.

        Returns:
            Mean and standard deviation of the posterior, multiplied by the scaling factor: (b, 2, c, h, w).
        """
        vae = self.vae()
        posterior = vae.encode(pixels.to(next(vae.parameters()).dtype)).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1) * vae.config.scaling_factor

    def moments(self, pictures: Pictures, samples: Sequence[int], flips: Sequence[bool]) -> Tensor:
        """Mean and standard deviation of the latents of samples, from the cache or encoded now.

        Args:
            pictures: a set that was given to `prepare`.
            samples: indices of samples of equal size.
            flips: for each, whether it is mirrored.

        Returns:
            (b, 2, c, h, w) float32, on the CPU.
        """
        if not self.settings.cache:
            pixels = [pictures.pixels(i, flip) for i, flip in zip(samples, flips, strict=True)]
            return self.encode(torch.stack(pixels).to(self.accelerator.device)).cpu()
        return self._latents[id(pictures)].stack(list(zip(samples, flips, strict=True)))["moments"].float()

    # Texts

    def add_texts(self, texts: Sequence[str]) -> None:
        """Encode and cache the states of texts. Afterwards `states` knows these texts and no others."""
        towers: list[TextTowers] = []  # loaded when the first text is missing

        @torch.no_grad()
        def encode(texts: Sequence[str]) -> list[Entry]:
            if not towers:
                made = TextTowers.load(self.files, clip_skip=self.clip_skip, chunks=self.chunks)
                towers.append(made.to(self.accelerator.device))
            tokens = towers[0].tokenize(texts).to(self.accelerator.device)
            found = {name: value.to(self.dtype).cpu() for name, value in towers[0](tokens).items()}
            return [{name: value[i] for name, value in found.items()} for i in range(len(texts))]

        unusual = {"clip_skip": self.clip_skip, "chunks": self.chunks}
        skip = [(name, value) for name, value in unusual.items() if value > 1]
        keys = {text: text_key(text, self.text_digest, self.dtype, *skip) for text in texts}
        self.fill({key: ("texts", text) for text, key in keys.items()}, encode, TEXTS_AT_ONCE, "texts")
        self._states = Cached(self.cache, keys)

    def lengths(self, texts: Sequence[str]) -> tuple[list[Length], int]:
        """The lengths of texts. Those of a list of texts are one entry of the cache, so that a tokenizer is loaded for
        new lists only.

        Returns:
            (of each text, how many tokens a chunk holds).
        """
        name = key("lengths 2", self.files.digest("tokenizer"), self.chunks, list(texts))
        entry = self.cache.read(name)
        if entry is None:
            tokenizer = self.files.load("tokenizer")
            found = torch.tensor(chunked.lengths(tokenizer, texts, self.chunks), dtype=torch.int32).reshape(-1, 3)
            entry = {"lengths": found, "room": torch.tensor(chunked.room(tokenizer))}
            if self.cache.writable:
                self.cache.write(name, entry)
        return [Length(*each) for each in entry["lengths"].tolist()], int(entry["room"])

    def states(self, texts: Sequence[str]) -> Entry:
        """The text encoders' outputs for texts that were added before.

        Returns:
            "states" (b, n, d), and for SDXL "pooled" (b, p), in float32, on the CPU.
        """
        return {name: value.float() for name, value in self._states.stack(texts).items()}

    @property
    def text_width(self) -> int:
        """The number of features d of text states."""
        return self.states([""])["states"].shape[-1]

    def fill(
        self,
        jobs: dict[str, tuple[Any, Any]],
        make: Callable,
        batch_size: int,
        title: str,
        load: Callable | None = None,
    ) -> None:
        """`Cache.fill`, with the work shared between all processes, which then wait for one another."""
        a = self.accelerator
        self.cache.fill(
            jobs, make, batch_size, f"encoding {title}", load=load, threads=self.workers,
            process=a.process_index, processes=a.num_processes,
        )  # fmt: skip
        a.wait_for_everyone()
