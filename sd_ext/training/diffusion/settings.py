"""Settings of previews: the pictures that a model draws during its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sd_ext.training.diffusion.prompts import Prompt, read_prompts
from sd_ext.training.settings.setting import AT_LEAST_1, Settings, setting


@dataclass(frozen=True)
class Shot:
    """One preview, with everything it depends on beside the model.

    Args:
        prompt, negative: what it shows, and should not show.
        seed: of the noise.
        height, width: in pixels.
        guidance: the guidance scale.
        steps: network calls.
    """

    prompt: str
    negative: str
    seed: int
    height: int
    width: int
    guidance: float
    steps: int


@dataclass(frozen=True)
class PreviewSettings(Settings):
    """What is drawn, and how."""

    prompts: tuple[Any, ...] = setting(
        (), "of the previews: 'a fox --w 768 --h 512 --d 7 --l 7.5 --s 30 --n blurry', [[prompts]] tables, or a file; "
        "else the data's first captions", "TEXT,...", free=True, tables="prompts", read=read_prompts,
    )  # fmt: skip
    negative_prompt: str = setting("", "what the previews should not show", "TEXT", free=True)
    preview_guidance: float = setting(3.0, "guidance scale of the preview pictures", free=True)
    preview_steps: int = setting(20, "network calls of a preview", "N", free=True, within=AT_LEAST_1)
    preview_seed: int = setting(0, "seed of the first preview; the next have the next", free=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", read_prompts(tuple(self.prompts), "prompts"))
        super().__post_init__()

    def shot(self, prompt: Prompt, number: int, side: int, scale: int) -> Shot:
        """A preview.

        Args:
            prompt: the prompt; what it does not say is as in these settings.
            number: its place among the previews, from 0.
            side: height and width in pixels, if it has none of its own.
            scale: pixels per latent, to a multiple of which height and width are rounded down.
        """

        def told(name: str, usual: Any) -> Any:
            own = getattr(prompt, name)
            return usual if own is None else own

        height, width = (max(1, told(name, side) // scale) * scale for name in ("height", "width"))
        return Shot(
            prompt.prompt, told("negative_prompt", self.negative_prompt), told("seed", self.preview_seed + number),
            height, width, told("guidance", self.preview_guidance), told("steps", self.preview_steps),
        )  # fmt: skip

    def shots(self, texts: Sequence[str], side: int, scale: int) -> list[Shot]:
        """The previews of these settings, or where they name no prompts, of some texts; see `shot`."""
        return [
            self.shot(prompt, number, side, scale)
            for number, prompt in enumerate(self.prompts or [Prompt(text) for text in texts])
        ]
