"""Write a single file as a pipeline folder, every tensor to the bit.

What a folder has no place for, such as the text encoder's last layer of Stable Diffusion 2.x, goes into a file beside
the parts, original_layout.safetensors, so that the way back (`to_file`) ends with the same tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .building import check_complete
from .checkpoint import Checkpoint
from .folder import INDEX
from .model import Change
from .original.tokenizer import tokenizer_files
from .weights import StoredTensor, read_tensors

EXTRAS = "original_layout.safetensors"
WEIGHTS = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}
TEXT_WEIGHTS = "model.safetensors"


def fill_folder(model: Checkpoint, new: Path, parts: Sequence[str], change: Change) -> None:
    """Fill an empty folder with a model from a single file.

    Args:
        model: the model. All of its parts must be there.
        new: the folder.
        parts: those that may change.
        change: see `Model.write_changed`; called once for every part that may change.

    Raises:
        ModelError: a part is missing or incomplete, or the file is damaged.
    """
    model.check()
    _write(new / INDEX, model.index)
    for part in model.parts:
        (new / part).mkdir()
        if part in model.tokenizers:
            for name, content in tokenizer_files(model.style(part)).items():
                _write(new / part / name, content)
        elif part == "scheduler":
            _write(new / part / "scheduler_config.json", model.config(part))
        else:
            if part not in model.others:
                check_complete(model, part, model.networks[part])
            _write(new / part / "config.json", model.config(part))
            _save(model.tensors(part), part, new / part, change if part in parts else None)
    if model.extras or model.metadata:
        from safetensors.torch import save_file

        save_file(dict(read_tensors(model.extras)), new / EXTRAS, dict(model.metadata))


def _save(stored: Mapping[str, StoredTensor], part: str, new: Path, change: Change | None) -> None:
    """Write a network's weights, those that `change` returns instead of the stored ones."""
    from safetensors.torch import save_file

    tensors = dict(read_tensors(stored))
    if change is not None:
        changed = change({(part, name): tensor for name, tensor in stored.items()})
        tensors |= {name: tensor for (_, name), tensor in changed.items()}
    save_file(tensors, new / WEIGHTS.get(part, TEXT_WEIGHTS), {"format": "pt"})


def _write(new: Path, content: Any) -> None:
    """Write a text, or any other object as JSON."""
    text = content if isinstance(content, str) else f"{json.dumps(content, indent=2)}\n"
    new.write_bytes(text.encode())
