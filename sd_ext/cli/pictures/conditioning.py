"""The words behind the inputs `positive` and `negative` of a sampler of ComfyUI."""

from __future__ import annotations

from collections.abc import Collection

from .graph import Graph, Link, is_number, short

ROLES = "positive", "negative"
OWN = {"clip", "ckpt_name", "model", "pipe", "basic_pipe"}
"""Inputs of nodes that take both texts and give more than both conditionings: their outputs have any order."""

ENCODED = "text", "text_g", "clip_g", "text_l", "clip_l", "t5xxl", "llama", "prompt", "string", "value"
"""Inputs of nodes that encode words, those first that stand for the others where they differ."""


class Words:
    """The words of a graph.

    Args:
        graph: where they stand.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.dropped: list[str] = []
        """A phrase for all that was met on the way and is not in the words."""

    def of(self, own: Collection[str], side: str) -> str:
        """The words of a side.

        Args:
            own: the sampler, and the nodes that its settings come from.
            side: "positive" or "negative".

        Returns:
            The words; "" if there are none, or they cannot be told, which `dropped` then says.
        """
        names = (side, "conditioning") if side == "positive" else (side,)
        for key in own:
            for name in names:
                if name in self.graph.inputs(key):
                    return self._of_input(key, name, side, 0)
        return ""

    def _of_input(self, key: str, name: str, side: str, deep: int) -> str:
        """The words behind an input of a node."""
        if link := self.graph.origin(key, name):
            return self._of_output(link, side, deep + 1)
        text = self.graph.text(key, name)
        if text is None:
            self.dropped.append(self.graph.named(key, name))
        return text or ""

    def _of_output(self, link: Link, side: str, deep: int) -> str:
        """The words in what a node gives: nodes that pass conditionings on, join them, or make them of words."""
        graph, key = self.graph, link.key
        inputs, kind = graph.inputs(key), graph.kind(key)
        if not graph.may_look(deep):
            return self._not_told(key, side)
        if kind == "ConditioningZeroOut":  # its words have no meaning left
            graph.read.add(key)
            return ""
        if set(ROLES) <= set(inputs):  # output 0 is what `positive` becomes, output 1 what `negative` does
            by_output = not OWN & set(inputs) and link.output in (0, 1)
            return self._of_input(key, ROLES[link.output] if by_output else side, side, deep)
        if parts := [name for name in graph.links(key) if name.startswith("conditioning")]:
            return self._of_parts(key, sorted(parts, key=lambda name: name.endswith("_from")), side, deep)
        if names := [name for name in ENCODED if isinstance(inputs.get(name), str) or graph.origin(key, name)]:
            return self._encoded(key, names, side)
        if (text := graph.string(key)) is not None:
            return text
        links = list(graph.links(key).values())
        return self._of_output(links[0], side, deep + 1) if len(links) == 1 else self._not_told(key, side)

    def _of_parts(self, key: str, names: list[str], side: str, deep: int) -> str:
        """The words of the first conditioning that a node takes. Those of others are said: they are not one text."""
        first, *others = names
        text = self._of_input(key, first, side, deep)
        for name in others:
            if more := self._of_input(key, name, side, deep):
                self.graph.read.add(key)
                self.dropped.append(f"{side} text {short(more)!r} ({self.graph.kind(key)})")
        return text

    def _encoded(self, key: str, names: list[str], side: str) -> str:
        """The words that a node encodes. Where its text encoders get different ones, the further ones are said."""
        graph = self.graph
        texts = {name: graph.text(key, name) for name in names}
        self.dropped += [f"{side} {graph.named(key, name)}" for name, text in texts.items() if text is None]
        told = {name: text for name, text in texts.items() if text}
        main = next(iter(told.values()), "")
        self.dropped += [f"{side} {name} {short(text)!r}" for name, text in told.items() if text != main]
        if numbers := [name for name, value in graph.inputs(key).items() if is_number(value)]:
            self.dropped.append(f"{'/'.join(numbers)} of {graph.kind(key)}")
        return main

    def _not_told(self, key: str, side: str) -> str:
        self.graph.read.add(key)
        self.dropped.append(f"{side} text of {short(self.graph.kind(key))}")
        return ""
