"""Other ways to say a caption."""

import torch

from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.phrases import rephrasings
from sd_ext.training.train_text_encoder import tokenize
from sd_ext.training.train_text_to_image import Encoders, TextToImageTask

from .conftest import TINY_IMAGE


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
    settings = {**TINY_IMAGE, "data": str(picture_folder), "autoencoder": tiny_parts[0], "text_encoder": tiny_parts[1]}
    task = TextToImageTask(TextToImageConfig(**settings, rephrase=0.5))
    encoders, captions = task.encoders, task.pictures.captions
    indices = torch.arange(len(captions)).repeat(200)
    said = encoders.rephrase(indices, 0.5, torch.Generator().manual_seed(0))
    changed = said != indices
    assert 0.45 < float(changed.float().mean()) < 0.55
    rows = [tuple(row) for row in encoders.tokens.tolist()]
    possible = [{tuple(row) for row in tokenize(encoders.tokenizer, rephrasings(c)).tolist()} for c in captions]
    for own, other in zip(indices[changed].tolist(), said[changed].tolist(), strict=True):
        assert rows[other] in possible[own]
    assert {rows[i] for i in said[changed].tolist()} == set().union(*possible)
    assert rows[-1] == tuple(tokenize(encoders.tokenizer, [""])[0].tolist())


def test_a_rephrasing_is_never_the_caption_of_another_picture(tiny_parts):
    config = TextToImageConfig(**TINY_IMAGE, autoencoder=tiny_parts[0], text_encoder=tiny_parts[1], rephrase=0.5)
    encoders = Encoders(config, ["dog", "dog face"])
    assert "dog" in rephrasings("dog face")
    counts = (encoders.first[1:] - encoders.first[:-1]).tolist()
    assert counts == [len(rephrasings("dog")), len(rephrasings("dog face")) - 1]
