"""What a LoRA file is, in words and numbers: kind, model, ranks, how strong, made from what, read by what.

description = describe("style.safetensors")
description.family, description.ranks["IN04"], description.trigger
for name, text in description.lines().items(): ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checked import file_digest
from ..errors import InputError
from ..models import tell
from ..models.original.families import families
from .adapter import Adapter
from .blocks import block_of
from .formats.files import MODEL_HASH, holds_what_it_tells
from .formats.reading import read_lora
from .header_facts import tags_of, training_of, trigger_of
from .readers import Reader, readers_of
from .strength import family_of

MOST_TAGS = 12
DIGITS = 10  # of a hash, as AutoV2 shows it


@dataclass(frozen=True)
class Description:
    """What a LoRA file is.

    Attributes:
        kinds: name of a kind of adapter -> how many modules have it.
        family: "sd15", "sdxl", ...; None if the modules do not tell.
        parts: part of the pipeline -> how many of its modules are changed.
        dtypes: number format, such as "float16" -> how many tensors have it.
        ranks, alphas: block ("BASE", "IN04", "MID", ...; see `sd_ext.lora.blocks`) -> those of its modules, sorted.
        strengths: block -> what the products of its modules' factors are multiplied by, alpha / rank for most kinds,
            sorted; without kinds that have no such number.
        norms: block -> the Frobenius norm of all changes in it at strength 1; without those that depend on the base's
            weights, such as DoRA's.
        title: as the header says; "" if it does not, like all below.
        trigger: the words that the LoRA is called by.
        tags: words of its captions -> how often they occur, the most frequent first.
        training: settings of its training, by name.
        sha256: of the whole file; its first ten digits are what sites call AutoV2.
        tensors_hash: kohya's `sshs_model_hash`, of the tensors alone, as the header says; its first twelve digits are
            AutoV3.
        intact: whether that is true; None if the header says none.
        words: learned words that are in the file too (`bundle_emb`).
        readers: what reads it, and how.
    """

    kinds: Mapping[str, int]
    family: str | None
    parts: Mapping[str, int]
    dtypes: Mapping[str, int]
    ranks: Mapping[str, list[int]]
    alphas: Mapping[str, list[float]]
    strengths: Mapping[str, list[float]]
    norms: Mapping[str, float]
    title: str
    trigger: str
    tags: Mapping[str, int]
    training: Mapping[str, str]
    sha256: str
    tensors_hash: str
    intact: bool | None
    words: tuple[str, ...]
    readers: tuple[Reader, ...]

    def lines(self) -> dict[str, str]:
        """The same as lines "name: text", without those that have nothing to say."""
        kinds = ", ".join(f"{count} modules of {kind}" for kind, count in self.kinds.items())
        tags = [f"{tag} ({count})" for tag, count in list(self.tags.items())[:MOST_TAGS]]
        intact = {None: "", True: ", as its tensors are", False: ", but its tensors are others"}[self.intact]
        made = {
            "what": f"a LoRA file: {kinds}",
            "title": self.title,
            "for": families()[self.family].title if self.family else "not told by its modules",
            "parts": ", ".join(f"{part} ({count})" for part, count in self.parts.items()),
            "tensors": ", ".join(f"{count} in {name}" for name, count in self.dtypes.items()),
            "ranks": by_block(self.ranks),
            "alphas": by_block(self.alphas),
            "strengths": by_block(self.strengths),
            "norms": ", ".join(f"{block} {norm:.3g}" for block, norm in self.norms.items()),
            "trigger": self.trigger,
            "tags": ", ".join([*tags, "…"] if len(self.tags) > MOST_TAGS else tags),
            **self.training,
            "words": ", ".join(self.words),
            "sha256": f"{self.sha256} (AutoV2 {self.sha256[:DIGITS]})",
            "tensors' hash": f"{self.tensors_hash}{intact}" if self.tensors_hash else "",
            **{reader.program: reader.how for reader in self.readers},
        }
        return {name: text for name, text in made.items() if text}


def describe(path: str | Path) -> Description:
    """Describe a LoRA file.

    Args:
        path: a .safetensors file that `read_lora` reads.

    Raises:
        InputError: no such file, or no LoRA for Stable Diffusion; the message says what it is.
    """
    path = Path(path).expanduser()
    file = tell(path)
    try:
        lora = read_lora(path)
    except InputError:
        if file.kind in ("lora", "unknown"):
            raise
        raise InputError(file.sentence) from None
    header, told = file.header, file.header.metadata
    hashed = told.get(MODEL_HASH, "").lower().removeprefix("0x")
    blocks: dict[str, list[Adapter]] = {}
    for module, adapter in lora.adapters.items():
        blocks.setdefault(block_of(module) or "other", []).append(adapter)
    return Description(
        kinds=_counted(adapter.rules.name for adapter in lora),
        family=family_of(lora),
        parts=_counted(module.part for module in lora.adapters),
        dtypes=_counted(entry.dtype.lower() for entry in header.tensors.values()),
        ranks={block: sorted({a.rank for a in adapters}) for block, adapters in sorted(blocks.items())},
        alphas={block: sorted({a.alpha for a in adapters}) for block, adapters in sorted(blocks.items())},
        strengths={block: found for block, a in sorted(blocks.items()) if (found := _strengths(a))},
        norms={block: norm for block, a in sorted(blocks.items()) if (norm := norm_of(a)) is not None},
        title=told.get("modelspec.title") or told.get("ss_output_name", ""),
        trigger=trigger_of(told),
        tags=tags_of(told),
        training=training_of(told),
        sha256=file_digest(path),
        tensors_hash=hashed,
        intact=holds_what_it_tells(path, told) if hashed else None,
        words=tuple(sorted({key.split(".")[1] for key in lora.bundled if key.count(".") > 1})),
        readers=readers_of(lora, header.tensors),
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _strengths(adapters: Iterable[Adapter]) -> list[float]:
    return sorted({adapter.scale for adapter in adapters if adapter.rules.has_alpha and adapter.rank})


def norm_of(adapters: Iterable[Adapter]) -> float | None:
    """The Frobenius norm of what adapters add together; None if none of them can be computed without the base."""
    squares = []
    for adapter in adapters:
        try:
            pair = None if adapter.rules.beside else adapter.rules.two_factors(adapter.tensors)
            if pair is not None:  # without building the product: the trace of (up' up) (down down')
                up, down = (each.double() for each in pair)
                squares.append(float(((up.T @ up) * (down @ down.T)).sum()) * adapter.scale**2)
            else:
                squares.append(float(adapter.delta().double().square().sum()))
        except InputError:  # depends on the base's weights
            continue
    return sum(squares) ** 0.5 if squares else None


def by_block(values: Mapping[str, list[int]] | Mapping[str, list[float]]) -> str:
    """Values by block in words: "32; 16 in BASE", the most frequent without its blocks."""
    texts = {block: "/".join(f"{number:g}" for number in numbers) for block, numbers in values.items()}
    if not texts:
        return ""
    (usual, _), *others = Counter(texts.values()).most_common()
    named = [f"{text} in {', '.join(b for b, each in texts.items() if each == text)}" for text, _ in others]
    return "; ".join([usual, *named])
