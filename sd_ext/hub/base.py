"""Find the base model of a LoRA as others can find it: its address on the Hub, and the licence on its model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..models import is_embedded, is_hub_id
from ..plain_files import read_text
from ..pretrained import pretrained_path

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD_BYTES = 2**18  # YAML is read slowly, and cards are short
LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Base:
    """What the model card of a LoRA says about the base model.

    Args:
        hub_id: `owner/name`, or None for a local folder.
        embedded: whether it is the model that comes with sd_ext.
        licence: the card's entries `license`, `license_name` and `license_link`; empty if unknown.
        why: if the licence is unknown, the reason, as the end of a sentence.
    """

    hub_id: str | None = None
    embedded: bool = False
    licence: dict[str, str] = field(default_factory=dict)
    why: str = ""

    @property
    def url(self) -> str | None:
        """Its page on the Hub; None for a local model."""
        return f"https://huggingface.co/{self.hub_id}" if self.hub_id else None


def look_up(base_model: str, online: bool = False) -> Base:
    """Find out what is known of a base model.

    The card of a model on the Hub is read from the local cache or, with `online`, from the Hub. A card that cannot be
    read is no error: the licence is then unknown, and `Base.why` gives the reason.

    Args:
        base_model: a Hub id, a folder, a single file, or "embedded".
        online: whether the network may be used.
    """
    if is_embedded(base_model):
        return Base(embedded=True, **_local_licence(pretrained_path()))
    path = Path(base_model).expanduser()
    hub_id = base_model.partition("@")[0]  # a revision may follow
    if path.exists() or not is_hub_id(hub_id):
        return Base(**_local_licence(path))
    return Base(hub_id=hub_id, **_hub_licence(hub_id, online))


def _local_licence(folder: Path) -> dict:
    if folder.is_file():
        return {"why": "the base model is a single file, which has no card"}
    readme = folder / "README.md"
    if not readme.is_file():
        return {"why": "the folder of the base model has no card"}
    return _licence(readme, None)


def _hub_licence(hub_id: str, online: bool) -> dict:
    from huggingface_hub import hf_hub_download

    try:
        readme = hf_hub_download(hub_id, "README.md", local_files_only=not online)
    except Exception:  # offline, gated, gone, no card, no permission: each leaves the licence unknown
        why = "the card of the base model could not be read"
        return {"why": why if online else why + " without the network"}
    return _licence(Path(readme), hub_id)


def _licence(readme: Path, hub_id: str | None) -> dict:
    """Read a card. Returns {"licence": entries}, or {"why": reason} if it states no licence."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(read_text(readme, CARD_BYTES), ignore_metadata_errors=True)
    except Exception:  # a stranger's file: bytes of another encoding, YAML that does not parse
        return {"why": "the card of the base model is not readable"}
    found = {key: value for key in LICENCE_KEYS if (value := _stated(card, key))}
    if "license" not in found:
        return {"why": "the card of the base model states none"}
    if link := _absolute(found.get("license_link"), hub_id):
        found["license_link"] = link
    else:
        found.pop("license_link", None)
    return {"licence": found}


def _stated(card: ModelCard, key: str) -> str | None:
    value = card.data.get(key)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value.strip() if isinstance(value, str) and value.strip() else None


def _absolute(link: str | None, hub_id: str | None) -> str | None:
    """Make a licence link absolute if it is relative to the base model's repository; None if that is unknown."""
    if not link or link.startswith(("https://", "http://")):
        return link
    return f"https://huggingface.co/{hub_id}/blob/main/{link.removeprefix('./')}" if hub_id else None
