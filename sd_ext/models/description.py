"""A `.safetensors` file in words: what it is, what it holds, what its maker says of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .checkpoint import COPIES, TITLES
from .header import NAMES, Header
from .original.told import CHECKPOINT, tell
from .single_file import SingleFile

SAID = "title", "author", "license", "architecture", "prediction_type", "resolution", "date", "trigger_phrase"
"""What modelspec headers say that is worth showing; see `original.prediction`."""
LONGEST = 200


def describe(path: Path) -> dict[str, str]:
    """What a `.safetensors` file is, as lines "name: text". Only its header is read, and torch is not imported.

    Args:
        path: any `.safetensors` file, not only a model.

    Raises:
        ModelError: it is no such file, or a checkpoint whose parts do not fit together.
    """
    told = tell(path)
    lines = {"what": told.title if not told.use else f"{told.title}; {told.use}"}
    if told.kind == CHECKPOINT:
        lines |= _of_checkpoint(SingleFile(path))
    lines["tensors"] = _counted(told.header)
    for name in SAID:
        if text := told.header.metadata.get(f"modelspec.{name}"):
            lines[name] = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return lines


def _of_checkpoint(model: SingleFile) -> dict[str, str]:
    """The lines of a checkpoint. What it predicts is said only if the file tells, since finding out loads the U-Net."""
    told = model.told_prediction
    copies = sum(name.startswith(COPIES) for name in model.entries)
    lines = {
        "family": f"{model.layout.title}, for {model.pipeline_class}",
        "parts": ", ".join(part for part in model.parts if part in model.networks),
        "missing": ", ".join(f"{TITLES[part][0]} ({part})" for part in model.missing),
        "predicts": told.text if told else "not said; what its U-Net makes of noise tells, when it is loaded",
        "copies": f"averaged ones ({COPIES}*, {copies} tensors), which are not used" if copies else "",
    }
    return {name: text for name, text in lines.items() if text}


def _counted(header: Header) -> str:
    kinds = Counter(NAMES.get(entry.dtype, entry.dtype) for entry in header.tensors.values())
    return ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
