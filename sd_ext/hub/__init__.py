"""Publish a finished LoRA run to the Hugging Face Hub: its files, its pictures and a model card, and nothing else."""

from __future__ import annotations

from .finished import FinishedRun, read_finished
from .publish import Published, publish
from .stage import stage

__all__ = ["FinishedRun", "Published", "publish", "read_finished", "stage"]
