"""The text `prompt` of ComfyUI's pictures: a graph of nodes as JSON, from which the sampler's settings are read.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], ...}}, "6": {...}, ...}

An input is a value, or [number of a node, number of its output]. Nodes of others have any names and inputs, so what is
looked for are inputs by their names, along the links from the sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import InputError
from ...reading import parse_json
from .told import Told

PROGRAM = "ComfyUI"
NAMES = {  # inputs -> names of a recipe
    "seed": ("seed", int), "noise_seed": ("seed", int), "steps": ("steps", int), "cfg": ("guidance", float),
    "sampler_name": ("sampler", str), "scheduler": ("grid", str),
}  # fmt: skip
FURTHER = "denoise", "start_at_step", "end_at_step"
MOST = 10_000  # nodes that are followed


def parse(text: str, where: str) -> Told:
    """What a graph says about the first sampler in it that others do not build on.

    Args:
        text: the text of the key `prompt`.
        where: the file, for messages.

    Raises:
        InputError: it is no graph.
    """
    graph = parse_json(text, where, finite=False)
    nodes = {str(key): node for key, node in graph.items() if _is_node(node)} if isinstance(graph, dict) else {}
    if not nodes:
        raise InputError(f"{where} has a text `prompt` that is no graph of ComfyUI")
    samplers = [key for key, node in nodes.items() if {"positive", "steps"} <= set(node["inputs"])]
    samplers = samplers or [key for key, node in nodes.items() if "Sampler" in node["class_type"]]
    if not samplers:
        return Told(PROGRAM, {"nodes": ", ".join(sorted({node["class_type"] for node in nodes.values()}))})
    used = {other for key in samplers for other in _links(nodes, key) if other != key}
    last = next((key for key in samplers if key not in used), samplers[0])
    return _of_sampler(nodes, last, len(samplers))


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _links(nodes: Mapping[str, Any], start: str) -> Iterator[str]:
    """The nodes that a node is built on, itself first, nearest first."""
    waiting, seen = [start], {start}
    while waiting and len(seen) < MOST:
        key = waiting.pop(0)
        yield key
        for value in nodes[key]["inputs"].values():
            if isinstance(value, list) and value and str(value[0]) in nodes and str(value[0]) not in seen:
                seen.add(str(value[0]))
                waiting.append(str(value[0]))


def _first(nodes: Mapping[str, Any], start: str, *names: str) -> Any:
    """The first plain value of an input with one of these names, at a node or what it is built on."""
    for key in _links(nodes, start):
        for name in names:
            value = nodes[key]["inputs"].get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return value
    return None


def _words(nodes: Mapping[str, Any], sampler: str, side: str) -> str:
    """The text behind an input "positive" or "negative"."""
    for key in _links(nodes, sampler):
        link = nodes[key]["inputs"].get(side)
        if isinstance(link, list) and link and str(link[0]) in nodes:
            text = _first(nodes, str(link[0]), "text", "text_g", "string", "value", "prompt")
            return text if isinstance(text, str) else ""
    return ""


def _of_sampler(nodes: Mapping[str, Any], key: str, samplers: int) -> Told:
    settings: dict[str, Any] = {}
    for name, (ours, kind) in NAMES.items():
        value = _first(nodes, key, name)
        if value is not None and ours not in settings and _is(value, kind):
            settings[ours] = kind(value)
    width, height = _first(nodes, key, "width"), _first(nodes, key, "height")
    if isinstance(width, int) and isinstance(height, int):
        settings["size"] = f"{width}x{height}"
    settings |= {name: text for name, side in (("prompt", "positive"), ("negative", "negative"))
                 if (text := _words(nodes, key, side))}  # fmt: skip
    model = _first(nodes, key, "ckpt_name", "unet_name", "model_name")
    loras = [node["inputs"]["lora_name"] for node in nodes.values() if isinstance(node["inputs"].get("lora_name"), str)]
    dropped = [f"model {model}"] if model is not None else []
    dropped += [f"LoRA {name}" for name in loras]
    dropped += [f"{name} {value}" for name in FURTHER if (value := _first(nodes, key, name)) not in (None, 1, 1.0, 0)]
    dropped += [f"{samplers - 1} further samplers"] if samplers > 1 else []
    shown = {
        **settings,
        **({"model": model} if model is not None else {}),
        **({"loras": ", ".join(loras)} if loras else {}),
    }
    return Told(PROGRAM, shown, settings, dropped)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, str) if kind is str else isinstance(value, int | float) and kind(value) == value
