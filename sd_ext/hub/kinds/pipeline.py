"""A pipeline's folder: every part by a whitelist, with what only this package can load replaced by what anybody can."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import whole
from ...errors import InputError
from ...model_configs import parts_in, read_index
from ..card import literal
from ..content import Content, plain_source
from .card import base_of, licence_lines, licence_of, python, write_card
from .sampler import sampler_class
from .tree import check_weights, copy_part, may_go, others
from .unet import OWN, PLAIN

INDEX, WORDS = "model_index.json", "words.json"
OURS = "sd_ext"
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "stable_diffusion_xl", OURS)
WITHOUT_WEIGHTS = ("tokenizer", "scheduler", "feature_extractor", "image_processor")
STRANGER = """
from diffusers import DiffusionPipeline
options = {{"local_files_only": True, "use_safetensors": True, "trust_remote_code": {own}}}
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], **options)
if getattr(pipe, "scheduler", None) is not None:
    if {attach}:
        pipe.scheduler.attach(pipe)
    pipe.scheduler.set_timesteps(4)
"""


def pipeline(
    source: Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    licence_link: str | None = None,
    online: bool = False,
) -> Content:
    """What is published of a pipeline.

    A sampler of this package goes as tables with the file that runs them, a U-Net of this package as Diffusers' own,
    whose config keeps the options: so it loads with and without sd_ext.

    Args:
        source: its folder, with model_index.json.
        repo_id: `owner/name`.
        base_model: the model on the Hub that it was made from, if any.
        licence, licence_link: see `licence_of`.
        online: whether the base model's card may be read from the Hub.

    Raises:
        InputError: it is no pipeline's folder, a part is missing, is a pickle or of another library, or no licence is
            known.
    """
    base = base_of(base_model, online)
    if not (source / INDEX).is_file():
        raise InputError(f"{source} holds no {INDEX}; give the folder of a pipeline, as save_pretrained writes it")
    index = read_index(source)
    for part in parts_in(index):
        _check_part(source, part, index[part])
    entries = licence_of(licence, licence_link, base, "a pipeline")
    ours = index.get("scheduler", [None])[0] == OURS
    attach = ours and _weighs_halves(index["scheduler"][1], source / "scheduler")

    def write(new: Path) -> set[str]:
        made = dict(index)
        names = {INDEX}
        for part in parts_in(index):
            names |= {f"{part}/{name}" for name in _copied(source, new, part, made)}
        whole.write_json(new / INDEX, {k: v for k, v in made.items() if k != "_name_or_path"}, indent=2)
        if (source / WORDS).exists():
            shutil.copyfile(plain_source(source / WORDS), new / WORDS)
            names.add(WORDS)
        return {*names, write_card(new, repo_id.partition("/")[2], metadata, body)}

    metadata = {
        "base_model": base_model, **entries, "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", *(["stable-diffusion"] if "unet" in index else []), "sd_ext"],
    }  # fmt: skip
    body = [*_body(repo_id, index, ours, attach), *licence_lines(entries, base, licence is not None)]
    inside = ((part, path.name) for part in parts_in(index) for path in (source / part).iterdir())
    taken = {INDEX, WORDS, *(f"{part}/{name}" for part, name in inside if may_go(name))}
    stranger = STRANGER.format(own=ours, attach=attach)
    return Content("Pipeline and card", write, [repo_id, base_model or ""], stranger=stranger,
                   left_out=others(source, taken))  # fmt: skip


def _check_part(source: Path, part: str, told: Any) -> None:
    """Raise `InputError` unless strangers can have this part."""
    folder, library = source / part, told[0]
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{source} has no folder {part} (or a link), which its {INDEX} names")
    if library not in LIBRARIES:
        raise InputError(
            f"{part} is of {library!r}: code of others is not published here; save it with Diffusers' class"
        )
    if not part.startswith(WITHOUT_WEIGHTS):
        check_weights(folder, part)


def _copied(source: Path, new: Path, part: str, index: dict[str, Any]) -> set[str]:
    """Copy a part, and set its entry of the index to a class that strangers have."""
    library, name = index[part]
    if library == OURS and part == "scheduler":
        sampler_class(name, source / part).from_pretrained(source / part).export(new / part)
        index[part] = ["exported_scheduler", "ExportedScheduler"]
        return {"scheduler_config.json", "exported_scheduler.py"}
    names = set(copy_part(source / part, new / part))
    if library == OURS:
        if name not in OWN:
            raise InputError(f"{part} is a {name} of sd_ext, which nobody else could load")
        index[part] = ["diffusers", PLAIN]
    return names


def _weighs_halves(name: str, folder: Path) -> bool:
    """Whether a sampler of this package weighs one half of guidance by itself, which the U-Net then has to leave it."""
    return sampler_class(name, folder).from_pretrained(folder).needs_halves


def _body(repo_id: str, index: Mapping[str, Any], ours: bool, attach: bool) -> list[str]:
    """The card's text."""
    trust = ", trust_remote_code=True" if ours else ""
    code = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({literal(repo_id)}{trust})",
        *(["pipe.scheduler.attach(pipe)  # it weighs the halves of guidance by itself"] if attach else []),
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
        'pipe("a picture").images[0].save("picture.png")',
    ]
    lines = [f"A `{index.get('_class_name')}`.", *python(code)]
    if ours:
        lines += ["`scheduler/exported_scheduler.py` runs the sampler's tables; look at it before you trust it.", ""]
    if index.get("unet", [""])[0] == OURS:
        variant = f'sd_ext.VariantUNet2DConditionModel.from_pretrained({literal(repo_id)}, subfolder="unet")'
        lines += ["The U-Net has options that sd_ext knows:", *python(["import sd_ext", "", f"pipe.unet = {variant}"])]
    return lines
