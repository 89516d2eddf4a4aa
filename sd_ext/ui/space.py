"""A folder that is a Hugging Face Space: the page, its requirements, and a README that tells the Hub what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import __version__, whole
from ..errors import InputError
from ..models import is_hub_id

PYTHON = "3.12"

APP = '''"""The page of sd_ext, as a Hugging Face Space."""

from sd_ext.ui import Served, serve

serve(
    Served(
        models={models!r},
        loras={loras!r},
        host="0.0.0.0",
        port=7860,
        shared=True,
    )
).wait()
'''

REQUIREMENTS = """--extra-index-url https://download.pytorch.org/whl/cpu
sd_ext[ui]=={version}
"""

README = """---
title: Draw with sd_ext
emoji: 🎨
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
license: apache-2.0
short_description: Samplers, grids and U-Nets side by side
{models}---

# Draw with sd_ext

Draw with any sampler, grid and U-Net of [sd_ext](https://pypi.org/project/sd_ext), compare two settings from one seed
or a whole grid of them, and take the code that draws a picture again.

{offered}

The requirements take PyTorch for a CPU, so that the Space builds in minutes. On a Space with a GPU, remove the first
line of `requirements.txt`.
"""


def write_space(folder: Path, models: Sequence[str] = (), loras: Sequence[str] = ()) -> list[Path]:
    """Write a Space.

    Args:
        folder: a new or empty one.
        models, loras: Hub ids. Without models, the one that comes with the package is offered.

    Returns:
        Its files.

    Raises:
        InputError: a model or LoRA is no Hub id, or Gradio is not installed.
        TakenError: something is in the folder.
    """
    for flag, sources, kind in (("--model", models, "pipeline"), ("--lora", loras, "lora")):
        for source in sources:
            if not is_hub_id(source) or Path(source).expanduser().exists():
                raise InputError(
                    f"{flag} {source}: a Space has no files of yours; publish it (sd-ext publish {kind}), and give its "
                    "Hub id"
                )
    files = {
        "app.py": APP.format(models=tuple(models), loras=tuple(loras)),
        "requirements.txt": REQUIREMENTS.format(version=__version__),
        "README.md": README.format(
            gradio=_gradio(), python=PYTHON, models=_listed(models), offered=_offered(models, loras)
        ),
    }
    with whole.folder(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in files]


def _gradio() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gradio")
    except PackageNotFoundError:
        missing = 'a Space names the version of Gradio, which is not installed; pip install "sd_ext[ui]"'
        raise InputError(missing) from None


def _listed(models: Sequence[str]) -> str:
    return "".join(["models:\n", *(f"- {model}\n" for model in models)]) if models else ""


def _offered(models: Sequence[str], loras: Sequence[str]) -> str:
    named = [f"[{each}](https://huggingface.co/{each})" for each in (*models, *loras)]
    own = "a small model of drawings that comes with the package"
    return f"It offers {', '.join([*named, own])}."
