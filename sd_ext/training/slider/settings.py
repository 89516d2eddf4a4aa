"""Settings of slider LoRAs."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.errors import InputError
from sd_ext.training.settings.setting import POSITIVE, Settings, contradiction, setting


@dataclass(frozen=True)
class SliderSettings(Settings):
    """The two ends of the slider. In its texts, {} is the caption of the picture at hand."""

    positive: str = setting("", "text at the end that more of the slider leads to, e.g. '{}, very old'", "TEXT")
    negative: str = setting("", "text at the other end, e.g. '{}, very young'; none: the empty text", "TEXT")
    concept: str = setting("{}", "text whose pictures the slider changes", "TEXT")
    preserve: tuple[str, ...] = setting(
        (), "what the slider must not change, said at both ends in turn, e.g. male person,female person", "TEXT,..."
    )
    push: float = setting(
        3.0, "how far strength 1 goes, as a guidance scale from one end to the other", within=POSITIVE
    )
    less_data: str = setting(
        "", "in place of texts: pictures of the other end, of the same names as those of data", "DATA", free=True
    )
    shown: tuple[float, ...] = setting((-2.0, -1.0, 1.0, 2.0), "strengths of the previews", "S,S,...", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = {"positive": self.positive, "negative": self.negative, "preserve": self.preserve}
        texts["concept"] = self.concept != "{}"
        if self.less_data and any(texts.values()):
            given = ", ".join(name for name, text in texts.items() if text)
            raise contradiction(f"the ends are pictures (less_data) or texts; leave out one of less_data and {given}")
        if self.negative == self.positive and self.positive:
            raise contradiction("positive and negative are the same text")

    @property
    def ends(self) -> str:
        """What the ends are: "texts" or "pictures".

        Raises:
            InputError: neither is given.
        """
        if self.positive or self.less_data:
            return "texts" if self.positive else "pictures"
        raise InputError(
            "a slider has two ends: give two texts (positive, and perhaps negative), or pairs of pictures (less_data)"
        )
