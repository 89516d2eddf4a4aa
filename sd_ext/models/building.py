"""Build networks around the tensors of a single file, without a second copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..seams.transformers import without_prefix
from .model import Model
from .weights import read_tensors

if TYPE_CHECKING:
    import torch


def build(model: Model, kind: Any, part: str, dtype: torch.dtype | None, config: Mapping[str, Any]) -> Any:
    """Build a network of a single file, in evaluation mode.

    Args:
        model: the model.
        kind: the class to build.
        part: the network.
        dtype: of its weights; None leaves them as they are in the file.
        config: its config.

    Raises:
        ModelError: a tensor is missing, unknown or of an unusual shape, or the class refuses them.
    """
    import torch

    check_complete(model, part, config)
    tensors = dict(read_tensors(model.tensors(part), dtype))
    try:
        if is_text(part):
            settings = kind.config_class.from_dict(dict(config))
            return kind.from_pretrained(None, config=settings, state_dict=tensors, dtype=dtype).eval()
        with torch.device("meta"):
            made = kind.from_config(dict(config))
        made.load_state_dict(tensors, assign=True)
        return made.eval()
    except Exception as error:  # libraries raise all kinds of errors
        raise ModelError(f"{model.where(part)} does not load as {kind.__name__}: {error}") from error


def check_complete(model: Model, part: str, config: Mapping[str, Any]) -> None:
    """Check that a single file has every tensor of a network, in the right shape, and none too many.

    Raises:
        ModelError: one is missing, of another shape, or unknown; the first is named.
    """
    import torch

    with torch.device("meta"):
        meant = model.without_weights(part, config)
    bare = without_prefix if is_text(part) else str
    wanted = {bare(name): tuple(tensor.shape) for name, tensor in meant.state_dict().items()}
    there = {bare(name): tensor.shape for name, tensor in model.tensors(part).items()}
    wrong = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
    if wrong:
        name, more = wrong[0], f", and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        how = "lacks the" if name not in there else "has an unknown" if name not in wanted else "has an unusual"
        raise ModelError(f"{model.where(part)} {how} tensor {name}{more}; it is cut off or of another kind")


def is_text(part: str) -> bool:
    """Whether a part is a text encoder."""
    return part.startswith("text_encoder")
