"""Write the model card of a LoRA: the template `card_lora.md`, filled in, and the metadata for the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import FAMILIES
from .base import Base
from .finished import CURVE, DIFFUSERS_FILE, SHEET, FinishedRun
from .leaks import shown

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent / "card_lora.md"
TAGS = ("text-to-image", "lora", "diffusers", "diffusers-training", "stable-diffusion", "template:diffusion-lora")
BASE_LINES = {"embedded": "base = sd_ext.pretrained_path()", "local": 'base = "..."  # the folder of the base model'}
# Settings that describe the trainer's machine, not the training. Values with a slash are left out under any name.
PLACES = {"base_model", "cache", "data", "dataset", "folder", "out", "output", "path", "resume", "validation_data"}
PLACE_ENDINGS = ("_dir", "_file", "_folder", "_path", "_repo")


def make_card(run: FinishedRun, base: Base, repo_id: str) -> ModelCard:
    """Write the model card of a finished run. It is meant for readers who have never seen sd_ext.

    Args:
        run: the run.
        base: its base model.
        repo_id: `owner/name` of the repository that the card is for; used in its example code.
    """
    from huggingface_hub import ModelCard

    return ModelCard.from_template(
        card_data(run, base),
        template_path=str(TEMPLATE),
        run=run,
        base=base,
        base_link=base_link(base),
        unlinked=_unlinked(base),
        family=FAMILIES[run.family],
        diffusers_file=DIFFUSERS_FILE if run.in_diffusers else "",
        example=example(run, base, repo_id),
        single_word=len(run.tokens) == 1 and len(run.embeddings) == 1,
        samples=_samples(run),
        sheet=SHEET if run.has(SHEET) else "",
        curve=CURVE if run.has(CURVE) else "",
        losses=_losses(run),
        settings=list(public_settings(run.settings)),
        licence=licence_text(base),
        words=[code_span(word) for word in run.tokens],
        cell=cell,
        code=code_span,
    )


def card_data(run: FinishedRun, base: Base) -> ModelCardData:
    """The metadata (YAML) at the top of the card. Unknown entries are left out."""
    from huggingface_hub import ModelCardData

    widget = [{"text": shown(s["prompt"]) or "-", "output": {"url": s["file"]}} for s in _samples(run)]
    return ModelCardData(
        base_model=base.hub_id,
        base_model_relation="adapter" if base.hub_id else None,
        instance_prompt=shown(run.instance_prompt) or None,
        license=base.licence.get("license"),
        license_name=base.licence.get("license_name"),
        license_link=base.licence.get("license_link"),
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS, *(["stable-diffusion-xl"] if run.family == "sdxl" else [])],
        widget=widget or None,
    )


def example(run: FinishedRun, base: Base, repo_id: str) -> str:
    """Python code that draws a picture with the LoRA.

    It runs as it stands, unless the base model is a folder on the publisher's machine, whose path the reader must fill
    in.

    Args:
        run: the run.
        base: its base model.
        repo_id: `owner/name` of the repository that holds the LoRA.
    """
    local = BASE_LINES["embedded" if base.embedded else "local"]
    body = [
        f"base = {literal(base.hub_id)}" if base.hub_id else local,
        'pipe = DiffusionPipeline.from_pretrained(base).to("cuda" if torch.cuda.is_available() else "cpu")',
        *_load_lora(run, repo_id),
        *_load_embeddings(run, repo_id),
        f"image = pipe({_call(run)}).images[0]",
    ]
    return "\n".join([*_imports(run, base), "", *body])


def _imports(run: FinishedRun, base: Base) -> Iterator[str]:
    if base.embedded:
        yield "import sd_ext"
    yield from ("import torch", "from diffusers import DiffusionPipeline")
    if run.embeddings or not run.in_diffusers:
        yield "from huggingface_hub import hf_hub_download"
    if run.embeddings:
        yield "from safetensors.torch import load_file"
    if not run.in_diffusers:
        yield "from sd_ext.lora import apply_lora, read_lora"


def _load_lora(run: FinishedRun, repo_id: str) -> Iterator[str]:
    if run.in_diffusers:
        yield f'pipe.load_lora_weights({literal(repo_id)}, weight_name="{DIFFUSERS_FILE}", adapter_name="lora")'
    else:
        yield f"lora = read_lora(hf_hub_download({literal(repo_id)}, {literal(run.kohya_file)}))"
        yield "apply_lora(pipe, lora, strength=1.0)"


def _load_embeddings(run: FinishedRun, repo_id: str) -> Iterator[str]:
    for suffix, name in zip(("", "_2"), run.embeddings, strict=False):
        yield f'for word, vectors in load_file(hf_hub_download({literal(repo_id)}, "{name}")).items():'
        yield (
            "    pipe.load_textual_inversion({word: vectors}, "
            f"text_encoder=pipe.text_encoder{suffix}, tokenizer=pipe.tokenizer{suffix})"
        )


def _call(run: FinishedRun) -> str:
    prompts = (*run.prompts, run.instance_prompt, " ".join(run.tokens))
    arguments = [literal(next(filter(None, prompts), "a picture"))]
    if run.guidance is not None:
        arguments.append(f"guidance_scale={run.guidance}")
    if run.seeds:
        arguments.append(f"generator=torch.manual_seed({run.seeds[0]})")
    return ", ".join(arguments)


def literal(text: str | None) -> str:
    """`text` as a double-quoted Python string without backticks, which could end the Markdown code block around it."""
    return shown(json.dumps(text, ensure_ascii=False)).replace("`", "\\x60")


def code_span(text: str) -> str:
    """`text` as inline Markdown code on one line; backticks in it are allowed."""
    text = shown(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def cell(value: Any) -> str:
    """`value` escaped for one cell of a Markdown table."""
    return re.sub(r"([\\|`*_<\[\]])", r"\\\1", shown(" ".join(str(value).split())))


def public_settings(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, value) of the settings to publish: those that are set and name no file or folder.

    Args:
        settings: the run's settings; nested tables are named `table.name`.
        prefix: what to put before each name.
    """
    for key, value in settings.items():
        if key in PLACES or key.endswith(PLACE_ENDINGS):
            continue
        if isinstance(value, dict):
            yield from public_settings(value, f"{prefix}{key}.")
        elif value not in (None, "", []) and not re.search(r"[/\\]", text := _text(value)):
            yield prefix + key, text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _samples(run: FinishedRun) -> list[dict[str, Any]]:
    def of(values: tuple, i: int) -> Any:
        return values[i] if i < len(values) else ""

    return [{"file": f, "prompt": of(run.prompts, i), "seed": of(run.seeds, i)} for i, f in enumerate(run.samples)]


def _losses(run: FinishedRun) -> str:
    """A sentence with the first, last and lowest validation loss; "" if there was no validation."""
    if not run.validation:
        return ""
    (first, before), (last, after) = run.validation[0], run.validation[-1]
    best, least = min(run.validation, key=lambda point: point[1])
    lowest = f"; the lowest, {least:.4g}, was at step {best}" if best not in (first, last) else ""
    return f"Validation loss: {before:.4g} at step {first}, {after:.4g} at step {last}{lowest}."


def base_link(base: Base) -> str:
    """The base model as a phrase for a sentence, with a link if it is on the Hub."""
    if base.hub_id:
        return f"[{base.hub_id}]({base.url})"
    return "the small model that comes with sd_ext" if base.embedded else "a base model that is not on the Hub"


def _unlinked(base: Base) -> str:
    reason = "comes with the Python package" if base.embedded else "was a folder on the trainer's machine"
    return f"The base model {reason}, so this card links to none."


def licence_text(base: Base) -> str:
    """The sentence on the licence: what the base model's card states, or why it is unknown."""
    if not base.licence:
        return (
            f"Not known: {base.why}, so this card states none. A LoRA is usually bound by the licence of the model it "
            "changes; look there before using or sharing it."
        )
    name = base.licence.get("license_name", base.licence["license"])
    named = f"[{name}]({link})" if (link := base.licence.get("license_link")) else f"`{name}`"
    return f"{named}, as the card of the base model states."
