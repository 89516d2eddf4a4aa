"""What a prepared pipeline is given of the prompts of recipes: the words themselves, or what `sd_ext.prompts` makes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..prompts.parser import Run, parse, unread
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def spoken(recipe: Recipe) -> list[str]:
    """The words of a recipe's prompt and negative prompt, without brackets and weights."""
    texts = [recipe.prompt, recipe.negative]
    if recipe.plain_prompt:
        return texts
    return [" ".join(run.text for section in parse(text) for run in section) for text in texts]


def look_at_prompt(pipe: DiffusionPipeline, recipe: Recipe, tell: Callable[[str], object]) -> None:
    """Say what of a recipe's prompts the prepared pipeline does not see.

    Raises `InputError` for a clip skip that it cannot do, or a weight that is no number.
    """
    from ..prompts.encoders import find_encoders

    encoders, texts, name = find_encoders(pipe), [recipe.prompt, recipe.negative], type(pipe).__name__
    if recipe.clip_skip != 1:
        if not encoders:
            raise InputError(f"--clip-skip {recipe.clip_skip}: {name} does not read prompts with CLIP alone")
        if encoders[-1].part == "text_encoder_2":
            tell("Stable Diffusion XL always reads the last layer but one; --clip-skip changes nothing.")
        elif recipe.clip_skip > encoders[0].layers:
            raise InputError(f"--clip-skip {recipe.clip_skip} cannot work; this model has 1 to {encoders[0].layers}")
    if encoders and not recipe.plain_prompt:
        for sentence in dict.fromkeys(sentence for text in texts for sentence in unread(text)):
            tell(sentence)
        return
    for text in texts:
        if not recipe.plain_prompt and parse(text) not in ([[Run(text, 1.0)]], [[]]):
            tell(f"{name} reads prompts as they are, brackets too: {text}")
        if is_cut(pipe, text):
            tell(f"The end of this prompt is too long for the model and is cut: {text}")


def is_cut(pipe: DiffusionPipeline, prompt: str) -> bool:
    """Whether a prompt is too long for a pipeline that is given its words, so that only its beginning is seen.

    Always False for pipelines without a tokenizer, and for those whose several tokenizers differ.
    """
    from ..prompts.encoders import find_encoders

    tokenizer = next((each.tokenizer for each in find_encoders(pipe)), None)
    if tokenizer is None and getattr(pipe, "tokenizer_2", None) is None:
        tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return False
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > tokenizer.model_max_length


def company(pipe: DiffusionPipeline, recipe: Recipe) -> Hashable:
    """Which recipes may share a batch as far as their prompts go: those that are read in one way and equally long.

    Returns:
        A number of chunks; 0 where the pipeline is given the words themselves.
    """
    from ..prompts.encode import read_prompt
    from ..prompts.encoders import find_encoders

    encoders = find_encoders(pipe)
    if not encoders:
        return 0
    readings = [read_prompt(pipe, text, recipe.plain_prompt) for text in (recipe.prompt, recipe.negative)]
    skips = recipe.clip_skip != 1 and encoders[-1].part != "text_encoder_2"
    # The pipeline cuts plain prompts itself, just as they would be cut here.
    alike = all(reading.as_it_is or (recipe.plain_prompt and not reading.learned) for reading in readings)
    return 0 if alike and not skips else max(reading.count for reading in readings)


def prompt_arguments(pipe: DiffusionPipeline, recipes: Sequence[Recipe]) -> dict[str, Any]:
    """The arguments of the pipeline's call that say what to draw.

    Args:
        pipe: the pipeline.
        recipes: a batch, whose `company` is the same.
    """
    prompts, first = [recipe.prompt for recipe in recipes], recipes[0]
    negatives = [recipe.negative for recipe in recipes] if first.negative else None
    if company(pipe, first) == 0:
        return {"prompt": prompts, "negative_prompt": negatives}
    from ..prompts.encode import encode, read_prompt

    readings = [read_prompt(pipe, text, first.plain_prompt) for text in prompts]
    against = [read_prompt(pipe, recipe.negative, first.plain_prompt) for recipe in recipes]
    zeros = not first.negative and bool(getattr(pipe.config, "force_zeros_for_empty_prompt", False))
    return encode(pipe, readings, against, [zeros] * len(recipes), first.clip_skip)
