"""Models of transformers that say what a picture shows: image-to-text models, and classifiers as taggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sd_ext.errors import ModelError
from sd_ext.models import is_hub_id
from sd_ext.training.data.items import one_line

ASKED = "Describe this picture in one sentence."
"""What a model that chats is asked, if no prompt is given."""

Captioner = Callable[[Sequence[Image.Image]], list[str]]
"""Pictures (RGB) -> a text for each, which may be empty."""


class Describer:
    """An image-to-text model: writes a sentence about each picture, by taking the likeliest word each time.

    Args:
        model, processor: of transformers.
        prompt: the text begins with it; a model that chats is asked it.
        most: tokens of a text, at most.
    """

    def __init__(self, model: Any, processor: Any, prompt: str, most: int):
        self.model, self.processor, self.prompt, self.most = model, processor, prompt, most
        self.chats = bool(getattr(processor, "chat_template", None))

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(images=list(pictures), return_tensors="pt", **self.asked(len(pictures)))
        inputs = inputs.to(self.model.device)
        said = self.model.generate(**inputs, max_new_tokens=self.most, do_sample=False)
        if self.chats:  # what it was asked stands before the answer
            said = said[:, inputs["input_ids"].shape[1] :]
        return [one_line(text) for text in self.processor.batch_decode(said, skip_special_tokens=True)]

    def asked(self, count: int) -> dict[str, Any]:
        """The text that goes with the pictures, as arguments of the processor."""
        if self.chats:
            content = [{"type": "image"}, {"type": "text", "text": self.prompt or ASKED}]
            turns = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
            return {"text": [text] * count, "padding": True}
        return {"text": [self.prompt] * count, "padding": True} if self.prompt else {}


class Tagger:
    """A classifier: the names of its classes, those likeliest first, with commas between them.

    Each class is judged by itself, so that several may be true of a picture; of a model that was trained to tell one
    class only, the likeliest is taken.

    Args:
        model, processor: of transformers.
        threshold: classes that are at least so likely are taken.
    """

    def __init__(self, model: Any, processor: Any, threshold: float):
        self.model, self.processor, self.threshold = model, processor, threshold
        self.several = model.config.problem_type == "multi_label_classification"

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        scores = self.model(**inputs).logits.float()
        return [", ".join(self.names(each)) for each in scores]

    def names(self, scores: torch.Tensor) -> list[str]:
        """The names of the classes that are taken, given the scores of all."""
        order = scores.argsort(descending=True).tolist()
        likely = scores.sigmoid() if self.several else scores.softmax(0)
        taken = [place for place in order if likely[place] >= self.threshold] if self.several else order[:1]
        return [one_line(str(self.model.config.id2label[place]).replace("_", " ")) for place in taken]


def load_captioner(name: str, revision: str, prompt: str, most: int, threshold: float) -> Captioner:
    """Load a model, from safetensors only; nothing that comes with it is run.

    Args:
        name: a folder, or an id on the Hub.
        revision: the branch, tag or commit on the Hub; "" for the main branch.
        prompt, most: see `Describer`.
        threshold: see `Tagger`.

    Raises:
        ModelError: there is no such model, it has no safetensors, needs code of its own, or is of another kind.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageClassification,
        AutoModelForImageTextToText,
    )

    if not Path(name).is_dir() and not is_hub_id(name):
        raise ModelError(f"no model at {name}; name the folder of a model of transformers, or an id on the Hub")
    source: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = AutoConfig.from_pretrained(name, **source)
        model: Any  # transformers annotates its `to` wrongly
        kind = (getattr(config, "architectures", None) or [""])[0]
        if kind.endswith("ForImageClassification"):
            model = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True, **source)
            return Tagger(model.eval().to(device), AutoImageProcessor.from_pretrained(name, **source), threshold)
        model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, **source)
        return Describer(model.eval().to(device), processor_of(name, source), prompt, most)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{name} cannot be used: {reason}; an image-to-text model or an image classifier of transformers is "
            "needed, in safetensors and without code of its own"
        ) from error


def processor_of(name: str, source: dict[str, Any]) -> Any:
    """What prepares pictures and texts for a model: its processor, or one made of tokenizer and image processor."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    found: Any = AutoProcessor.from_pretrained(name, **source)
    if not hasattr(found, "image_processor"):
        found = Pair(AutoImageProcessor.from_pretrained(name, **source), AutoTokenizer.from_pretrained(name, **source))
    if tokenizer := getattr(found, "tokenizer", None):
        tokenizer.padding_side = "left"  # answers are written at the right
    return found


class Pair:
    """An image processor and a tokenizer that no processor holds together, as of encoder-decoder models."""

    chat_template = None

    def __init__(self, image_processor: Any, tokenizer: Any):
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def __call__(self, images: list[Image.Image], return_tensors: str, **text: Any) -> Any:
        if text:
            raise ModelError("this model takes no prompt; leave it out")
        return self.image_processor(images=images, return_tensors=return_tensors)

    def batch_decode(self, tokens: Any, **options: Any) -> list[str]:
        """The texts of rows of tokens."""
        return self.tokenizer.batch_decode(tokens, **options)
