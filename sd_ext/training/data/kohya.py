"""Reads the data sets of kohya's `dataset_config` files: `[general]`, `[[datasets]]`, `[[datasets.subsets]]`.

A value in a subset wins over that of its data set, which wins over `[general]`. Only what belongs to one data set is
read; what belongs to the run (resolution, batch size, ...) is named, with the setting that says it here.
"""

from __future__ import annotations

import logging
from typing import Any

from sd_ext.declared import shown
from sd_ext.errors import InputError

OURS = {
    "image_dir": "data", "num_repeats": "repeats", "class_tokens": "prompt", "is_reg": "regularisation",
    "flip_aug": "flip", "caption_prefix": "prefix",
}  # fmt: skip
OF_THE_RUN = {
    "resolution": "resolution", "batch_size": "batch_size", "enable_bucket": "buckets",
    "bucket_reso_steps": "bucket_step", "bucket_no_upscale": "upscale", "random_crop": "crop",
    "shuffle_caption": "shuffle_tags", "keep_tokens": "keep_tokens", "caption_separator": "tag_separator",
    "caption_tag_dropout_rate": "tag_dropout", "caption_dropout_rate": "text_dropout", "alpha_mask": "masked_loss",
    "caption_extension": ".txt goes before .caption",
}  # fmt: skip
"""kohya's name -> our setting, or what is done here."""

READ_ANYWAY = {"caption_extension": (".txt", "txt")}

log = logging.getLogger(__name__)


def is_kohyas(table: dict[str, Any]) -> bool:
    """Whether a TOML file is one of kohya's."""
    return "datasets" in table


def tables_of(file: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The tables of our data sets. What is not read is said, once, by name.

    Args:
        file: the file's top-level table.
        path: the file, for messages.

    Raises:
        InputError: the file has another structure, or a subset has no `image_dir`.
    """
    general = table(file.get("general", {}), f"{path}: general")
    found, lost = [], {}
    for number, each in enumerate(tables(file["datasets"], f"{path}: datasets"), 1):
        place = f"{path}: data set {number}"
        for part, subset in enumerate(tables(each.get("subsets"), f"{place}: subsets"), 1):
            own = {key: value for key, value in each.items() if key != "subsets"}
            said = {**general, **own, **subset}
            if "image_dir" not in said:
                raise InputError(f"{place}, subset {part}: no image_dir; name its folder of pictures")
            found.append({OURS[key]: value for key, value in said.items() if key in OURS})
            if found[-1].get("regularisation"):
                found[-1].pop("prefix", None)
            lost |= {
                key: value for key, value in said.items() if key not in OURS and value not in READ_ANYWAY.get(key, ())
            }
    if any(each.get("regularisation") for each in found):
        log.warning("%s: pictures of is_reg come as often as their repeats say, unless balance = true (kohya)", path)
    if lost:
        names = ", ".join(f"{key} (here {OF_THE_RUN[key]})" if key in OF_THE_RUN else key for key in sorted(lost))
        log.warning("%s: not read: %s; where it matters, give it as a setting of the run", path, names)
    return found


def tables(value: Any, where: str) -> list[dict[str, Any]]:
    """A list of tables.

    Raises:
        InputError: it is something else, or empty.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {shown(value)}; it must be tables [[{where.split()[-1]}]]")
    return [table(each, where) for each in value]


def table(value: Any, where: str) -> dict[str, Any]:
    """A table.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} is {shown(value)}; it must be a table")
    return value
