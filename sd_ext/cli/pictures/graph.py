"""A graph of ComfyUI: its nodes, and what an input of one holds, followed along links.

An input is a value, or [number of a node, number of its output]. Nodes of others have any names and inputs, so a link
is followed where it cannot be misunderstood: to a node that holds one number or one text, or that joins texts. What
else a node makes of its inputs is not known here, and not guessed.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

MOST = 10_000  # nodes that are looked at
DEEP = 100  # links that are followed one after another
LONGEST = 2**20  # characters that texts are joined to
NUMBERS = "value", "int", "float", "number", "seed", "noise_seed"  # inputs of nodes that hold a number
TEXTS = "value", "string", "text", "prompt"  # of those that hold a text
GIVES = {"ShowText|pysssss": "text", "ImpactWildcardProcessor": "populated_text"}  # the one of several that is given
JOINS = re.compile("concat|join", re.IGNORECASE)
PART = re.compile(r"(?:string|text)_?([a-z]|\d+)", re.IGNORECASE)


class Link(NamedTuple):
    """Where an input comes from: the number of a node, and of its output."""

    key: str
    output: int


class Graph:
    """Nodes by their number.

    Args:
        nodes: each with a text `class_type` and an object `inputs`.
    """

    def __init__(self, nodes: Mapping[str, Any]):
        self.nodes = nodes
        self.read: set[str] = set()
        """Nodes of which something was taken."""
        self._looks = 0

    def kind(self, key: str) -> str:
        """The class of a node."""
        return str(self.nodes[key]["class_type"])

    def inputs(self, key: str) -> Mapping[str, Any]:
        """Values and links of a node, by name."""
        return self.nodes[key]["inputs"]

    def origin(self, key: str, name: str) -> Link | None:
        """Where an input comes from; None if it holds a value, or its node is not there."""
        value = self.inputs(key).get(name)
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], int):
            return None
        return Link(str(value[0]), value[1]) if str(value[0]) in self.nodes else None

    def links(self, key: str) -> dict[str, Link]:
        """All links of a node, by the names of its inputs."""
        return {name: link for name in self.inputs(key) if (link := self.origin(key, name))}

    def reach(self, *starts: str, without: Collection[str] = (), ends: Collection[str] = ()) -> Iterator[str]:
        """The nodes that some are built on, themselves first, nearest first.

        Args:
            starts: the nodes to start at.
            without: names of inputs that are not followed.
            ends: nodes that are not gone beyond.
        """
        waiting, seen = list(starts), set(starts)
        for key in waiting:  # which grows
            yield key
            for name, link in self.links(key).items() if key in starts or key not in ends else ():
                if name not in without and link.key not in seen and len(seen) < MOST:
                    seen.add(link.key)
                    waiting.append(link.key)

    def may_look(self, deep: int) -> bool:
        """Whether one more node may be looked at, `deep` links away; graphs can be made to have no end."""
        self._looks += 1
        return deep < DEEP and self._looks < MOST

    def number(self, key: str, name: str, deep: int = 0) -> float | None:
        """The number that an input holds, or that the node it is linked to holds; None if that is not to be told."""
        value, link = self.inputs(key).get(name), self.origin(key, name)
        if is_number(value):
            self.read.add(key)
            return value
        if link is None or not self.may_look(deep):
            return None
        held = [
            each for each, value in self.inputs(link.key).items() if is_number(value) or self.origin(link.key, each)
        ]
        known = len(held) == 1 and (held[0].lower() in (*NUMBERS, name) or self._passes_on(link.key))
        found = self.number(link.key, held[0], deep + 1) if known else None
        self.read |= {key, link.key} if found is not None else set()
        return found

    def text(self, key: str, name: str, deep: int = 0) -> str | None:
        """The text that an input holds, or that the node it is linked to gives; None if that is not to be told."""
        value, link = self.inputs(key).get(name), self.origin(key, name)
        found = value if isinstance(value, str) else self.string(link.key, (name,), deep + 1) if link else None
        self.read |= {key} if found is not None else set()
        return found

    def string(self, key: str, names: Collection[str] = (), deep: int = 0) -> str | None:
        """The text that a node gives; None if that is not to be told.

        Args:
            key: the node.
            names: further names of inputs that may hold it.
            deep: how many links were followed.
        """
        if not self.may_look(deep):
            return None
        inputs, links = self.inputs(key), self.links(key)
        if JOINS.search(self.kind(key)):
            return self._joined(key, deep)
        if (name := GIVES.get(self.kind(key))) in inputs:
            return self.text(key, str(name), deep)
        held = [name for name, value in inputs.items() if isinstance(value, str) or is_number(value) or name in links]
        known = len(held) == 1 and (held[0].lower() in (*TEXTS, *names) or self._passes_on(key))
        return self.text(key, held[0], deep) if known else None

    def _joined(self, key: str, deep: int) -> str | None:
        """The texts of a node that joins texts, joined."""
        parts = sorted((name for name in self.inputs(key) if PART.fullmatch(name)), key=lambda name: (len(name), name))
        told = [self.text(key, name, deep) for name in parts]
        texts = [text for text in told if text is not None]
        if not texts or len(texts) < len(told):
            return None
        between = next((self.text(key, name) for name in ("delimiter", "separator") if name in self.inputs(key)), "")
        if between is None or sum(map(len, texts)) + len(between) * len(texts) > LONGEST:
            return None
        if str(self.inputs(key).get("clean_whitespace")).lower() == "true":  # WAS Node Suite's
            texts = [text.strip() for text in texts if text.strip()]
        return between.replace("\\n", "\n").join(texts)

    def _passes_on(self, key: str) -> bool:
        """Whether a node gives what it gets."""
        return "reroute" in self.kind(key).lower()

    def named(self, key: str, name: str) -> str:
        """An input that cannot be told, in words: "steps of MathExpression", or with its value."""
        link = self.origin(key, name)
        if link is None:
            return f"{name} {short(self.inputs(key).get(name))}"
        self.read.add(link.key)
        return f"{name} of {short(self.kind(link.key))}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any) -> str:
    """A value in a phrase, on one line and cut where it is long."""
    return textwrap.shorten(str(value), 80, placeholder="...")
