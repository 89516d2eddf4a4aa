"""Read a LoRA from any of its formats. Nothing is ignored silently: an unknown key is an error, or is named."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...declared import shown
from ...errors import InputError, UnknownNameError
from ...models import PICKLES
from ...models.original.families import families
from ...reading import parse_json, read_json
from ..adapter import PARTS, Adapter, ModuleName
from ..kinds import KINDS
from ..lora import Lora
from .bases import decide_base, wrong_shape
from .diffusers import SETTINGS, alphas_of, settings_in
from .file_names import DIFFUSERS_FILE, PEFT_FILE, PEFT_SETTINGS
from .files import MODEL_HASH, read_tensors, readable
from .foreign import for_another, refuse_foreign
from .keys import assemble, collect, configure, said

# Header entries that describe the file rather than the LoRA: dropped here, made anew when a file is written.
LAYOUT = {"format", SETTINGS, MODEL_HASH, "sshs_legacy_hash", "modelspec.hash_sha256"}
BUNDLED = "bundle_emb."
PEFTS = "base_model."  # how names begin in files that peft itself wrote
WIDE = "ComfyUI widens the base's weight with zeros where it is smaller (reshape_weight); here it must fit as it is"
SKIPPING = "`sd-ext convert lora IN OUT --skip-unknown` leaves out what is not known, and lists it"
SHOWN = 40  # skipped keys in a message

log = logging.getLogger(__name__)


def read_lora(
    source: str | Path | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    skip_unknown: bool = False,
) -> Lora:
    """Read a LoRA, LoHa, LoKr or another registered kind, with or without DoRA.

    A Diffusers file without strengths in its header gets alpha = rank, that is strength 1, as Diffusers loads it. What
    is noteworthy, such as a header that contradicts the modules, is logged as a warning.

    Args:
        source: a .safetensors file with the names of any trainer (`sd_ext.lora.formats.names`); with peft's
            adapter_config.json beside it, that too is read. Or a folder with one such file, or with peft's
            adapter_config.json and adapter_model.safetensors, or with a peft folder for each part; or the tensors of a
            file, by key.
        metadata: the file's header, if `source` is tensors.
        skip_unknown: leave out tensors whose names mean nothing, in place of refusing the file. They are logged, and
            listed in `Lora.skipped`.

    Raises:
        InputError: no such file; a pickle, which is never opened; a file that is no LoRA for Stable Diffusion; keys
            that are unknown or given twice; or tensors that do not fit together or are not finite. The message names
            them.
    """
    if isinstance(source, Mapping):
        return _told(*_from_tensors(source, metadata or {}, skip_unknown), "the LoRA")
    path = Path(source).expanduser()
    try:
        lora, notes = _from_folder(path, skip_unknown) if path.is_dir() else _from_file(path, skip_unknown)
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    return _told(lora, notes, str(path))


Read = tuple[Lora, list[str]]  # a LoRA, and sentences on what is noteworthy


def _told(lora: Lora, notes: list[str], name: str) -> Lora:
    for note in notes:
        log.warning("%s: %s", name, note)
    return lora


def _from_folder(folder: Path, skip: bool) -> Read:
    if (folder / PEFT_SETTINGS).is_file():
        return _from_peft(_weights(folder), folder / PEFT_SETTINGS, None, skip)
    parts = [part for part in PARTS if (folder / part / PEFT_SETTINGS).is_file()]
    if parts:
        read = [_from_peft(_weights(folder / part), folder / part / PEFT_SETTINGS, part, skip) for part in parts]
        return _joined([lora for lora, _ in read]), [note for _, notes in read for note in notes]
    files = sorted(folder.glob("*.safetensors"))
    if (folder / DIFFUSERS_FILE).is_file():
        files = [folder / DIFFUSERS_FILE]
    if len(files) == 1:
        return _from_file(files[0], skip)
    if not files and any(file.suffix.lower() in PICKLES for file in folder.iterdir()):
        raise InputError(f"{folder} holds pickles only, which can run any code when read; .safetensors is needed")
    found = f"{len(files)} .safetensors files; name one" if files else f"neither {DIFFUSERS_FILE} nor {PEFT_SETTINGS}"
    raise InputError(f"{folder} holds {found}")


def _joined(loras: list[Lora]) -> Lora:
    adapters = {module: adapter for lora in loras for module, adapter in lora.adapters.items()}
    metadata = {key: value for lora in loras for key, value in lora.metadata.items()}
    skipped = tuple(key for lora in loras for key in lora.skipped)
    return Lora(adapters, metadata, decide_base(adapters, header=metadata).base, skipped=skipped)


def _weights(folder: Path) -> Path:
    pickled = folder / "adapter_model.bin"
    return pickled if pickled.exists() and not (folder / PEFT_FILE).exists() else folder / PEFT_FILE


def _from_file(path: Path, skip: bool) -> Read:
    settings = path.parent / PEFT_SETTINGS
    tensors, header = read_tensors(path)
    if settings.is_file() and (path.name == PEFT_FILE or any(key.startswith(PEFTS) for key in tensors)):
        part = path.parent.name if path.parent.name in PARTS else None
        return _from_peft(path, settings, part, skip)
    return _from_tensors(tensors, header, skip)


def _from_peft(path: Path, settings_file: Path, part: str | None, skip: bool) -> Read:
    settings = read_json(settings_file, dict[str, Any])
    kind, able = settings.get("peft_type", "LORA"), sorted({kind.peft_type for kind in KINDS.values()} - {""})
    if kind not in able:
        raise InputError(f"{settings_file.parent} holds a {shown(kind)}; {', '.join(able)} can be read")
    tensors, header = read_tensors(path)
    return _from_tensors(tensors, header, skip, settings, part)


def _from_tensors(
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    skip: bool,
    peft: Mapping[str, Any] | None = None,
    part: str | None = None,
) -> Read:
    """A LoRA from a file's tensors and header, peft's settings, and the part of names that do not say theirs."""
    tensors, note = readable(tensors)
    notes = [note] if note else []
    bundled = {key: tensor for key, tensor in tensors.items() if key.startswith(BUNDLED)}
    refuse_foreign(tensors, header)
    try:
        found = collect({key: tensor for key, tensor in tensors.items() if key not in bundled}, part, skip)
    except UnknownNameError as error:
        error.args = (f"{error} ({SKIPPING})",)
        raise for_another(tensors) or error from None
    if found.skipped:
        notes.append(f"left out {len(found.skipped)} unknown tensors: {said(found.skipped, SHOWN)}")
    if not found.fields:
        raise for_another(tensors) or InputError("there is no LoRA in it")
    if found.empty:
        notes.append(
            f"left out {len(found.empty)} modules of rank 0, which change nothing: {said(map(str, found.empty))}"
        )
    if wide := [module for module, fields in found.fields.items() if "wide" in fields]:
        notes.append(f"{WIDE}: {said(map(str, wide))}")
    settings: Mapping[str, Any] = dict.fromkeys(PARTS, peft)
    if peft is None:
        settings = {} if any("alpha" in fields for fields in found.fields.values()) else settings_in(header)
    else:
        configure(found, peft)
    adapters = assemble(found, alphas_of(settings))
    notes += _strengths_missing(settings, adapters)
    if all(_does_nothing(adapter) for adapter in adapters.values()):
        notes.append("none of its modules changes anything, since their factors or strengths are 0")
    adapters, note = _rank_stabilised(adapters, header)
    notes += [note] if note else []
    base, contradicted = decide_base(adapters, found.places, header)
    notes += contradicted
    metadata = {key: value for key, value in header.items() if key not in LAYOUT}
    whole = base is not None and all(base in place.families for place in found.places)
    brought = _brought(adapters, base) if whole else {}
    if brought:
        notes.append(_shaped(brought, adapters, base))
    return Lora({**adapters, **brought}, metadata, base, bundled, skipped=tuple(found.skipped)), notes


def _strengths_missing(settings: Mapping[str, Any], adapters: Mapping[ModuleName, Adapter]) -> list[str]:
    """A sentence on the parts whose strengths peft's settings in a header leave out, "" if there are none."""
    gone = sorted({module.part for module in adapters} - settings.keys())
    if not settings or not gone:
        return []
    return [f"its header has settings of peft, and none for {', '.join(gone)}, which is read at strength 1"]


def _does_nothing(adapter: Adapter) -> bool:
    """Whether an adapter is a plain LoRA that adds 0."""
    return adapter.plain and not (adapter.scale and adapter.up.any() and adapter.down.any())


def _rank_stabilised(
    adapters: dict[ModuleName, Adapter], header: Mapping[str, str]
) -> tuple[dict[ModuleName, Adapter], str]:
    """Adapters at the strength of their training, where only the header tells it: LyCORIS's `rs_lora`; and a note."""
    try:
        trained = parse_json(header.get("ss_network_args") or "{}", "ss_network_args", dict[str, Any])
    except InputError:
        return adapters, ""  # some trainers write no JSON here, and no strength either
    if str(trained.get("rs_lora")).lower() not in ("true", "1"):
        return adapters, ""
    made = {}
    for module, adapter in adapters.items():
        if (found := adapter.rules.rank_stabilised(adapter.tensors, adapter.alpha)) is not None:
            made[module] = Adapter(adapter.kind, *found)
    note = "its header tells of rs_lora, and {} of its modules are read at the strength of that training, which other "
    return {**adapters, **made}, (note + "programs do not know of").format(len(made)) if made else ""


def _brought(adapters: Mapping[ModuleName, Adapter], base: str | None) -> dict[ModuleName, Adapter]:
    """Adapters for 1 x 1 convolutions where the base has linear layers, or the other way round, as it has them."""
    made = {}
    for module, adapter in adapters.items():
        if wrong_shape(module, adapter, base) and (brought := adapter.pointwise()) is not None:
            made[module] = brought
    return made


def _shaped(brought: Mapping[ModuleName, Adapter], adapters: Mapping[ModuleName, Adapter], base: str | None) -> str:
    shape = adapters[next(iter(brought))].shape or ()
    what, there = ("linear layers", "1 x 1 convolutions")[:: 1 if len(shape) == 2 else -1]
    title = families()[base].title if base else "the base"
    return f"{len(brought)} of its modules are {what}, and in {title} {there}; they are read as these"
