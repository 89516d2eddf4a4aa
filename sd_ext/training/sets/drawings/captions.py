"""Says what a scene shows, each time in other words: fills the forms of the grammar."""

from __future__ import annotations

import re

import numpy as np

from sd_ext.training.sets.drawings.grammar import MADE, Grammar, any_of, pick
from sd_ext.training.sets.drawings.held_out import PHRASINGS, TRAIN, HeldOut
from sd_ext.training.sets.drawings.scene import Scene

NEW_PHRASINGS = 0.02  # of pictures of one thing are said in a held-out way; they go to that split
WHITE_SAID = 0.1
ATTACHED = ("in ", "on ", "as ", "with ", "at ", "under ", "while ")  # what follows without a comma


class Speaker:
    """Says scenes: `speaker.say(scene, random)`."""

    def __init__(self, grammar: Grammar, held_out: HeldOut):
        self.grammar, self.held_out, self.speech = grammar, held_out, grammar.speech

    def say(self, scene: Scene, draw: np.random.Generator) -> tuple[str, str]:
        """(the caption, the split that scene and caption belong to)."""
        split = scene.split(self.held_out)
        style = self._style(scene, draw)
        before = style if style and draw.random() < 0.5 else ""
        choices = self.grammar.style_before.get(scene.style, [])
        adjective = any_of(draw, choices) if before and choices else ""
        form, split = self._form(scene, draw, split, bool(style))
        formed = scene.style in MADE and form in self.grammar.style_forms.get(scene.style, [])
        core = self._fill(form, scene, draw, "" if formed else adjective)
        parts = [core]
        if scene.shows == "one" and (tags := scene.drawings[0].tags) and draw.random() < self._share("tag"):
            parts += [tags[i] for i in draw.permutation(len(tags))[: 1 + draw.integers(2)]]
        if style and not adjective and not formed:
            parts.append(any_of(draw, self.grammar.style_behind[scene.style]))
        if said := self._ground(scene, draw):
            parts.insert(1 if draw.random() < 0.7 else len(parts), said)
        return self._finish(parts, draw), split

    def _style(self, scene: Scene, draw: np.random.Generator) -> str:
        said = scene.style in MADE or draw.random() < self._share("style")
        named = said and scene.shows != "alone" and self.grammar.style_behind[scene.style]
        return scene.style if named else ""

    def _share(self, word: str) -> float:
        return self.grammar.words[word] / 100

    def _form(self, scene: Scene, draw: np.random.Generator, split: str, styled: bool) -> tuple[str, str]:
        """(the form, the split): a held-out form moves a picture there."""
        if scene.shows != "one":
            forms = getattr(self.grammar, scene.place or scene.shows)
            return pick(draw, forms), split
        made = self.grammar.style_forms.get(scene.style, [])
        if made and draw.random() < 0.7:
            return any_of(draw, made), split
        if split == TRAIN and self.held_out.phrasings and draw.random() < NEW_PHRASINGS:
            return any_of(draw, self.held_out.phrasings), PHRASINGS
        return pick(draw, self.grammar.one), split

    def _fill(self, form: str, scene: Scene, draw: np.random.Generator, adjective: str) -> str:
        """A form with its words: {a thing} is article, size, style, colour and name."""
        things = [self._thing(scene, place, draw, adjective) for place in range(len(scene.drawings))]
        slots = {"number": "", "ground": scene.ground_colour or scene.ground}
        if scene.shows == "several":
            slots["number"] = any_of(draw, self.grammar.number_said[str(scene.number)])
        slots["a ground"] = self.speech.article(slots["ground"], slots["ground"])
        for key, (words, name) in zip(("one", "two") if len(things) == 2 else ("thing",), things, strict=False):
            before = words.removesuffix(name)
            slots |= {key: words, f"a {key}": self.speech.article(words, name)}
            slots |= {f"{key}s": before + self.speech.plural(name)}
            slots |= {f"a single {key}": f"a single {words}" if self.speech.counted(name) else words}
        return re.sub(r"\{([a-z ]+)\}", lambda slot: slots[slot[1]], form)

    def _thing(self, scene: Scene, place: int, draw: np.random.Generator, adjective: str) -> tuple[str, str]:
        """(a thing's words, its name, with which they end)."""
        drawing, colour = scene.drawings[place], scene.colours[place]
        name = any_of(draw, drawing.names) if draw.random() < self._share("other") else drawing.concept
        if scene.style == "silhouette" and colour == "black" and draw.random() < 0.7:
            colour = ""
        if colour and draw.random() < 0.12:
            colour = any_of(draw, [colour, *self.grammar.colour_said.get(colour, [])])
        size = any_of(draw, self.grammar.size_said[scene.size]) if scene.size != "usual" else ""
        return " ".join(word for word in (size, adjective, colour, name) if word), name

    def _ground(self, scene: Scene, draw: np.random.Generator) -> str:
        """How the ground is said; "" where it is not."""
        if scene.shows == "alone" or scene.ground == "tint" or (scene.ground == "white" and draw.random() > WHITE_SAID):
            return ""
        if scene.ground in self.grammar.scenery:
            return any_of(draw, self.grammar.scenery[scene.ground]["said"])
        name = scene.ground_colour or scene.ground
        form = any_of(draw, self.grammar.said_ground[scene.ground])
        return form.replace("{a ground}", self.speech.article(name, name)).replace("{ground}", name)

    def _finish(self, parts: list[str], draw: np.random.Generator) -> str:
        """The parts as one text, now and then as a list, in capitals, with a full stop or a slip of the pen."""
        if len(parts) > 1 and draw.random() < self._share("turned"):
            text = ", ".join(parts[i] for i in draw.permutation(len(parts)))
        else:
            text = parts[0] + "".join(f" {p}" if p.startswith(ATTACHED) else f", {p}" for p in parts[1:])
        if draw.random() < self._share("typo"):
            text = slip(text, draw)
        if draw.random() < self._share("stop"):
            text += "."
        if draw.random() < self._share("capital"):
            text = text[:1].upper() + text[1:]
        return text.upper() if draw.random() < self._share("shouted") else text


def slip(text: str, draw: np.random.Generator) -> str:
    """Two neighbours within a long word change places."""
    places = [m.start() + 1 for m in re.finditer(r"(?<=[a-z])[a-z](?=[a-z]{2})", text)]
    if not places:
        return text
    i = any_of(draw, places)
    return text[: i - 1] + text[i] + text[i - 1] + text[i + 1 :]
