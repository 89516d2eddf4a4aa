"""Other ways to say a caption, so that a model listens to people and not only to its captions.

`red apple` is also `a red apple`, `a picture of a red apple`, `apple`, ...
"""

from __future__ import annotations

LITTLE = frozenset(
    ["a", "an", "and", "at", "behind", "by", "for", "in", "of", "off", "on", "the", "to", "with", "without"]
)


def article(caption: str) -> str:
    return "an" if caption[:1] in "aeiou" else "a"


def rephrasings(caption: str) -> list[str]:
    """The caption with an article, in a phrase, and short of one of its words; none for an empty caption.

    A word goes only if one remains that says something; `slice of pizza` becomes `pizza`, never `of pizza`.
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
