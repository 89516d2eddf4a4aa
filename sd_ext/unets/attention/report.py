"""A table of what computes each attention layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One attention layer.

    Args:
        name: its dotted name.
        heads: the number of heads.
        head_size: channels of each head.
        kind: "self" or "cross".
        processor: the class of its processor.
        backend: the kernel that it uses.
        why: the reason for that kernel.
    """

    name: str
    heads: int
    head_size: int
    kind: str
    processor: str
    backend: str
    why: str


class AttentionReport(list[Layer]):
    """The attention layers of a model or pipeline, in order.

    Prints as a table, with one row for equal layers of a block.
    """

    def __str__(self) -> str:
        rows = [("layers", "heads", "kind", "backend", "processor", "why")]
        rows += [(_span(group), *_shown(group[0])) for group in self._groups()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _groups(self) -> Iterator[list[Layer]]:
        """Yield groups of layers that are in the same block and differ only in their name."""
        groups: dict[tuple[str, ...], list[Layer]] = {}
        for layer in self:
            groups.setdefault((_block(layer.name), *_shown(layer)), []).append(layer)
        yield from groups.values()


def _shown(layer: Layer) -> tuple[str, ...]:
    return f"{layer.heads}x{layer.head_size}", layer.kind, layer.backend, layer.processor, layer.why


def _block(name: str) -> str:
    """The path of the block that a layer is in, such as `unet.down_blocks.0`."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])


def _span(group: list[Layer]) -> str:
    return group[0].name if len(group) == 1 else f"{_block(group[0].name)}.* ({len(group)})"
