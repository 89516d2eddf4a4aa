"""What the cards of all kinds share: metadata, licence, and texts that cannot steer a reader's screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..base import Base, look_up
from ..card import code_span, licence_text
from ..leaks import shown
from ..licences import licence_entries

README = "README.md"


def base_of(base_model: str | None, online: bool, needed_by: str = "") -> Base | None:
    """What is known of a base model on the Hub.

    Args:
        base_model: `owner/name`; None if none was named.
        online: whether its card may be read from the Hub.
        needed_by: what cannot be published without one; "" if it can.

    Raises:
        InputError: none was named and one is needed, or it is no id of the Hub.
    """
    if base_model is None:
        if needed_by:
            raise InputError(f"{needed_by} is nothing without its base model: name it with --base-model OWNER/NAME")
        return None
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(base_model)
    except HFValidationError as error:
        raise InputError(f"--base-model: {error}") from None
    if "/" not in base_model:
        raise InputError(f"--base-model {base_model!r} is no model on the Hub; write OWNER/NAME")
    return look_up(base_model, online) if not Path(base_model).exists() else Base(hub_id=base_model, why="not asked")


def licence_of(licence: str | None, link: str | None, base: Base | None, needed_by: str = "") -> dict[str, str]:
    """The licence's entries of a card: as given, else the base model's.

    Raises:
        InputError: it cannot be read, or is not known and is needed.
    """
    found = licence_entries(licence, link) or (dict(base.licence) if base else {})
    if not found and needed_by:
        raise InputError(f"under which licence is {needed_by} published? Give --license NAME, such as apache-2.0")
    return found


def write_card(new: Path, title: str, metadata: Mapping[str, Any], body: Sequence[str]) -> str:
    """Write a card, and return its name. Entries of the metadata that are None or empty are left out.

    Args:
        new: the folder.
        title: its heading.
        metadata: its YAML; texts are cleared of what is invisible.
        body: its lines.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(**{name: cleared(value) for name, value in metadata.items() if value})
    card = ModelCard("\n".join(["---", data.to_yaml(), "---", "", f"# {shown(title)}", "", *body]))
    (new / README).write_text(f"{card}\n", "utf-8")
    return README


def cleared(value: Any) -> Any:
    """A value of a card's metadata without invisible characters in its texts."""
    if isinstance(value, str):
        return shown(value)
    return [cleared(each) for each in value] if isinstance(value, (list, tuple)) else value


def licence_lines(entries: Mapping[str, str], base: Base | None, given: bool) -> list[str]:
    """The end of a card: under which licence."""
    if given or not base:
        name = entries.get("license", "")
        link = entries.get("license_link")
        text = (f"[{name}]({link})." if link else f"`{name}`.") if name else "Not stated."
    else:
        text = licence_text(base)
    return ["", "## Licence", "", text]


def python(lines: Sequence[str]) -> list[str]:
    """Lines of Python as a block of a card."""
    return ["", "```python", *lines, "```", ""]


def span(text: str) -> str:
    """A text as inline code, without invisible characters."""
    return code_span(shown(text))
