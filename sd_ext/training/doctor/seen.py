"""What is known of each picture that would be trained on: sizes, crops, repeats, wordings of its caption, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sd_ext.training.data.buckets import Size, cover
from sd_ext.training.data.look import Sample
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.doctor.tokens import Pieces


@dataclass(frozen=True)
class View:
    """A picture at one size.

    Args:
        sample: number of its first sample.
        size: height and width at which it is trained on, in pixels.
        scaled: height and width of the whole picture at that scale.
        crop: top and left of the crop in the scaled picture.
        times: how often an epoch holds it.
    """

    sample: int
    size: Size
    scaled: Size
    crop: tuple[int, int]
    times: int


@dataclass(frozen=True)
class Wording:
    """A text that a picture may be paired with.

    Args:
        text: the text.
        share: how often it is drawn, of all times that the text is not left out.
        pieces: its tokens; None where no model was named.
    """

    text: str
    share: float
    pieces: Pieces | None


@dataclass
class Seen:
    """A picture that would be trained on.

    Args:
        name: its path in the data.
        original: height and width of the upright picture, in pixels.
        views: it at each of its sizes.
        wordings: the texts it may be paired with.
        masked: whether it has a mask.
        weight: factor of its loss.
        flip: whether it is mirrored half of the times.
        notes: what is converted, guessed, cut or enlarged.
        twin: an earlier picture that it is nearly the same as, and how; "" for none.
        spread: the largest standard deviation in its latent; None if it was not measured.
    """

    name: str
    original: Size
    views: list[View]
    wordings: list[Wording]
    masked: bool
    weight: float
    flip: bool
    notes: list[str] = field(default_factory=list)
    twin: str = ""
    spread: float | None = None

    @property
    def times(self) -> int:
        """How often an epoch holds it, at any size."""
        return sum(view.times for view in self.views)

    @property
    def cut(self) -> bool:
        """Whether the end of any of its texts is cut off."""
        return any(wording.pieces and wording.pieces.cut for wording in self.wordings)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values; sizes and places are (height, width) and (top, left)."""
        return {
            "name": self.name,
            "original": list(self.original),
            "samples_an_epoch": self.times,
            "views": [
                {"size": list(v.size), "scaled": list(v.scaled), "crop": list(v.crop), "samples_an_epoch": v.times}
                for v in self.views
            ],
            "texts": [
                {
                    "text": w.text,
                    "share": round(w.share, 4),
                    **({"tokens": list(w.pieces.tokens), "read": w.pieces.kept} if w.pieces else {}),
                }
                for w in self.wordings
            ],
            "masked": self.masked,
            "weight": self.weight,
            "flip": self.flip,
            "notes": self.notes,
            "nearly_the_same": self.twin or None,
            "spread": self.spread,
        }


def seen_in(pictures: Pictures, choices: list[list[int]], texts: list[str], pieces: Mapping[str, Pieces]) -> list[Seen]:
    """List the pictures of a run, in the order of the data.

    Args:
        pictures: the samples.
        choices, texts: the texts of each sample, from `texts_of`.
        pieces: text -> its tokens; empty where no model was named.
    """
    times = Counter(sample.view for sample in pictures.samples)
    notes: dict[str, list[str]] = {}
    for name, note in dict.fromkeys(pictures.notes):
        notes.setdefault(name, []).append(note)
    found: dict[int, Seen] = {}
    last = -1
    for number, sample in enumerate(pictures.samples):
        if sample.view == last:  # another of its repeats
            continue
        last, item = sample.view, sample.item
        if id(item) not in found:
            drawn = Counter(choices[number])
            wordings = [Wording(texts[i], n / len(choices[number]), pieces.get(texts[i])) for i, n in drawn.items()]
            found[id(item)] = Seen(
                item.name,
                sample.original,
                [],
                wordings,
                sample.masked,
                sample.weight,
                item.flip,
                notes.get(item.name, []),
            )
        found[id(item)].views.append(view_of(number, sample, times[sample.view]))
    return list(found.values())


def view_of(number: int, sample: Sample, times: int) -> View:
    """A sample as a view; `number` is its index, `times` how often an epoch holds it."""
    return View(number, sample.size, cover(sample.original, sample.size), sample.crop, times)
