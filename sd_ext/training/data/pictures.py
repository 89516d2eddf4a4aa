"""The pictures a run trains on: all checked once at the start; resized pixels are read on demand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sd_ext.errors import InputError, TrainingError, UnknownNameError
from sd_ext.training.data.ahead import read_ahead
from sd_ext.training.data.buckets import Buckets, Size
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.images import UNREADABLE, covering, covering_mask, crop_to, on_white, open_picture
from sd_ext.training.data.items import Item
from sd_ext.training.data.known import Known
from sd_ext.training.data.look import Look, Sample, Wanted, look_at, read_mask
from sd_ext.training.data.order import Pass
from sd_ext.training.data.sources import read_items

IN_MEMORY = 4 * 2**30  # data sets of up to this many bytes of pixels are decoded once and kept in memory
MANY = 200  # from this many pictures on, checking them shows a progress bar
MOST = 2**24  # most samples in an epoch: more, from too many repeats, would fill the memory with their list


class Pictures:
    """The samples of a data set: every usable picture at each of its sizes, in the order of the source.

    Args:
        data: items, or a source for `read_items`.
        sizes: the buckets; or a number of pixels, for squares of that side.
        split: the split to read, if `data` is a source.
        min_size: pictures whose shorter side has fewer pixels than this are left out.
        captionless: "use" or "skip" pictures without a caption.
        caption: the caption of pictures that have none of their own.
        crop: "center", or "random" if the caller passes a crop each time it reads a sample.
        alpha_mask: use the alpha channel as the mask of pictures that have no mask file.
        repeats: how many times an epoch contains each picture; multiplied by the item's own repeats.
        keep: hold decoded pixels in memory, if all of them take at most `IN_MEMORY` bytes.
        console: where the progress bar is shown; None for the standard error.
        folder_repeats: as for `read_items`, if `data` is a source.
        known: what is known of files that have not changed; None to decode all.

    Attributes:
        items: the items, those that are left out as well.
        samples: the samples. A picture that is repeated, or trained at several sizes, has several.
        sizes: height and width of each sample, in pixels.
        captions: the caption of each sample; of several, the first.
        several: all captions of each sample.
        notes: (name, what is worth knowing) of pictures that are used: what was converted, guessed or cut.
        problems: (name, reason) of each picture that was left out.
        masked: whether any picture has a mask.

    Raises:
        InputError: see `read_items`; or no picture can be used.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Sequence[Item],
        sizes: Buckets | int,
        split: str = "all",
        *,
        min_size: int = 1,
        captionless: str = "use",
        caption: str = "",
        crop: str = "center",
        alpha_mask: bool = False,
        repeats: int = 1,
        keep: bool = True,
        console: Console | None = None,
        folder_repeats: bool = False,
        known: Known | None = None,
    ):
        if captionless not in ("use", "skip"):
            raise UnknownNameError("choice for captionless", captionless, ("use", "skip"))
        source = isinstance(data, (str, os.PathLike))
        items = read_items(data, split, folder_repeats=folder_repeats) if source else list(data)
        buckets = sizes if isinstance(sizes, Buckets) else Buckets((sizes,), step=1, enabled=False)
        keep = keep and len(items) * sum(r**2 for r in buckets.resolutions) * 3 <= IN_MEMORY
        self.items = items
        self.wanted = Wanted(buckets, min_size, captionless == "skip" and not caption, crop, alpha_mask, keep)
        self._gather(items, self._look_at_all(items, console, known), caption, repeats)
        if not self.samples:
            of = f" in {data}" if isinstance(data, (str, os.PathLike)) else ""
            why = f"; first: {self.skipped[0]}" if self.skipped else ""
            raise InputError(f"none of {len(items)} pictures{of} can be used{why}")

    def _look_at_all(self, items: list[Item], console: Console | None, known: Known | None) -> list[Look]:
        """Decode every picture once, so that broken ones are found before training starts; not those that are known."""
        console = console or Console(stderr=True)
        quiet = len(items) < MANY or not console.is_terminal
        threads = min(32, (os.cpu_count() or 1) + 4)  # more threads than cores, since some wait for the disk
        looks = read_ahead((partial(look_at, item, self.wanted, known) for item in items), threads, 4 * threads)
        return list(track(looks, "looking at pictures", len(items), console=console, disable=quiet))

    def _gather(self, items: list[Item], looks: list[Look], caption: str, repeats: int) -> None:
        self.samples: list[Sample] = []
        self.problems = [(item.name, look.problem) for item, look in zip(items, looks, strict=True) if look.problem]
        self.masked = any(look.masked for look in looks)
        self._pixels = [pixels for look in looks for pixels in look.pixels]  # by view
        self._masks: dict[tuple[int, int], Tensor] = {}  # by view and downscale
        total = sum(item.repeats * repeats * len(look.sizes) for item, look in zip(items, looks, strict=True))
        if total > MOST:
            raise InputError(f"an epoch would have {total:,} samples, at most {MOST:,} can be; lower the repeats")
        view = 0
        for item, look in zip(items, looks, strict=True):
            for size in look.sizes:
                sample = Sample(item, size, look.original, look.digest, view, look.masked)
                self.samples += [sample] * (item.repeats * repeats)
                view += 1
        self.sizes = [sample.size for sample in self.samples]
        self.several = [sample.item.captions or (caption,) for sample in self.samples]
        self.captions = [each[0] for each in self.several]
        self.notes = [(item.name, note) for item, look in zip(items, looks, strict=True) for note in look.notes]

    @property
    def skipped(self) -> list[str]:
        """One line for each picture that was left out: its name and the reason."""
        return [f"{name}: {problem}" for name, problem in self.problems]

    def __len__(self) -> int:
        return len(self.samples)

    def _open(self, item: Item) -> Image.Image:
        try:
            return open_picture(item.read())
        except UNREADABLE as error:
            raise TrainingError(f"{item.name} could be read at first, and now cannot: {error}") from error

    def _corner(self, sample: Sample, crop: tuple[int, int] | None) -> tuple[int, int]:
        corner = sample.crop if crop is None else crop
        if any(not 0 <= place <= room for place, room in zip(corner, sample.room, strict=True)):
            raise InputError(f"a crop at {corner} leaves {sample.item.name}, which has room for {sample.room}")
        return corner

    def pixels(self, index: int, flipped: bool = False, crop: tuple[int, int] | None = None) -> Tensor:
        """Read the pixels of a sample.

        Args:
            index: the sample's index.
            flipped: mirror it, left to right.
            crop: top and left of the crop before mirroring, each at most the sample's `room`; None for the centre.

        Returns:
            (3, height, width) in [-1, 1].

        Raises:
            InputError: the crop reaches outside the picture.
            TrainingError: the file was removed or damaged since it was checked.
        """
        sample = self.samples[index]
        corner = self._corner(sample, crop)
        if self._pixels and self.wanted.crop == "center" and corner == sample.crop:
            seen = self._pixels[sample.view]
        elif self._pixels and self.wanted.crop == "random":
            seen = crop_to(self._pixels[sample.view], corner, sample.size)
        else:
            seen = crop_to(covering(on_white(self._open(sample.item)), sample.size), corner, sample.size)
        seen = seen.float() / 127.5 - 1
        return seen.flip(-1) if flipped else seen

    def mask(
        self, index: int, flipped: bool = False, crop: tuple[int, int] | None = None, downscale: int = 8
    ) -> Tensor:
        """The loss mask of a sample, at the resolution of its latent.

        Args:
            index, flipped, crop: as for `pixels`.
            downscale: pixels per latent pixel, in height and in width.

        Returns:
            (1, height / downscale, width / downscale) in [0, 1]: the mean of the mask over the area of each latent
            pixel; all ones for a picture without a mask.

        Raises:
            TrainingError: the mask was removed or damaged since it was checked.
        """
        sample = self.samples[index]
        made = self._masks.get((sample.view, downscale)) if crop is None else None
        if made is None:
            made = self._make_mask(sample, self._corner(sample, crop), downscale)
        if crop is None:
            self._masks[sample.view, downscale] = made
        return made.flip(-1) if flipped else made

    def _make_mask(self, sample: Sample, corner: tuple[int, int], downscale: int) -> Tensor:
        mask = None
        if sample.item.mask or self.wanted.alpha_mask:
            try:
                mask = read_mask(sample.item, self._open(sample.item), self.wanted.alpha_mask)
            except UNREADABLE as error:
                raise TrainingError(f"the mask of {sample.item.name} can no longer be used: {error}") from error
        if mask is None:
            return torch.ones(1, sample.size[0] // downscale, sample.size[1] // downscale)
        scaled = covering_mask(mask, sample.original, sample.size)
        return avg_pool2d(crop_to(scaled, corner, sample.size), downscale)

    def digest(self, index: int) -> str:
        """sha256 of the bytes of a sample's picture file, hexadecimal."""
        return self.samples[index].digest

    def content(self, index: int, flipped: bool = False) -> tuple[str, Size, tuple[int, int], bool]:
        """Everything that a sample's pixels depend on, for the name of its latent in the cache.

        Returns:
            (file digest, size, crop, flipped): the first arguments of `latent_key`.

        Raises:
            InputError: crops are random, so that latents cannot be cached.
        """
        if self.wanted.crop == "random":
            raise InputError("a latent cache cannot hold random crops, which differ each time: use one or the other")
        sample = self.samples[index]
        return sample.digest, sample.size, sample.crop, flipped


def fingerprint(pictures: Pictures, said: Sequence[Any], masks: bool = False) -> str:
    """A digest of everything about the samples that a run depends on; a resumed run must have the same.

    Args:
        pictures: the samples; their files, sizes and weights count.
        said: for each sample, its text or texts.
        masks: whether mask files count as well.

    Returns:
        sha256, hexadecimal.
    """
    whole = hashlib.sha256()
    for sample, words in zip(pictures.samples, said, strict=True):
        whole.update(repr((sample.digest, sample.size, sample.weight, sample.item.flip, words)).encode())
        if masks and sample.masked and sample.item.mask:
            whole.update(hashlib.sha256(sample.item.mask()).digest())
    return whole.hexdigest()


def read_pixels(pictures: Pictures, each: Pass, seed: int, flip: bool) -> Tensor:
    """Read the pictures of a pass.

    Args:
        pictures: the samples of the run.
        each: the pass.
        seed: the run's seed.
        flip: mirror each picture with probability 1/2.

    Returns:
        (b, 3, height, width) in [-1, 1].
    """
    generators = [stream_generator(seed, Stream.FLIP, each.step, position) for position in each.positions]
    mirrored = [flip and float(torch.rand((), generator=generator)) < 0.5 for generator in generators]
    return torch.stack([pictures.pixels(s, m) for s, m in zip(each.samples, mirrored, strict=True)])
