"""What a run says about its data at the start: totals, and by name what is left out, not used or changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from rich.console import Console

from sd_ext.errors import printable
from sd_ext.training.data.pictures import Pictures

NAMED = 3  # pictures that are named as examples of a note


def counted(count: int, what: str) -> str:
    """A number with its noun: "1 picture", "2 pictures"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def totals(pictures: Pictures, unused: Mapping[str, str]) -> str:
    """One line: pictures, samples and sizes, and how much is left out."""
    learnt = [sample for sample in pictures.samples if not sample.item.prior]
    views = {sample.view: sample for sample in learnt}
    names = {sample.item.name for sample in learnt}
    parts = [
        f"{counted(len(names), 'picture')}, {counted(len(learnt), 'sample')} an epoch",
        counted(len({sample.size for sample in views.values()}), "size"),
        f"{len(pictures.skipped) or 'none'} left out",
        f"{counted(len(unused), 'other file')} not used" if unused else "every file used",
    ]
    return ", ".join(parts)


def groups(pictures: Pictures) -> list[str]:
    """A line for each of several data sets: its pictures and samples."""
    names: dict[str, set[int]] = {}
    samples = Counter(sample.item.group for sample in pictures.samples)
    for sample in pictures.samples:
        names.setdefault(sample.item.group, set()).add(id(sample.item))
    prior = {sample.item.group for sample in pictures.samples if sample.item.prior}
    return [
        f"{group}: {counted(len(names[group]), 'picture')}, {counted(count, 'sample')} an epoch"
        + (", for regularisation" if group in prior else "")
        for group, count in samples.items()
        if group
    ]


def remarks(pictures: Pictures) -> list[str]:
    """A line for each kind of note, with its number and the first pictures it is true of."""
    names: dict[str, list[str]] = {}
    for name, note in dict.fromkeys(pictures.notes):
        names.setdefault(note, []).append(name)
    lines = []
    for note, own in names.items():
        more = f" and {len(own) - NAMED} more" if len(own) > NAMED else ""
        lines.append(f"{', '.join(own[:NAMED])}{more}: {note}")
    return lines


def told(pictures: Pictures, unused: Mapping[str, str]) -> list[str]:
    """All lines of the report.

    Args:
        pictures: the samples.
        unused: files that are not used, with the reasons, from `unused_files`.
    """
    lines = [totals(pictures, unused), *groups(pictures)]
    if pictures.skipped:
        lines += [f"{counted(len(pictures.skipped), 'picture')} left out:", *(f"  {each}" for each in pictures.skipped)]
    lost = {name: why for name, why in unused.items() if why.startswith("a picture that")}
    if lost:
        lines += [f"{counted(len(lost), 'picture')} not used:", *(f"  {name}: {why}" for name, why in lost.items())]
    rest = Counter(why for name, why in unused.items() if name not in lost)
    lines += [f"{counted(count, 'file')} not used: {why}" for why, count in rest.items()]
    return lines + remarks(pictures)


def report(pictures: Pictures, unused: Mapping[str, str], title: str = "data") -> None:
    """Print the report to the standard error; of several processes only the first does.

    Args:
        pictures, unused: as for `told`.
        title: what the first line begins with.
    """
    if int(os.environ.get("RANK", 0)):  # as launchers number processes, before any of them has met another
        return
    first, *rest = map(printable, told(pictures, unused))
    Console(stderr=True, soft_wrap=True).print("\n  ".join([f"{title}: {first}", *rest]), highlight=False, markup=False)
