"""What a U-Net is given of a prompt: every chunk read by the text encoders, weighted, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .chunks import Chunk, Unit, cut
from .encoders import TextEncoder, arguments_of, encoders_of
from .parser import Run, parse, unread
from .words import Spot, in_place, words_of

NO_MEAN = 1e-5
"""A mean below this part of the mean absolute value is taken for rounding."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """A prompt as the text encoders of a pipeline will read it.

    Args:
        chunks: for each encoder.
        as_it_is: the encoders would read the very same tokens if they were given the text: nothing in it is weighted,
            escaped, learned or too long.
        learned: a learned word is in it.
    """

    chunks: list[list[Chunk]]
    as_it_is: bool
    learned: bool

    @property
    def count(self) -> int:
        """How many chunks there are, for the encoder that has most."""
        return max(map(len, self.chunks))


def encode_prompt(
    pipe: Any,
    prompt: str | Sequence[str],
    negative: str | Sequence[str] | None = None,
    *,
    clip_skip: int = 1,
    plain: bool = False,
) -> dict[str, Tensor]:
    """Encode prompts with AUTOMATIC1111's meaning: `pipe(**encode_prompt(pipe, "a (red:1.3) apple"))`.

    Chunks of 75 tokens are read one by one and put one after the other; the shorter prompts are filled up with empty
    chunks. The states of weighted tokens are multiplied by their weights, then all of the chunk by one number that
    restores its mean. Of the two encoders of SDXL each is weighted by itself, and the pooled output is that of the
    first chunk, unweighted. What A1111 would do and this does not (`<lora:…>`, prompts that change between steps,
    `AND`) is logged as a warning. The grammar is described in docs/prompts.md.

    Args:
        pipe: a pipeline of Stable Diffusion 1.x, 2.x or XL.
        prompt: one, or several for a batch.
        negative: one, or one for each prompt. None is the empty prompt or, where the pipeline says so (SDXL), zeros.
        clip_skip: how many of the layers count from the end: 1 is all, 2 without the last one, with the final norm, as
            in A1111 (Diffusers' `clip_skip` is one less). SDXL always reads the last but one, and ignores this.
        plain: brackets and BREAK are ordinary text, and what does not fit the encoder is cut, as Diffusers does.

    Returns:
        `prompt_embeds` and `negative_prompt_embeds`, (prompts, tokens, width), and for SDXL `pooled_prompt_embeds` and
        `negative_pooled_prompt_embeds`, (prompts, width), for the pipeline's call.

    Raises:
        InputError: another kind of pipeline, as many negative prompts as do not fit, a `clip_skip` the encoder does not
            have, or weights that leave no finite numbers.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = [negative] * len(prompts) if negative is None or isinstance(negative, str) else list(negative)
    if not prompts or len(negatives) != len(prompts):
        raise InputError(f"{len(prompts)} prompts and {len(negatives)} negative ones; give one for each")
    if not plain:
        for sentence in dict.fromkeys(chain.from_iterable(map(unread, [*prompts, *filter(None, negatives)]))):
            log.warning("%s", sentence)
    readings = [read_prompt(pipe, text, plain) for text in prompts]
    against = [read_prompt(pipe, text or "", plain) for text in negatives]
    nothing = [text is None and bool(getattr(pipe.config, "force_zeros_for_empty_prompt", False)) for text in negatives]
    return encode(pipe, readings, against, nothing, clip_skip)


def read_prompt(pipe: Any, text: str, plain: bool = False) -> Reading:
    """Parse a prompt and cut it into chunks. For arguments and errors see `encode_prompt`."""
    sections = [[Run(text, 1.0)]] if plain else parse(text)
    encoders = encoders_of(pipe)
    chunks = [_chunks(pipe, encoder, sections, plain) for encoder in encoders]
    learned = any(isinstance(token, Spot) for each in chain.from_iterable(chunks) for token in each.tokens)
    alone = not text or sections == [[Run(text, 1.0)]]
    return Reading(chunks, alone and not learned and all(len(each) == 1 for each in chunks), learned)


def _chunks(pipe: Any, encoder: TextEncoder, sections: list[list[Run]], plain: bool) -> list[Chunk]:
    known = sorted(
        ((encoder.tokens_of(word), word, len(vectors)) for word, vectors in words_of(encoder).items()),
        key=lambda entry: -len(entry[0]),
    )
    units = [
        [(unit, run.weight) for run in section for unit in _units(_tokens(pipe, encoder, run.text), known)]
        for section in sections
    ]
    # Text that is cut has no commas to be cut at.
    made = cut(units, encoder.length, None if plain else encoder.comma)
    return made[:1] if plain else made


def _tokens(pipe: Any, encoder: TextEncoder, text: str) -> list[int]:
    # Words that Diffusers' own loader has added are spelled out, one token for each vector, as its pipelines do.
    convert = getattr(pipe, "maybe_convert_prompt", None)
    return encoder.tokens_of(convert(text, encoder.tokenizer) if convert else text)


def _units(tokens: list[int], known: Sequence[tuple[list[int], str, int]]) -> list[Unit]:
    """Tokens as units; where a learned word's tokens stand, the spots of its vectors, longest words first."""
    units: list[Unit] = []
    place = 0
    while place < len(tokens):
        found = next((each for each in known if tokens[place : place + len(each[0])] == each[0]), None)
        units.append([Spot(found[1], i) for i in range(found[2])] if found else [tokens[place]])
        place += len(found[0]) if found else 1
    return units


def encode(
    pipe: Any, readings: Sequence[Reading], against: Sequence[Reading], nothing: Sequence[bool], clip_skip: int = 1
) -> dict[str, Tensor]:
    """Encode prompts that have been read; see `encode_prompt`.

    Args:
        pipe: the pipeline.
        readings: the prompts.
        against: the negative prompts.
        nothing: whether a negative prompt is given as zeros.
        clip_skip: see `encode_prompt`.
    """
    encoders = encoders_of(pipe)
    count = max(reading.count for reading in (*readings, *against))
    done: dict[Any, tuple[Tensor, Tensor | None]] = {}  # by what is read: an empty chunk is read once

    def stack(some: Sequence[Reading]) -> tuple[Tensor, Tensor | None]:
        made = [_encode_one(encoders, reading, count, clip_skip, done) for reading in some]
        pooled = [each for _, each in made if each is not None]
        return torch.cat([states for states, _ in made]), torch.cat(pooled) if pooled else None

    with torch.no_grad():
        states, pooled = stack(readings)
        negative, negative_pooled = stack(against)
        given = torch.tensor([not each for each in nothing], device=negative.device)
        negative = torch.where(given[:, None, None], negative, torch.zeros_like(negative))
    arguments = {"prompt_embeds": states, "negative_prompt_embeds": negative}
    if pooled is not None and negative_pooled is not None:
        arguments["pooled_prompt_embeds"] = pooled
        zeros = torch.zeros_like(negative_pooled)
        arguments["negative_pooled_prompt_embeds"] = torch.where(given[:, None], negative_pooled, zeros)
    if not all(tensor.isfinite().all() for tensor in arguments.values()):
        raise InputError("the weights of a prompt leave no finite numbers; choose weights nearer to 1")
    accepted = arguments_of(pipe)  # some pipelines, such as LCM's, have no negative prompts
    return {name: value for name, value in arguments.items() if name in accepted}


def _encode_one(
    encoders: Sequence[TextEncoder], reading: Reading, count: int, clip_skip: int, done: dict[Any, Any]
) -> tuple[Tensor, Tensor | None]:
    """The states (1, tokens, width) of one prompt with `count` chunks, and the pooled output (1, width) of the first.

    Every chunk is read alone, so that what it becomes does not depend on what else is read.
    """
    wide, pooled, two = [], None, encoders[-1].part == "text_encoder_2"
    for number, (encoder, chunks) in enumerate(zip(encoders, reading.chunks, strict=True)):
        padded, states = [*chunks, *[Chunk()] * (count - len(chunks))], []
        for chunk in padded:
            key = number, tuple(chunk.tokens)
            if key not in done:
                done[key] = _read(encoder, chunk.tokens, clip_skip, two)
            states.append(weighted(done[key][0], chunk.weights) if chunk.weighted else done[key][0])
        wide.append(torch.cat(states, dim=1))
        pooled = done[number, tuple(padded[0].tokens)][1]
    return torch.cat(wide, dim=-1), pooled


def _read(encoder: TextEncoder, tokens: Sequence[Any], clip_skip: int, two: bool) -> tuple[Tensor, Tensor | None]:
    """What an encoder makes of one chunk: its states (1, tokens, width) and, in SDXL, the pooled output (1, width)."""
    model, tokenizer = encoder.model, encoder.tokenizer
    if not two and not 1 <= clip_skip <= encoder.layers:
        raise InputError(f"clip skip {clip_skip} cannot work; this text encoder has layers for 1 to {encoder.layers}")
    filler = encoder.comma if encoder.comma is not None else tokenizer.bos_token_id  # where a vector takes its place
    row = [tokenizer.bos_token_id, *(filler if isinstance(token, Spot) else token for token in tokens)]
    row.append(tokenizer.eos_token_id)
    read = len(row)
    row += [tokenizer.pad_token_id] * (encoder.rows - read)
    device = torch.device("cpu") if model.device.type == "meta" else model.device  # meta: weights come when needed
    mask = None
    if getattr(model.config, "use_attention_mask", False) and not two:
        mask = torch.tensor([[1] * read + [0] * (encoder.rows - read)], device=device)
    with in_place(model, [[None, *tokens]], words_of(encoder)):
        if clip_skip == 1 and not two:
            return model(torch.tensor([row], device=device), attention_mask=mask)[0].to(model.dtype), None
        made = model(torch.tensor([row], device=device), attention_mask=mask, output_hidden_states=True)
    if two:
        return made.hidden_states[-2].to(model.dtype), made[0] if made[0].ndim == 2 else None
    return encoder.final_norm(made.hidden_states[-clip_skip]).to(model.dtype), None


def weighted(states: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiply the states of tokens by their weights, then all by one number that restores their mean.

    A mean that is no more than rounding, as after a norm that was never trained, cannot be restored and is let go.

    Args:
        states: (1, tokens, width), of one chunk.
        weights: of the tokens after the first, which begins the chunk; those after the last weight have weight 1.

    Returns:
        The same shape and dtype; computed in float32.
    """
    row = [1.0, *weights] + [1.0] * (states.shape[1] - 1 - len(weights))
    full = states.float()
    made = full * torch.tensor(row, device=states.device)[None, :, None]
    if full.mean().abs() > NO_MEAN * full.abs().mean():
        made = made * (full.mean() / made.mean())
    return made.to(states.dtype)
