"""Several data sets in one run, each with its own repeats, captions, mirroring, weight and masks.

In a file of settings each is a table:

    [[data]]
    data = "pictures/cat"
    prefix = "a photo of sks cat"
    repeats = 10

    [[data]]
    data = "pictures/other cats"
    regularisation = true

or `sets = "FILE.toml"` names a file with such tables, or with kohya's `[[datasets]]`, see `kohya`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from sd_ext.declared import check, shown
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.reading import read_toml
from sd_ext.training.data.items import MAX_REPEATS, Item
from sd_ext.training.data.kohya import is_kohyas, tables_of
from sd_ext.training.data.sources import read_items


@dataclass(frozen=True)
class DataSet:
    """One of several data sets. What is None is as in the settings of the run.

    Args:
        data: where its pictures come from, as the setting `data`.
        split: as the setting `split`.
        repeats: times an epoch holds each of its pictures, beside what the data and the run's `repeats` say.
        prefix: put before its captions.
        prompt: caption of its pictures that have none, as the setting `instance_prompt`.
        flip: mirror half of its pictures.
        weight: factor of the loss of its pictures.
        masks: whether its masks are used.
        regularisation: its captions stay as they are, without prefix and augmentation.
        folder_repeats: as the setting `folder_repeats`.

    Raises:
        InputError: a value is out of range.
    """

    data: str
    split: str = "train"
    repeats: int = 1
    prefix: str | None = None
    prompt: str | None = None
    flip: bool | None = None
    weight: float = 1.0
    masks: bool = True
    regularisation: bool = False
    folder_repeats: bool | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise InputError(f"{self.data}: repeats is {self.repeats}; it must be from 1 to {MAX_REPEATS}")
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"{self.data}: weight is {self.weight}; it must be a number, 0 or more")
        if self.regularisation and self.prefix:
            raise InputError(f"{self.data}: pictures of regularisation get no prefix; write it into their captions")

    def __str__(self) -> str:
        return self.data


def read_sets(value: Any, where: str) -> tuple[DataSet, ...]:
    """The data sets that a setting names.

    Args:
        value: a list of tables, or the path of a TOML file; "" for none.
        where: the place of the value, for messages.

    Raises:
        InputError: a table with a wrong or unknown key, no `data`, or the same data twice.
    """
    if isinstance(value, str):
        if not value.strip():
            return ()
        path, value = value, read_toml(value)
        where = path
        value = tables_of(value, path) if is_kohyas(value) else value.get("data")
    elif isinstance(value, (list, tuple)) and not value:  # as the setting is where there are none
        return ()
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: there are no [[data]] tables; give each data set one")
    sets = tuple(table if isinstance(table, DataSet) else data_set(table, f"{where}: data set {number}")
                 for number, table in enumerate(value, 1))  # fmt: skip
    places: dict[tuple[str, str], int] = {}
    for number, each in enumerate(sets, 1):
        place = (os.path.realpath(os.path.expanduser(each.data)), each.split)
        if place in places:
            raise InputError(f"{where}: data sets {places[place]} and {number} are both {each.data}; leave one out")
        places[place] = number
    return sets


def data_set(table: Any, where: str) -> DataSet:
    """A data set from its table; keys may be written with - or _.

    Raises:
        UnknownNameError: a key that no data set has.
        InputError: a value of another type or out of range.
    """
    if not isinstance(table, dict):
        raise InputError(f"{where} is {shown(table)}; it must be a table [[data]]")
    table = {key.replace("-", "_"): value for key, value in table.items()}
    kinds = get_type_hints(DataSet)
    if unknown := sorted(set(table) - set(kinds)):
        raise UnknownNameError(f"setting of {where}:", unknown[0], kinds)
    for field in fields(DataSet):
        if field.name in table:
            check(table[field.name], kinds[field.name], where, field.name)
        elif field.default is MISSING:
            raise InputError(f"{where}: no {field.name}; name its folder of pictures")
    if not table["data"].strip():
        raise InputError(f"{where}: data is empty; name its folder of pictures")
    try:
        return DataSet(**table)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def read_set(each: DataSet, flip: bool, folder_repeats: bool) -> list[Item]:
    """The items of one of several data sets. Their names begin with that of the data set.

    Args:
        each: the data set.
        flip, folder_repeats: the settings of the run, for what the data set does not say.

    Raises:
        InputError: see `read_items`.
    """
    numbered = folder_repeats if each.folder_repeats is None else each.folder_repeats
    return [
        replace(
            item,
            name=f"{each.data.rstrip('/')}/{item.name}",
            caption=item.caption or each.prompt or "",
            repeats=item.repeats * each.repeats,
            weight=item.weight * each.weight,
            prior=each.regularisation,
            masks=each.masks,
            flip=flip if each.flip is None else each.flip,
            prefix=each.prefix,
            group=each.data,
        )
        for item in read_items(each.data, each.split, folder_repeats=numbered)
    ]


def overlaps_noted(items: Sequence[Item]) -> list[Item]:
    """The items, with a note on those whose picture belongs to an earlier data set as well.

    Raises:
        InputError: a picture is both trained on and for regularisation.
    """
    owners: dict[Path, Item] = {}
    noted = []
    for item in items:
        first = owners.setdefault(item.files[0].resolve(), item) if item.files else item
        if first.group == item.group:
            noted.append(item)
            continue
        if first.prior != item.prior:
            raise InputError(
                f"{item.name} is in the data sets {first.group} and {item.group}, of which one is for regularisation; "
                "take it out of one"
            )
        noted.append(replace(item, notes=(*item.notes, f"is in the data set {first.group} too")))
    return noted


def balanced(items: Sequence[Item]) -> list[Item]:
    """The items, those of regularisation or the others repeated so that an epoch has as many samples of both.

    Repeats keep their proportions as far as whole numbers can: the first have one more.
    """
    totals = {kind: sum(item.repeats for item in items if item.prior is kind) for kind in (True, False)}
    if not all(totals.values()):
        return list(items)
    wanted, made = max(totals.values()), []
    more = {kind: wanted - sum(item.repeats * wanted // total for item in items if item.prior is kind)
            for kind, total in totals.items()}  # fmt: skip
    for item in items:
        extra = min(1, more[item.prior])
        more[item.prior] -= extra
        made.append(replace(item, repeats=item.repeats * wanted // totals[item.prior] + extra))
    return made
