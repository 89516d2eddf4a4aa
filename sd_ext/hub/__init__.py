"""Publishing to the Hugging Face Hub: what a finished LoRA run made, a card, and nothing else."""

from __future__ import annotations

from .finished import FinishedRun, read_finished
from .publish import Published, publish
from .stage import stage

__all__ = ["FinishedRun", "Published", "publish", "read_finished", "stage"]
