"""Settings of the data: sources of pictures, their sizes, augmentation of captions, held-out pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd_ext.training.data.items import MAX_REPEATS
from sd_ext.training.settings.setting import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    RAISED,
    SHARE,
    Range,
    Settings,
    contradiction,
    setting,
)


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Where pictures come from."""

    data: str = setting(
        "",
        "captioned pictures: imagefolder, pictures with .txt, .tar shards, high-contrast (ours), or a Hub dataset",
        "DATA",
        free=True,
    )
    split: str = setting("train", "train on the pictures with this split in metadata.jsonl; 'all' for every picture")
    folder_repeats: bool = setting(
        False, "read folder names such as '10_sks cat' as kohya does: ten times an epoch, captions 'sks cat'"
    )
    flip: bool = setting(False, "mirror half of the pictures, drawn anew each time")


def sets_from(value: Any, where: str) -> Any:
    """The value of the setting `sets`, see `read_sets`."""
    from sd_ext.training.data.several import read_sets

    return read_sets(value, where)


@dataclass(frozen=True)
class SeveralSettings(SourceSettings):
    """Where pictures come from."""

    sets: tuple[Any, ...] = setting(
        (), "several data sets, in place of data: [[data]] tables here, or a file with them or kohya's [[datasets]]",
        "FILE.toml", free=True, tables="data", read=sets_from,
    )  # fmt: skip
    balance: bool = setting(False, "an epoch has as many samples of regularisation as others: the fewer are repeated")

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = {each.regularisation for each in self.sets}
        if self.balance and len(kinds) < 2:
            raise contradiction("balance is between data sets with and without regularisation = true; give both")
        if self.sets and self.data:
            raise contradiction("give data or several sets of it, not both")

    @property
    def named(self) -> str:
        """What the data is called in messages."""
        return self.data or ", ".join(map(str, self.sets))


@dataclass(frozen=True)
class SquareSettings(Settings):
    """Squares of one size."""

    resolution: int = setting(64, "pictures are resized and cropped to this", "PIXELS", within=AT_LEAST_1)


@dataclass(frozen=True)
class BucketSettings(Settings):
    """The sizes that pictures are brought to, and how often an epoch holds each."""

    resolution: tuple[int, ...] = setting(
        (64,), "pictures have about this side squared in area; several: each it is large enough for", "PIXELS,...",
        within=AT_LEAST_1,
    )  # fmt: skip
    buckets: bool = setting(False, "keep the pictures' proportions (else all are cut to squares)")
    bucket_step: int = setting(64, "sides of buckets are multiples of this", "PIXELS", within=AT_LEAST_1)
    bucket_ratio: float = setting(
        2.0, "buckets are at most so many times longer than wide", within=Range("1 or more", lambda ratio: ratio >= 1)
    )
    upscale: bool = setting(False, "enlarge pictures that are smaller than their bucket (else they get a smaller one)")
    crop: str = setting("center", "which part of a picture a bucket shows", choices=("center", "random"))
    min_size: int = setting(16, "pictures whose shorter side is below this are left out", "PIXELS", within=AT_LEAST_1)
    epochs: int = setting(
        0, "passes over the data, in place of steps; 0 for steps", "N", in_place=RAISED, within=NOT_NEGATIVE
    )
    repeats: int = setting(
        1,
        "times an epoch holds each picture, beside what the data itself says",
        "N",
        within=Range(f"from 1 to {MAX_REPEATS}", lambda repeats: 1 <= repeats <= MAX_REPEATS),
    )

    def __post_init__(self) -> None:
        if isinstance(self.resolution, int):
            object.__setattr__(self, "resolution", (self.resolution,))
        super().__post_init__()


@dataclass(frozen=True)
class CaptionSettings(Settings):
    """What is said about a picture."""

    captionless: str = setting("skip", "what to do with pictures without caption", choices=("skip", "use"))
    instance_prompt: str = setting("", "caption of pictures that have none", "TEXT")
    prefix: str = setting("", "put before every caption", "TEXT")
    shuffle_tags: bool = setting(False, "shuffle the tags of a caption")
    tag_dropout: float = setting(0.0, "share of tags left out", within=SHARE)
    keep_tokens: int = setting(0, "leading tags that are neither shuffled nor left out", "N", within=NOT_NEGATIVE)
    tag_separator: str = setting(",", "what is between two tags", "TEXT")
    caption_variants: int = setting(
        8, "shuffled or shortened wordings of a caption in an epoch's choice", "N", within=AT_LEAST_1
    )
    clip_skip: int = setting(
        1, "read the text encoder's layer that is Nth from the end, as A1111", "N", within=AT_LEAST_1
    )
    caption_chunks: int = setting(
        1, "chunks that captions are read in, of 75 tokens each: 2 for 150, 3 for 225", "N", within=AT_LEAST_1
    )
    text_dropout: float = setting(
        0.1, "share of captions replaced by the empty one (classifier-free guidance)", within=SHARE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep_tokens or self.tag_separator != ",") and not (self.shuffle_tags or self.tag_dropout):
            raise contradiction("keep_tokens and tag_separator act only with shuffle_tags or tag_dropout")


@dataclass(frozen=True)
class HeldOutSettings(Settings):
    """Which pictures the model is validated on."""

    validation_data: str = setting("", "held-out pictures, as data", "DATA", free=True)
    validation_split: str = setting("", "or the pictures with this split", "NAME")
    validation_share: float = setting(
        0.0, "or this share of the pictures, which is then not trained on", within=BELOW_1
    )
    validation_times: int = setting(
        4, "timesteps (the same each time) the loss of each is measured at", "N", free=True, within=AT_LEAST_1
    )

    @property
    def any(self) -> bool:
        """Whether there are to be any."""
        return bool(self.validation_data or self.validation_split or self.validation_share)

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(map(bool, (self.validation_data, self.validation_split, self.validation_share))) > 1:
            raise contradiction("give one of validation_data, validation_split and validation_share")
