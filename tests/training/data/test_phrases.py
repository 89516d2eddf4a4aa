"""Other ways to say a caption."""

from collections import Counter

import pytest

from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.data.order import Pass
from sd_ext.training.data.phrases import rephrasings
from sd_ext.training.data.settings import CaptionSettings
from sd_ext.training.data.texts import texts_of, wordings
from sd_ext.training.train_text_to_image import TextToImageTask

from ..conftest import image_settings


def test_rephrasings():
    said = rephrasings("slice of pizza")
    assert {"a slice of pizza", "a picture of a slice of pizza", "pizza", "slice"} <= set(said)
    assert rephrasings("octopus")[0] == "an octopus"
    assert "apple" in rephrasings("red apple")
    assert all(phrase.split()[0] != "of" for phrase in said)
    assert "slice of pizza" not in said
    assert len(said) == len(set(said))
    assert rephrasings("") == []


def test_a_share_of_captions_is_said_in_another_way(picture_folder, tiny_parts):
    settings = image_settings(picture_folder, tiny_parts, rephrase=0.5, text_dropout=0.25, cache=False)
    task = TextToImageTask(TextToImageConfig.of(**settings))
    captions, samples = task.pictures.captions, tuple(range(11))
    seen = {caption: Counter() for caption in captions}
    for step in range(200):
        for caption, text in zip(captions, task.read(Pass(step, samples, samples, 11)).texts, strict=True):
            seen[caption][task.texts[text] if text >= 0 else None] += 1
    total = sum(sum(each.values()) for each in seen.values())
    dropped = sum(each.pop(None) for each in seen.values())
    assert dropped / total == pytest.approx(0.25, abs=0.04)
    changed = sum(n for caption, each in seen.items() for text, n in each.items() if text != caption)
    assert changed / (total - dropped) == pytest.approx(0.5, abs=0.05)
    assert all(set(each) == {caption, *rephrasings(caption)} for caption, each in seen.items())


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_the_share_is_what_was_asked_for(share):
    texts = wordings(CaptionSettings(), 0, "red apple", {"red apple"}, share)
    assert sum(text != "red apple" for text in texts) / len(texts) == pytest.approx(share, rel=0.01)


def test_a_rephrasing_is_never_the_caption_of_another_picture():
    assert "dog" in rephrasings("dog face")
    choices, texts = texts_of(CaptionSettings(), 0, ["dog", "dog face", "dog"], rephrase=0.5)
    assert choices[0] == choices[2]
    said = [{texts[n] for n in numbers} for numbers in choices]
    assert said[0] == {"dog", *rephrasings("dog")}
    assert said[1] == {"dog face", *rephrasings("dog face")} - {"dog"}
