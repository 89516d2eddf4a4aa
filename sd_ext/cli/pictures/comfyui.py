"""The text `prompt` of ComfyUI's pictures: a graph of nodes as JSON, from which the sampler's settings are read.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], ...}}, "6": {...}, ...}

Nodes of others have any names and inputs, so what is looked for are inputs by their names, along the links from the
sampler. A node that the sampler is built on and of which nothing is taken is named among what is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import InputError
from ...reading import parse_json
from .conditioning import Words
from .graph import DEEP, Graph, short
from .told import Told

PROGRAM, LIKE = "ComfyUI", "comfyui"
NAMES = {  # inputs -> names of a recipe
    "seed": ("seed", int), "noise_seed": ("seed", int), "steps": ("steps", int), "cfg": ("guidance", float),
    "sampler_name": ("sampler", str), "scheduler": ("grid", str),
}  # fmt: skip
FURTHER = {  # inputs that have no counterpart, and what they hold when they change nothing
    "denoise": (1,), "start_at_step": (0,), "add_noise": ("enable", True), "return_with_leftover_noise": ("disable",),
}  # fmt: skip
ASIDE = "positive", "negative", "conditioning", "model", "clip", "vae", "latent_image", "latent", "samples", "image"
"""Inputs that lead away from a sampler's own settings."""

SIDES = ("width", "height"), ("empty_latent_width", "empty_latent_height")
SAME_SIZE = {
    "VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "VAEDecode", "VAEDecodeTiled", "SetLatentNoiseMask",
    "RepeatLatentBatch", "LatentFromBatch", "InpaintModelConditioning", "Reroute",
}  # fmt: skip
"""Nodes that do not change the size of what they get."""

MODELS = "ckpt_name", "unet_name", "model_name"
PARTS = {  # nodes that do nothing but what goes without saying here
    "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "VAELoader", "VAEEncode", "VAEEncodeTiled", "VAEDecode",
    "VAEDecodeTiled", "Reroute",
}  # fmt: skip
MOST_SEED = 2**64


def parse(text: str, where: str) -> Told:
    """What a graph says about the first sampler in it that others do not build on.

    Args:
        text: the text of the key `prompt`.
        where: the file, for messages.

    Returns:
        What is said, and by name what is not taken.

    Raises:
        InputError: it is no graph.
    """
    try:
        values = parse_json(text, "it", finite=False)
    except InputError as error:
        raise InputError(f"{where} has a text `prompt` that is no graph of ComfyUI ({error})") from None
    nodes = {str(key): node for key, node in values.items() if _is_node(node)} if isinstance(values, dict) else {}
    if not nodes:
        raise InputError(f"{where} has a text `prompt` that is no graph of ComfyUI")
    graph = Graph(nodes)
    samplers = _samplers(graph)
    if not samplers:
        return Told(PROGRAM, {"nodes": ", ".join(sorted({graph.kind(key) for key in nodes}))})
    used = set(graph.reach(*(link.key for key in samplers for link in graph.links(key).values())))
    last = next((key for key in samplers if key not in used), samplers[0])
    return _of_sampler(graph, last, samplers)


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _samplers(graph: Graph) -> list[str]:
    """The nodes that draw."""
    inputs = {key: set(graph.inputs(key)) for key in graph.nodes}
    by_inputs = [key for key, names in inputs.items() if {"positive", "steps"} <= names or "latent_image" in names]
    return by_inputs or [key for key in graph.nodes if "Sampler" in graph.kind(key)]


def _of_sampler(graph: Graph, key: str, samplers: list[str]) -> Told:
    reached = graph.reach(key, without=ASIDE, ends=samplers)
    own = [each for each in reached if each == key or each not in samplers]
    every = list(graph.reach(key, ends=samplers))
    settings, dropped = _settings(graph, own)
    words = Words(graph)
    for ours, side in ("prompt", "positive"), ("negative", "negative"):
        settings |= {ours: text} if (text := words.of(own, side)) else {}
    size, unsized = _size(graph, key, own, samplers)
    settings |= {"size": size} if size else {}
    settings |= _clip_skip(graph, every)
    models, loras = _models(graph, every), _loras(graph, every)
    dropped = [f"model {model}" for model in models] + [f"LoRA {lora}" for lora in loras] + dropped
    dropped += words.dropped + unsized + _further(graph, own, settings)
    dropped += [f"{len(samplers) - 1} further samplers"] if len(samplers) > 1 else []
    dropped += _unread(graph, every, samplers)
    shown = {**{name: value for name, value in settings.items() if name != "like"},
             **({"model": models[0]} if models else {}), **({"loras": ", ".join(loras)} if loras else {})}  # fmt: skip
    return Told(PROGRAM, shown, settings, list(dict.fromkeys(dropped)))


def _settings(graph: Graph, own: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The sampler's own settings by our names, and what of them cannot be told."""
    settings: dict[str, Any] = {}
    dropped: list[str] = []
    for name, (ours, kind) in NAMES.items():
        key = next((each for each in own if name in graph.inputs(each)), None)
        if key is None or ours in settings:
            continue
        value: Any = graph.text(key, name) if kind is str else graph.number(key, name)
        if value is None or kind(value) != value or (ours == "seed" and not 0 <= value < MOST_SEED):
            dropped.append(graph.named(key, name))
        else:
            settings[ours] = kind(value)
    if "sampler" in settings:
        settings["like"] = LIKE
    elif "grid" in settings:
        dropped.append(f"scheduler {settings.pop('grid')}")
    dropped += [f"sigmas of {graph.kind(key)}" for key in own if _places_steps(graph, key)]
    return settings, dropped


def _places_steps(graph: Graph, key: str) -> bool:
    """Whether a node places steps in another way than by the name of a scheduler."""
    inputs = graph.inputs(key)
    return "steps" in inputs and not {"scheduler", "positive"} & set(inputs) and "cheduler" in graph.kind(key)


def _size(graph: Graph, sampler: str, own: Collection[str], samplers: Collection[str]) -> tuple[str, list[str]]:
    """The size of the latent that the sampler starts from, "" if it is not told; and what is not taken of it."""
    names = "latent_image", "latent", "samples", "pixels", "image", "images"
    link = next(filter(None, (graph.origin(sampler, name) for name in names)), None)
    key = link.key if link else next((each for each in own if _sides(graph, each)), None)
    for _ in range(DEEP):
        if key is None:
            break
        if names_of_sides := _sides(graph, key):
            return _measured(graph, key, names_of_sides)
        if key not in samplers and graph.kind(key) not in SAME_SIZE:
            return "", [f"size, which {graph.kind(key)} makes"]
        link = next(filter(None, (graph.origin(key, name) for name in (*names, ""))), None)
        key = link.key if link else None
    return "", []


def _sides(graph: Graph, key: str) -> tuple[str, str] | None:
    """The names of the inputs that say how large the latent of a node is."""
    return next((sides for sides in SIDES if set(sides) <= set(graph.inputs(key))), None)


def _measured(graph: Graph, key: str, names: tuple[str, str]) -> tuple[str, list[str]]:
    """The size that a node names, and what is not taken of it."""
    sides = [graph.number(key, name) for name in names]
    batch = graph.inputs(key).get("batch_size", 1)
    dropped = [] if batch == 1 else [graph.named(key, "batch_size")]
    whole = [int(side) for side in sides if side is not None and side >= 1 and side == int(side)]
    if len(whole) == len(names):
        return f"{whole[0]}x{whole[1]}", dropped
    return "", [*(graph.named(key, name) for name in names), *dropped]


def _clip_skip(graph: Graph, every: Collection[str]) -> dict[str, int]:
    """Which layer of the text encoder is read, as a setting; counted from the end, as -2, by ComfyUI."""
    for key in every:
        if "stop_at_clip_layer" in graph.inputs(key):
            layer = graph.number(key, "stop_at_clip_layer")
            return {"clip_skip": -int(layer)} if layer is not None and layer < 0 and layer == int(layer) else {}
    return {}


def _models(graph: Graph, every: Collection[str]) -> list[str]:
    """The names of the models that a sampler is built on."""
    found = [graph.text(key, name) for key in every for name in MODELS if name in graph.inputs(key)]
    return list(dict.fromkeys(name for name in found if name is not None))


def _loras(graph: Graph, every: Collection[str]) -> list[str]:
    """The LoRAs that a sampler is built on, with the strength in the network where it is named."""
    found = []
    for key in every:
        name = graph.text(key, "lora_name")
        strength = graph.number(key, "strength_model")
        found += [] if name is None else [name if strength is None else f"{name} {strength:g}"]
    return found


def _further(graph: Graph, own: Collection[str], settings: Mapping[str, Any]) -> list[str]:
    """Settings of the sampler that have no counterpart, and change something."""
    dropped = []
    for name, neutral in {**FURTHER, "end_at_step": ()}.items():
        key = next((each for each in own if name in graph.inputs(each)), None)
        if key is None:
            continue
        value = graph.number(key, name) if graph.origin(key, name) else graph.inputs(key)[name]
        to_the_end = name == "end_at_step" and isinstance(value, int) and value >= settings.get("steps", 1000)
        if value is None:
            dropped.append(graph.named(key, name))
        elif value not in neutral and not to_the_end:
            dropped.append(f"{name} {short(value)}")
    return dropped


def _unread(graph: Graph, every: Collection[str], samplers: Collection[str]) -> list[str]:
    """The nodes that the sampler is built on and of which nothing was taken, by their class."""
    left = (key for key in every if key not in graph.read and key not in samplers)
    return [f"node {short(graph.kind(key))}" for key in left if graph.kind(key) not in PARTS]
