"""The tiny pipelines with a tokenizer that knows commas. 24 tokens: chunks of 22."""

from __future__ import annotations

import pytest
import torch

from ..conftest import WORDS, build_tiny_pipeline, build_tiny_sdxl_pipeline


def tokenizer(padding="<|endoftext|>"):
    """The letters of tests/conftest.py, with commas and brackets in place of some digits."""
    from transformers import CLIPTokenizer

    others = dict(zip("0123456", ",()[]:!", strict=True))
    words = [word.replace(word[0], others.get(word[0], word[0]), 1) for word in WORDS]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24, pad_token=padding)


def with_a_trained_norm(encoder):
    """A new layer norm gives states of mean 0, where no mean can be restored."""
    torch.manual_seed(2)
    (norm,) = (module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    torch.nn.init.normal_(norm.bias, 0.2, 0.3)


@pytest.fixture(scope="session")
def _sd():
    pipe = build_tiny_pipeline()
    pipe.tokenizer = tokenizer()
    with_a_trained_norm(pipe.text_encoder)
    return pipe


@pytest.fixture(scope="session")
def _sdxl():
    pipe = build_tiny_sdxl_pipeline()
    pipe.tokenizer, pipe.tokenizer_2 = tokenizer(), tokenizer("!")
    return pipe


@pytest.fixture
def sd(_sd):
    """Shared by all tests: leave it as it is."""
    return _sd


@pytest.fixture
def sdxl(_sdxl):
    """Shared by all tests: leave it as it is. Its second tokenizer fills up with `!`, as SDXL's."""
    return _sdxl
