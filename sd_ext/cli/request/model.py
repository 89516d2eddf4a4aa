"""With which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...lora.blocks import check_blocks
from ...models import EMBEDDED
from .. import checks
from .option import Group, Option


@dataclass(frozen=True, kw_only=True)
class Weights(Group):
    """With which weights."""

    title: ClassVar[str] = "Model"

    model: Annotated[
        str,
        Option("Pipeline folder, .safetensors file or Hub id.", "PATH_OR_ID", "the embedded model", path=True),
    ] = EMBEDDED
    revision: Annotated[str | None, Option("Branch, tag or commit of a Hub id.", "NAME", "main")] = None
    variant: Annotated[
        str | None, Option("Which weight files to read, such as fp16.", "NAME", "plain ones, else the only")
    ] = None
    prediction_type: Annotated[
        str | None,
        Option("What a single file predicts.", "TYPE", "found out and said", values=("epsilon", "v_prediction")),
    ] = None
    unet: Annotated[
        str | None,
        Option(
            "exact, balanced, fast; cached, highres: how much exactness to give for speed.",
            "NAME",
            "the model's own",
            values=("exact", "balanced", "fast", "cached", "highres"),
        ),
    ] = None
    unet_option: Annotated[
        tuple[str, ...],
        Option("Set one option of the U-Net (see sd-ext unets), such as pag_scale=3; repeat for more.", "NAME=VALUE"),
    ] = ()
    lora: Annotated[
        tuple[str, ...],
        Option("Add a LoRA, at strength S, in text encoders T; repeat for more.", "FILE_OR_ID[:S[:T]]"),
    ] = ()
    lora_blocks: Annotated[
        tuple[str, ...],
        Option(
            "A LoRA's strength by block (docs/lora.md): 12 to 26 numbers with commas, or a name such as OUTD; once for "
            "all LoRAs, or once for each.",
            "WEIGHTS",
        ),
    ] = ()
    embedding: Annotated[
        tuple[str, ...], Option("A word of a textual inversion file; repeat for more.", "FILE[:WORD]")
    ] = ()
    vae: Annotated[str | None, Option("Another autoencoder.", "FOLDER_OR_FILE", "the model's own", path=True)] = None

    def check(self) -> None:
        """Raise `InputError` for what can be known to be wrong before anything is loaded."""
        for text in self.unet_option:
            checks.split_option(text)
        for text in self.lora_blocks:
            check_blocks(text)
