"""Rephrases captions, so that a model also understands prompts that are worded differently from its captions.

`red apple` becomes `a red apple`, `a picture of a red apple`, `apple`, ...
"""

from __future__ import annotations

LITTLE = frozenset(
    ["a", "an", "and", "at", "behind", "by", "for", "in", "of", "off", "on", "the", "to", "with", "without"]
)


def article(caption: str) -> str:
    """The indefinite article of a caption, "a" or "an", by its first letter."""
    return "an" if caption[:1] in "aeiou" else "a"


def rephrasings(caption: str) -> list[str]:
    """The caption with an article, within a phrase, and with one word left out; empty for an empty caption.

    Articles and prepositions (`LITTLE`) at the ends of a shortened caption are dropped as well: `slice of pizza`
    becomes `pizza`, never `of pizza`.
    """
    if not caption:
        return []
    named = f"{article(caption)} {caption}"
    phrases = [named, f"the {caption}", f"a picture of {named}", f"a drawing of {named}", f"{caption} emoji"]
    words = caption.split()
    for i in range(len(words)):
        rest = words[:i] + words[i + 1 :]
        while rest and rest[0] in LITTLE:
            rest = rest[1:]
        while rest and rest[-1] in LITTLE:
            rest = rest[:-1]
        if rest and words[i] not in LITTLE:
            phrases.append(" ".join(rest))
    return list(dict.fromkeys(phrases))
