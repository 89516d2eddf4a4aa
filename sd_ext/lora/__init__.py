"""LoRA files: reading and writing every format, applying, merging, extracting and resizing."""

from .adapter import Adapter, ModuleName
from .formats.reading import read_lora
from .from_peft import from_peft
from .fuse import Applied, apply, merge_into
from .lora import Lora
from .tools import extract, merge, resize

__all__ = [
    "Adapter",
    "Applied",
    "Lora",
    "ModuleName",
    "apply",
    "extract",
    "from_peft",
    "merge",
    "merge_into",
    "read_lora",
    "resize",
]
