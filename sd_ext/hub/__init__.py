"""Publish on the Hugging Face Hub: LoRAs, samplers, U-Nets, pipelines. Files and a card, nothing else."""

from __future__ import annotations

from .content import Content, stage_content
from .finished import FinishedRun, read_finished
from .publish import Published, publish, publish_content
from .stage import stage

__all__ = [
    "Content",
    "FinishedRun",
    "Published",
    "publish",
    "publish_content",
    "read_finished",
    "stage",
    "stage_content",
]
