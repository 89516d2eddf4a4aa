"""LoRA files: reading and writing every format, applying, merging, extracting and resizing.

A `Lora` holds data only: one `Adapter` for each module. Everything done with it is a function. Names are imported when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Adapter": "adapter",
    "Applied": "fuse",
    "Aside": "aside",
    "Combine": "combine",
    "Description": "description",
    "Keep": "low_rank",
    "Lora": "lora",
    "ModuleName": "adapter",
    "Strength": "strength",
    "Used": "use",
    "apply_lora": "fuse",
    "apply_loras": "fuse",
    "at_strength": "tools",
    "describe": "description",
    "extract": "extracting",
    "find_lora": "find",
    "from_peft": "peft_models",
    "merge": "tools",
    "merge_into": "fuse",
    "read_lora": "formats.reading",
    "resize": "tools",
    "save_lora": "formats.writing",
    "use_lora": "use",
    "with_one_alpha": "formats.kohya",
}

__all__ = [
    "Adapter",
    "Applied",
    "Aside",
    "Combine",
    "Description",
    "Keep",
    "Lora",
    "ModuleName",
    "Strength",
    "Used",
    "apply_lora",
    "apply_loras",
    "at_strength",
    "describe",
    "extract",
    "find_lora",
    "from_peft",
    "merge",
    "merge_into",
    "read_lora",
    "resize",
    "save_lora",
    "use_lora",
    "with_one_alpha",
]

if TYPE_CHECKING:
    from .adapter import Adapter, ModuleName
    from .aside import Aside
    from .combine import Combine
    from .description import Description, describe
    from .extracting import extract
    from .find import find_lora
    from .formats.kohya import with_one_alpha
    from .formats.reading import read_lora
    from .formats.writing import save_lora
    from .fuse import Applied, apply_lora, apply_loras, merge_into
    from .lora import Lora
    from .low_rank import Keep
    from .peft_models import from_peft
    from .strength import Strength
    from .tools import at_strength, merge, resize
    from .use import Used, use_lora


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sd_ext.lora' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
