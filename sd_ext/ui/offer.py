"""What the page offers: models and LoRAs by name. A name that is not offered opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, UnknownNameError
from ..models import EMBEDDED, is_embedded, is_hub_id, tell
from ..models.folder import INDEX

DEEPEST = 3  # folders below a place that are looked through
MOST = 1000  # files and folders of a place
KINDS = {"model": "checkpoint", "LoRA": "lora"}


@dataclass(frozen=True)
class Offer:
    """Models or LoRAs.

    Args:
        what: "model" or "LoRA".
        sources: name on the page -> what `--model` or `--lora` of `sd-ext generate` takes.
    """

    what: str
    sources: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The names, in the order in which they are shown."""
        return list(self.sources)

    def source(self, name: str) -> str:
        """What a name stands for. Raises `InputError` for a name that is not offered."""
        if name not in self.sources:
            raise UnknownNameError(f"{self.what} on this page", name, self.sources)
        return self.sources[name]

    def name(self, source: str) -> str | None:
        """The name of what a recipe calls `source`; None if it is not offered."""
        if self.what == "model" and is_embedded(source):
            source = EMBEDDED
        for name, offered in self.sources.items():
            if offered == source or _same(offered, source):
                return name
        return None


def _same(offered: str, source: str) -> bool:
    one, other = Path(offered).expanduser(), Path(source).expanduser()
    return one.exists() and other.exists() and one.resolve() == other.resolve()


def offer(what: str, places: Sequence[str], told: Callable[[str], object] = lambda text: None) -> Offer:
    """Look through places.

    Args:
        what: "model" or "LoRA".
        places: files, Hub ids, pipeline folders, and folders whose models or LoRAs are all offered.
        told: gets a sentence for each place where something was passed over.

    Raises:
        InputError: a place is not there, or is something else.
    """
    found: dict[str, str] = {}
    for place in places:
        path = Path(place).expanduser()
        if not path.exists() and (place == EMBEDDED or (is_hub_id(place) and path.suffix != ".safetensors")):
            found[place] = place
            continue
        if not path.exists():
            raise InputError(f"no such {what} or folder of them: {place} (a Hub id reads owner/name)")
        passed: list[str] = []
        for each in _within(path, what, passed):
            relative = each.relative_to(path).as_posix() if each != path else path.name
            name = next(name for name in _names(relative, path if path.is_dir() else path.parent) if name not in found)
            found[name] = str(each)
        if passed:
            more = ", …" if len(passed) > 3 else ""
            told(f"{path}: {len(passed)} files are passed over, being no {what}: {', '.join(passed[:3])}{more}.")
    if what == "model":  # first, unless another one was named
        found = {**found, EMBEDDED: EMBEDDED} if found else {EMBEDDED: EMBEDDED}
    return Offer(what, found)


def _names(relative: str, place: Path) -> Iterator[str]:
    yield relative
    yield f"{place.name}/{relative}"
    yield from (f"{place.name}/{relative} ({number})" for number in range(2, MOST))


def _within(path: Path, what: str, passed: list[str], depth: int = 0) -> Iterator[Path]:
    """The models or LoRAs at a path, sorted; the names of other `.safetensors` files are added to `passed`."""
    if path.is_file():
        if path.suffix.lower() == ".safetensors":
            if _is(path, what):
                yield path
            elif depth:
                passed.append(path.name)
        if not depth and not _is(path, what):
            raise InputError(f"{path} is no {what} in a .safetensors file")
        return
    if (path / INDEX).is_file() or (path / "model" / INDEX).is_file():
        if what == "model":
            yield path
        return
    if depth > DEEPEST:
        return
    inside = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    if len(inside) > MOST:
        raise InputError(f"{path} holds {len(inside):,} files; name a folder with at most {MOST:,}")
    for each in inside:
        if each.is_dir() or each.suffix.lower() == ".safetensors":
            yield from _within(each, what, passed, depth + 1)


def _is(path: Path, what: str) -> bool:
    try:
        return path.suffix.lower() == ".safetensors" and tell(path).kind == KINDS[what]
    except InputError:
        return False
