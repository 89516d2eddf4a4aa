"""Captions by machine, with tiny models of random weights: what the model says, beside pictures that have none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from sd_ext.cli import main
from sd_ext.errors import InputError, ModelError
from sd_ext.training.captioner.models import load_captioner
from sd_ext.training.captioner.write import write_captions
from sd_ext.training.data.sources import read_items

TAGS = ("red_thing", "blue_thing", "round", "long hair")


@pytest.fixture(scope="module")
def describer(tmp_path_factory) -> Path:
    """A BLIP that says random words."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    folder = tmp_path_factory.mktemp("describer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{chr(97 + n)}" for n in range(26))]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config=BlipTextConfig(
                **size, vocab_size=len(words), encoder_hidden_size=16, max_position_embeddings=32, bos_token_id=2,
                eos_token_id=3, sep_token_id=3, pad_token_id=0,
            ).to_dict(),
            vision_config=BlipVisionConfig(**size, image_size=32, patch_size=8).to_dict(),
            image_text_hidden_size=16, projection_dim=16,
        )
    )  # fmt: skip
    for p in model.parameters():
        p.data = torch.randn_like(p)
    model.text_decoder.cls.predictions.bias.data[:5] = -1e4  # words, and no special tokens
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    """A classifier that finds the first and the last of its tags in any picture, the last likelier."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("tagger")
    config = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        id2label=dict(enumerate(TAGS)), problem_type="multi_label_classification",
    )  # fmt: skip
    model = ViTForImageClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([1.0, -1.0, -2.0, 2.0])
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(picture_folder, tmp_path) -> Path:
    """Three pictures without captions, one of them broken, and one with a caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("red_bar.png", "blue_bar.png", "black_bar.png"):
        shutil.copy(picture_folder / name, folder)
    (folder / "black_bar.txt").write_text("mine")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.suffix in (".txt", ".caption")}


@torch.no_grad()
def test_the_caption_is_what_the_model_says(describer, pictures, capsys):
    from transformers import BlipForConditionalGeneration, BlipProcessor

    command = ["train", "caption", str(pictures), "--model", str(describer), "--tokens", "5", "--batch-size", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "broken.png: left out: no picture that Pillow can read",
        "2 captions written, 1 pictures had one, 1 left out",
    ]
    model, processor = BlipForConditionalGeneration.from_pretrained(describer), BlipProcessor.from_pretrained(describer)
    wanted = {"black_bar.txt": "mine"}
    for name in ("red_bar", "blue_bar"):
        inputs = processor(images=Image.open(pictures / f"{name}.png").convert("RGB"), return_tensors="pt")
        said = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        wanted[f"{name}.txt"] = f"{processor.decode(said[0], skip_special_tokens=True).strip()}\n"
    assert texts(pictures) == wanted
    assert len(wanted["red_bar.txt"]) > 5
    items = {item.name: item.caption for item in read_items(pictures)}
    assert items["red_bar.png"] == wanted["red_bar.txt"].strip()


def talker(folder: Path) -> Path:
    """A LLaVA that answers with random words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "what", "is", "here", "USER", "BOT", *map(chr, range(97, 123))]
    made = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**size, image_size=32, patch_size=8).to_dict(),
            text_config=LlamaConfig(**size, vocab_size=len(words), pad_token_id=0, eos_token_id=2).to_dict(),
            image_token_index=3, vision_feature_layer=-1,
        )
    )  # fmt: skip
    for p in model.parameters():
        p.data = torch.randn_like(p)
    model.lm_head.weight.data[:10] = 0  # letters are likelier than all else
    model.save_pretrained(folder)
    said = "{{ '<image> ' if part['type'] == 'image' else part['text'] }}"
    template = f"USER {{% for part in messages[0]['content'] %}}{said}{{% endfor %}} BOT"
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer, patch_size=8,
        vision_feature_select_strategy="default", chat_template=template, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@torch.no_grad()
def test_a_model_that_chats_is_asked_and_only_its_answer_taken(tmp_path, picture_folder):
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = talker(tmp_path)
    pictures = [Image.open(picture_folder / f"{name}.png").convert("RGB") for name in ("red_bar", "blue_circle")]
    said = load_captioner(str(folder), "", "what is here", 4, 0.5)(pictures)
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    for picture, text in zip(pictures, said, strict=True):
        inputs = processor(images=picture, text="USER <image> what is here BOT", return_tensors="pt")
        assert 3 in inputs["input_ids"]
        whole = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]
        assert whole[: inputs["input_ids"].shape[1]].tolist() == inputs["input_ids"][0].tolist()
        assert text == processor.decode(whole[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text


def test_tags_are_those_that_are_likely_enough(tagger):
    red = Image.new("RGB", (40, 30), "red")
    assert load_captioner(str(tagger), "", "", 5, 0.7)([red, red]) == ["long hair, red thing"] * 2
    assert load_captioner(str(tagger), "", "", 5, 0.8)([red]) == ["long hair"]
    assert load_captioner(str(tagger), "", "", 5, 0.95)([red]) == [""]


def say(*words: str):
    """A model that says one word after another, and then is interrupted."""
    left = list(words)

    def captioner(pictures):
        if not left:
            raise KeyboardInterrupt
        return [left.pop(0) for _ in pictures]

    return lambda: captioner


def test_it_goes_on_where_it_was_stopped_and_overwrites_nothing(pictures):
    with pytest.raises(KeyboardInterrupt):
        list(write_captions(str(pictures), say("one"), ".txt", 1))
    assert texts(pictures) == {"black_bar.txt": "mine", "blue_bar.txt": "one\n"}
    assert not [path for path in pictures.iterdir() if path.name.startswith(".")]
    (*_, last) = write_captions(str(pictures), say("two"), ".txt", 1)
    assert last == "1 captions written, 2 pictures had one, 1 left out"
    before = texts(pictures)
    assert before["red_bar.txt"] == "two\n"
    (pictures / "broken.png").unlink()
    (last,) = write_captions(str(pictures), lambda: pytest.fail("nothing to do, and the model is loaded"), ".txt", 1)
    assert last == "0 captions written, 3 pictures had one, 0 left out"
    assert texts(pictures) == before


def test_a_caption_that_appears_meanwhile_stays(pictures):
    def captioner(seen):
        (pictures / "red_bar.txt").write_text("faster")
        return [""] * (len(seen) - 1) + ["slower"]

    lines = list(write_captions(str(pictures), lambda: captioner, ".txt", 3))
    assert texts(pictures)["red_bar.txt"] == "faster"
    assert "blue_bar.png: left out: the model says nothing" in lines


def test_two_pictures_of_one_name_get_a_caption_each(pictures):
    with Image.open(pictures / "red_bar.png") as picture:
        picture.convert("RGB").save(pictures / "red_bar.jpg")
    list(write_captions(str(pictures), say("blue", "jpg", "png"), ".caption", 1))
    assert {item.name: item.caption for item in read_items(pictures)} == {
        "red_bar.jpg": "jpg", "red_bar.png": "png", "blue_bar.png": "blue", "black_bar.png": "mine", "broken.png": ""
    }  # fmt: skip


def test_what_cannot_be_captioned_or_caption(pictures, picture_folder, tiny_pipeline_dir, tmp_path):
    for data, ending, words in (
        (picture_folder, ".txt", "in metadata.jsonl, and files beside pictures would not be read"),
        (tmp_path / "gone", ".txt", "is no folder"),
        (pictures, ".md", "end in .txt or .caption"),
    ):
        with pytest.raises(InputError, match=words):
            list(write_captions(str(data), say(), ending, 1))
    with pytest.raises(ModelError, match="no model at"):
        load_captioner(str(tmp_path / "gone/model/there"), "", "", 5, 0.5)
    with pytest.raises(ModelError, match="an image-to-text model or an image classifier"):
        load_captioner(str(tiny_pipeline_dir / "text_encoder"), "", "", 5, 0.5)
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
    (own / "mine.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match="without code of its own"):
        load_captioner(str(own), "", "", 5, 0.5)
    assert texts(pictures) == {"black_bar.txt": "mine"}
