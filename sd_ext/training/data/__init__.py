"""Captioned pictures: where they come from, their sizes, their captions, and which of them a step sees."""

from sd_ext.training.data.pictures import (
    BatchOrder,
    Pictures,
    load_picture,
    picture_batches,
    random,
    read_metadata,
)

__all__ = ["BatchOrder", "Pictures", "load_picture", "picture_batches", "random", "read_metadata"]
