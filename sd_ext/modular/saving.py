"""Blocks and pipelines as folders that Diffusers loads by itself, with `trust_remote_code=True`.

Such a folder has the settings of the blocks, and a file of code that they are imported from. Ours says where the blocks
are, `from sd_ext.modular import ...`, and the settings say that this package is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from .. import __version__, whole
from ..errors import InputError
from ..reading import read_json

HOME = "sd_ext.modular"


class Saved:
    """Mixin for blocks of this package: `save_pretrained` writes the file of code too."""

    _requirements: ClassVar[dict[str, str]] = {"sd_ext": f">={__version__}"}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(f"{HOME}."):
            cls.__module__ = HOME  # which the settings name, so that files here may be moved

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the settings and the file of code; Diffusers' `save_pretrained` calls this, and `from_pretrained` finds
        the blocks by the class that defines that."""
        super().save_config(str(save_directory), push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]
        if type(self).__module__ == HOME:
            name = type(self).__name__
            code = f'"""Blocks of sd_ext, which has to be installed."""\n\nfrom {HOME} import {name} as {name}\n'
            whole.write_text(Path(save_directory) / "modular.py", code)


def save(pipe: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a Modular pipeline, its components and its blocks.

        sd_ext.modular.save(pipe, "folder")
        pipe = ModularPipeline.from_pretrained("folder", trust_remote_code=True)
        pipe.load_components()

    Args:
        pipe: a Modular pipeline with blocks of this package.
        folder: where to; it must not exist, or be empty.
        overwrite: replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: something else than such a pipeline.
    """
    blocks = getattr(pipe, "blocks", None)
    if not isinstance(blocks, Saved):
        raise InputError(
            f"save: {type(pipe).__name__} has no blocks of sd_ext.modular; its own save_pretrained is for it"
        )
    with whole.folder(folder, overwrite) as new:
        pipe.save_pretrained(str(new), overwrite_modular_index=True)
        blocks.save_pretrained(new)
        index = new / "modular_model_index.json"
        found = read_json(index, dict[str, Any], finite=False)
        for entry in found.values():
            if isinstance(entry, list) and isinstance(entry[-1], dict):
                spec = entry[-1]
                if spec.get("pretrained_model_name_or_path") == str(new):
                    spec["pretrained_model_name_or_path"] = str(folder)
        whole.write_json(index, found, indent=2)
    return Path(folder)
