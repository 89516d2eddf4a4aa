"""Words whose vectors come from a file (textual inversion). The tokenizer and the encoder's own table stay as they are.

The word is recognized in a prompt by its tokens, as it would be read without the file, and stands for as many tokens as
it has vectors, which take the place of the table's while the encoder reads them.

Forms of files that are read, safetensors alone:

    emb_params                AUTOMATIC1111's, SD 1.x and 2.x: (vectors, width)
    clip_l, clip_g            the same for SDXL's two encoders
    any other key             Diffusers': the key is the word; (width,) or (vectors, width)
    bundle_emb.WORD.…         in LoRA files: string_to_param.*, or clip_l and clip_g
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import InputError
from ..models import PICKLES, refuse_pickle
from ..reading import open_tensors
from .encoders import TextEncoder, encoders_of

BUNDLED = "bundle_emb."
_BY_FORM = {"emb_params": "", "string_to_param.*": "", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Key -> the part of a pipeline it is for; "" where the width tells."""


class Vectors(NamedTuple):
    """The vectors (number, width) of a word, and the part of a pipeline they are for ("" if the width tells)."""

    word: str
    part: str
    vectors: Tensor


class Spot(NamedTuple):
    """One token of a learned word: its vector is number `index` of the word's."""

    word: str
    index: int


_WORDS: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
"""Text encoder -> word -> its vectors."""


def words_of(encoder: TextEncoder) -> Mapping[str, Tensor]:
    """The learned words that a text encoder has now, with their vectors."""
    return _WORDS.get(encoder.model, {})


class Words:
    """Words that a pipeline has learned. `undo()`, or leaving a `with` block, makes it forget them.

    Attributes:
        words: the words as they are written in prompts.
    """

    def __init__(self, added: Sequence[tuple[TextEncoder, str]]):
        self._added = list(added)
        self.words = sorted({word for _, word in added})

    def undo(self) -> None:
        """Forget the words. Calling it again does nothing."""
        while self._added:
            encoder, word = self._added.pop()
            _WORDS[encoder.model].pop(word, None)

    def __enter__(self) -> Words:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def use_embedding(pipe: Any, file: str | Path, word: str | None = None) -> Words:
    """Teach a pipeline the word of a textual inversion file, for prompts that `encode_prompt` reads.

    Args:
        pipe: a pipeline of Stable Diffusion 1.x, 2.x or XL.
        file: a .safetensors file; see the module's list of forms.
        word: how the word is written in prompts; None is the word in the file or, if it has none, the file's name
            without its ending.

    Returns:
        An object whose `undo()` makes the pipeline forget the word.

    Raises:
        InputError: no such file, a pickle, not an embedding, several words in the file and `word` given, vectors of
            a width that no text encoder of the pipeline has, or a word that it has learned already.
    """
    return learn(pipe, read_embedding(file, word), str(file))


def read_embedding(file: str | Path, word: str | None = None) -> list[Vectors]:
    """Read a textual inversion file. For arguments and errors see `use_embedding`."""
    path = Path(file).expanduser()
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path)
    with open_tensors(path) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  it has no __iter__
    found = [
        Vectors(path.stem if key in _BY_FORM else key, _BY_FORM.get(key, ""), _checked(tensor, key, path))
        for key, tensor in tensors.items()
    ]
    names = {each.word for each in found}
    if not found:
        raise InputError(f"{path} holds no tensors; an embedding has its vectors there")
    if word is None:
        return found
    if len(names) > 1:
        raise InputError(f"{path} holds {len(names)} words ({', '.join(sorted(names)[:8])}); leave out :{word}")
    return [Vectors(word, each.part, each.vectors) for each in found]


def read_bundled(tensors: Mapping[str, Tensor], file: str) -> list[Vectors]:
    """The words in a LoRA file.

    Args:
        tensors: those whose keys begin with `bundle_emb.`.
        file: what the file is called, for messages.

    Raises:
        InputError: a key of another form, or a tensor that holds no vectors.
    """
    found = []
    for key, tensor in tensors.items():
        word, _, form = key.removeprefix(BUNDLED).partition(".")
        if form not in _BY_FORM:
            raise InputError(f"{file}: {key} is none of the forms {', '.join(_BY_FORM)}")
        found.append(Vectors(word, _BY_FORM[form], _checked(tensor, key, file)))
    return found


def _checked(tensor: Tensor, key: str, file: object) -> Tensor:
    """The vectors as (number, width), float32."""
    if not tensor.is_floating_point() or tensor.dim() not in (1, 2) or not tensor.numel():
        shape = tuple(tensor.shape)
        raise InputError(f"{file} is no embedding: {key} is {shape} of {tensor.dtype}, not (vectors, width)")
    vectors = tensor.float()  # of eight bits it cannot be told whether they are finite
    if not vectors.isfinite().all():
        raise InputError(f"{file}: {key} holds values that are not finite")
    return vectors.reshape(-1, vectors.shape[-1])


def learn(pipe: Any, found: Sequence[Vectors], file: str) -> Words:
    """Teach a pipeline words that have been read. For arguments and errors see `use_embedding`; all or none."""
    encoders, added = encoders_of(pipe), []
    words = Words([])
    try:
        for word, part, vectors in found:
            encoder = _meant(encoders, part, vectors, f"{file}: the word {word}")
            if not encoder.tokens_of(word):
                raise InputError(f"{file}: {word!r} cannot be read as a word; name another as FILE:WORD")
            known = _WORDS.setdefault(encoder.model, {})
            if word in known:
                raise InputError(f"{file}: the word {word} is there already; name another as FILE:WORD")
            known[word] = vectors
            words._added.append((encoder, word))
            added.append(word)
    except BaseException:
        words.undo()
        raise
    words.words = sorted(set(added))
    return words


def _meant(encoders: Sequence[TextEncoder], part: str, vectors: Tensor, what: str) -> TextEncoder:
    """The encoder that vectors are for."""
    width = vectors.shape[-1]
    fitting = [each for each in encoders if each.width == width and (not part or each.part == part)]
    if fitting:
        return fitting[0]
    have = ", ".join(f"{each.part} {each.width}" for each in encoders)
    raise InputError(f"{what} has vectors of width {width}{f' for {part}' if part else ''}; this model has {have}")


def half_known(pipe: Any) -> list[str]:
    """For each word that not all of a pipeline's encoders have vectors of, a sentence that says so."""
    encoders = encoders_of(pipe)
    every = sorted({word for encoder in encoders for word in words_of(encoder)})
    return [
        f"{encoder.part} has no vectors for {word} and reads its letters"
        for word in every
        for encoder in encoders
        if word not in words_of(encoder)
    ]


@contextmanager
def in_place(model: nn.Module, rows: Sequence[Sequence[Any]], vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the encoder reads the vectors of learned words at their spots.

    Args:
        model: the text encoder.
        rows: the tokens of each row it reads; a `Spot` where a vector goes.
        vectors: by word.
    """
    spots = [(i, j, item) for i, row in enumerate(rows) for j, item in enumerate(row) if isinstance(item, Spot)]

    def put(module: nn.Module, inputs: Any, states: Tensor) -> Tensor:
        states = states.clone()
        for i, j, spot in spots:
            states[i, j] = vectors[spot.word][spot.index].to(states)
        return states

    if not spots:
        yield
        return
    handle = model.get_input_embeddings().register_forward_hook(put)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()
