"""Use LoRA files in a pipeline for a while: `with use_lora(pipe, [("style.safetensors", 0.8)]): pipe(...)`.

Their changes are added to the weights, in float32 and by the definition of each kind, so that every kind that can be
read can be used, also those that Diffusers does not load. Afterwards the weights are what they were, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..models.original.families import families
from ..prompts.encoders import find_encoders
from ..prompts.words import Words, learn, read_bundled
from .find import find_lora
from .fuse import Applied, apply_loras
from .lora import Lora
from .strength import Strength, unnamed
from .weights import ModelWeights, check_fit

log = logging.getLogger(__name__)

Source = str | Path | Lora
Entry = Source | tuple[Source, float | Strength] | tuple[Source, float, float]
SHOWN = 3  # names in a message


class Wanted(NamedTuple):
    """A LoRA that is to be used.

    Args:
        name: what it is called in messages.
        lora: the LoRA.
        strength: how strongly it acts.
    """

    name: str
    lora: Lora
    strength: Strength


class Used:
    """LoRAs that are in use. `undo()`, or leaving a `with` block, restores the weights to the bit.

    Attributes:
        unused: for each thing in the files that is not used, a sentence that names it.
    """

    def __init__(self, pipe: Any, wanted: Sequence[Wanted]):
        self._pipe, self._wanted, self.unused = pipe, list(wanted), list[str]()
        self._applied: Applied | None = None
        self._words: list[Words] = []
        self._apply()

    def _apply(self) -> None:
        pairs, self.unused = fitting(self._pipe, self._wanted)
        try:
            for each in self._wanted:
                if each.lora.bundled:
                    self._words += _learned(self._pipe, each, self.unused)
            self._applied = apply_loras(self._pipe, pairs) if pairs else None
        except BaseException:
            self.undo()
            raise

    def change(self, loras: Entry | Iterable[Entry]) -> None:
        """Use other LoRAs in place of these, or these at other strengths; `undo()` still restores the first weights.

        Args:
            loras: as for `use_lora`.

        Raises:
            InputError: as for `use_lora`; then these stay in use.
        """
        before, wanted = self._wanted, [read_entry(entry) for entry in _each(loras)]
        fitting(self._pipe, wanted)
        self.undo()
        try:
            self._wanted = wanted
            self._apply()
        except BaseException:
            self._wanted = before
            self._apply()
            raise
        _warn(self.unused)

    def undo(self) -> None:
        """Restore the weights, and forget the files' words. Calling it again does nothing."""
        if self._applied is not None:
            self._applied.undo()
            self._applied = None
        while self._words:
            self._words.pop().undo()

    def __enter__(self) -> Used:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def use_lora(pipe: Any, loras: Entry | Iterable[Entry]) -> Used:
    """Use LoRAs in a pipeline until `undo()` of the result is called.

    Each is computed from the original weights, so their order does not matter. Words that A1111 keeps in a LoRA's file
    (`bundle_emb.*`) can be used in prompts that `sd_ext.encode_prompt` reads. What of a file cannot be used, such as
    modules that this model does not have, is logged as a warning. Undo in reverse order where several are in use.

    Args:
        pipe: the pipeline.
        loras: each a source, `(source, strength)` or `(source, strength, text_strength)`. A source is a file or folder,
            a Hub id `owner/name` or `owner/name/file.safetensors`, or a `Lora`. Strength s makes W + s * (W' - W) of a
            weight, where W' is that at full strength; by default 1, and that of the text encoders is the U-Net's. A
            `sd_ext.lora.Strength` in place of the number tells blocks apart too.

    Returns:
        An object whose `undo()` restores the weights to the bit, and whose `change(loras)` puts others in their place.

    Raises:
        InputError: no such file, one that does not fit the model, or a strength that is no finite number or too large
            for the weights; nothing has been changed.
    """
    used = Used(pipe, [read_entry(entry) for entry in _each(loras)])
    _warn(used.unused)
    return used


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        log.warning("%s", sentence)


def _each(loras: Any) -> list[Any]:
    """The entries of what `use_lora` was given; one that stands alone is one."""
    entries: Any = loras
    one = isinstance(loras, (str, Path, Lora))
    pair = isinstance(loras, tuple) and len(loras) in (2, 3) and isinstance(loras[1], (int, float, Strength))
    return [entries] if one or pair else list(entries)


def read_entry(entry: Any) -> Wanted:
    """Read one of `use_lora`'s entries."""
    source, *strengths = entry if isinstance(entry, (tuple, list)) else (entry,)
    name = "the LoRA" if isinstance(source, Lora) else str(source)
    if len(strengths) > 2 or (len(strengths) > 1 and any(isinstance(each, Strength) for each in strengths)):
        raise InputError(f"{name}: strengths {strengths} cannot work; give one or two finite numbers, or a Strength")
    try:
        strength = strengths[0] if strengths and isinstance(strengths[0], Strength) else Strength(*strengths)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return Wanted(name, source if isinstance(source, Lora) else find_lora(source), strength)


def words_beside(name: str) -> list[str]:
    """A sentence for each file of new words that lies in a LoRA's folder, as the trainer puts it there."""
    files = sorted(Path(name).expanduser().glob("learned_embeds*.safetensors"))
    return [
        f"{file} lies beside the LoRA and is not used; its words are read with --embedding {file}" for file in files
    ]


def _learned(pipe: Any, wanted: Wanted, unused: list[str]) -> Iterator[Words]:
    """Teach the pipeline a file's words; what is not taught is added to `unused`."""
    names = ", ".join(sorted({key.split(".")[1] for key in wanted.lora.bundled if key.count(".") > 1}))
    try:
        if not find_encoders(pipe):
            raise InputError(f"{wanted.name}: {type(pipe).__name__} reads no learned words")
        yield learn(pipe, read_bundled(wanted.lora.bundled, wanted.name), wanted.name)
    except InputError as error:
        unused.append(f"{error}; its words are left out: {names}")


def fitting(pipe: Any, wanted: Sequence[Wanted]) -> tuple[list[tuple[Lora, Strength]], list[str]]:
    """What of LoRAs a pipeline can use.

    Args:
        pipe: the pipeline.
        wanted: the LoRAs.

    Returns:
        What each can change in this model, and its strength. And a sentence for what is left out of each.

    Raises:
        InputError: a LoRA has no module of this model, or one that does not fit its weight.
    """
    weights = ModelWeights(pipe)
    shapes = weights.shapes()
    pairs: list[tuple[Lora, Strength]] = []
    unused: list[str] = []
    for name, lora, strength in wanted:
        unused += words_beside(name)
        there = {module: adapter for module, adapter in lora.adapters.items() if module in shapes}
        for_what = f"; it is for {families()[lora.base].title}" if lora.base else ""
        if not there:
            raise InputError(f"{name} does not fit {type(pipe).__name__}: none of its modules is there{for_what}")
        try:
            check_fit(shapes, there.items())
        except InputError as error:
            raise InputError(f"{name} does not fit this model: {error}{for_what}") from None
        if any(weights.weight(module).is_meta for module in there):
            raise InputError(f"{name}: this model's weights are offloaded; use LoRAs before offloading is switched on")
        gone = [str(module) for module in lora.adapters if module not in there]
        if gone:
            more = ", …" if len(gone) > SHOWN else ""
            unused.append(
                f"{name}: {len(gone)} of its {len(lora)} modules are not in this model and are left out: "
                f"{', '.join(gone[:SHOWN])}{more}"
            )
        fits = Lora(there, lora.metadata, lora.base)
        if sentence := unnamed(fits, strength):
            unused.append(f"{name}: {sentence}")
        pairs.append((fits, strength))
    return pairs, unused
