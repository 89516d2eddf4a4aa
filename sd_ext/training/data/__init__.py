"""Captioned pictures: where they come from, their sizes, their captions, and which of them a step sees."""

from sd_ext.training.data.ahead import read_ahead
from sd_ext.training.data.buckets import Buckets
from sd_ext.training.data.captions import CaptionTricks
from sd_ext.training.data.draws import random
from sd_ext.training.data.items import Item
from sd_ext.training.data.order import Pass, StepOrder
from sd_ext.training.data.pictures import Pictures, Sample
from sd_ext.training.data.sources import hold_out, read_items

__all__ = [
    "Buckets",
    "CaptionTricks",
    "Item",
    "Pass",
    "Pictures",
    "Sample",
    "StepOrder",
    "hold_out",
    "random",
    "read_ahead",
    "read_items",
]
