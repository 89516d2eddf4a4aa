"""`sd-ext train look`: a page and JSON that say what a run would train on, and nothing half-written."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sd_ext.cli import main
from sd_ext.errors import InputError
from sd_ext.training.doctor import look
from sd_ext.training.doctor.settings import LookConfig
from sd_ext.training.doctor.tokens import in_pieces
from sd_ext.training.doctor.twins import find_twins, small
from sd_ext.training.model.text_encoders import tokenize

from .messy import make_messy, scene

NAMELESS = "is a link to a folder that it lies in, which is not followed"
USED = {  # name -> (width and height seen, text, notes)
    "10_sks cat/named.png": (
        "64x64", "words of named", ["the 10 of 10_sks cat is a name; folder_repeats reads it as repeats"]
    ),
    "<b>&.png": ("64x64", "<script>alert(1)</script> qxv zkw pjf vqx jzk", []),
    "LOUD.PNG": ("64x64", "words of LOUD", []),
    "again.jpg": ("64x64", "words of again", []),
    "clear.webp": ("64x64", "words of clear", []),
    "cmyk.jpg": ("64x64", "words of cmyk", ["is of CMYK without a colour profile; its colours are a guess"]),
    "deep.png": ("64x64", "words of deep", []),
    "float.tif": ("64x64", "words of float", ["is of floating point; 1 is taken for white"]),
    "int32.tiff": ("64x64", "words of int32", ["is of 32 bits; 255 is taken for white"]),
    "lines.png": ("64x64", "first line second line", ["the 2 lines of its caption are read as one"]),
    "link.png": ("64x64", "words of plain", []),
    "linked/inner.png": ("64x64", "words of inner", []),
    "long.png": ("64x64", " ".join(["word"] * 40), []),
    "masked.png": ("64x64", "words of masked", []),
    "mirrored.png": ("80x48", "words of mirrored", []),
    "moving.gif": ("64x64", "words of moving", ["holds 3 pictures, of which the first is taken"]),
    "palette.png": ("64x64", "words of palette", []),
    "phone.jfif": ("64x64", "loud ending", []),
    "photo.jpg": ("80x48", "a photo, turned", []),
    "plain.png": ("64x64", "words of plain", []),
    "same.png": ("64x64", "words of same", []),
    "sub/inner.png": ("64x64", "words of inner", []),
    "utf16.png": ("64x64", "sixteen", []),
    "wide.bmp": ("80x48", "words of wide", ["67% of it is cut off at 80 x 48"]),
}  # fmt: skip
TWINS = {
    "link.png": "nearly the same as again.jpg",
    "plain.png": "nearly the same as again.jpg",
    "photo.jpg": "nearly the mirror image of mirrored.png",
    "same.png": "the same file as LOUD.PNG",
    "sub/inner.png": "the same file as linked/inner.png",
}
LEFT_OUT = {
    "0_off/zero.png": "its folder 0_off says 0 repeats; rename it to train on it",
    "bad_caption.png": "its caption bad_caption.txt is not UTF-16 text from line 1 on; save it as UTF-8",
    "cut.png": "image file is truncated",
    "empty_caption.png": "no caption",
    "folder_out": "is a link to a folder, which is not followed, since it leads out; name that folder as "
    "data, or copy it here",
    "gone.png": "{folder}/gone.png is a link that leads nowhere",
    "leads_out.png": "{folder}/leads_out.png is a link that leads out of {folder}",
    "linked/circle": NAMELESS,
    "nothing.png": "no picture that Pillow can read",
    "other_mask.png": "ValueError: the mask has 64 x 32 and the picture 64 x 64 pixels; they must have the same "
    "proportions",
    "pipe.png": "{folder}/pipe.png is a named pipe, not a file",
    "silent.png": "no caption",
    "sub/circle": NAMELESS,
    "text.png": "no picture that Pillow can read",
    "tiny.png": "too small: 8 x 8, the shorter side must have 16 pixels",
    "utf16_bare.png": "its caption utf16_bare.txt holds NUL characters: it is no text, or UTF-16 without a byte-order "
    "mark; save it as UTF-8",
}  # fmt: skip
NOT_USED = {
    ".DS_Store": "hidden: its name begins with a dot",
    "README.md": "no picture, caption or metadata",
    "a.zip": "an archive, which is not opened",
    "dir.png/list.parquet.bak": "no picture, caption or metadata",
    "film.mp4": "a video",
    "latents.npz": "a cache or a model",
    "notes.json": "metadata of another name; only metadata.jsonl and metadata.csv are read",
    "orphan.mask.png": "named like a mask, and there is no picture orphan",
    "orphan.txt": "a text, and there is no picture orphan",
    "plain.caption": "a caption, but plain.txt is taken for plain.png",
    "raw.CR2": "a raw or layered picture, which is not read; save it as PNG",
}


class Outline(HTMLParser):
    """The rows of tables, and of each picture its classes, name, lists and the share that its frame shows."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.cards: list[dict] = []
        self.open: list[str] = []
        self.outside: list[str] = []  # what the page would load
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.outside += [v for name, v in attrs if name in ("src", "href") and not v.startswith("data:image/jpeg")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "article":
            self.cards.append({"classes": set(values["class"].split()), "name": "", "shots": 0, "frame": ""})
        elif tag == "img":
            self.cards[-1]["shots"] += 1
        elif tag == "i":
            self.cards[-1]["frame"] = values["style"]
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "h3" in self.open and self.open[-1] != "span":
            self.cards[-1]["name"] += data.strip()


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """The messy folder, and the page and JSON of it."""
    folder = make_messy(tmp_path_factory.mktemp("look"))
    page = folder.parent / "look.html"
    config = LookConfig.of(
        data=str(folder), resolution=(64,), bucket_step=16, page=str(page), json=True, model="embedded", flip=True
    )
    return folder, page.read_text() if (said := look.run(config)) and page.exists() else "", json.loads(said)


def test_a_messy_folder_is_told_exactly(looked):
    folder, page, found = looked
    seen = {p["name"]: p for p in found["pictures"]}
    sizes = {name: "x".join(map(str, reversed(p["views"][0]["size"]))) for name, p in seen.items()}
    assert {n: (sizes[n], p["texts"][0]["text"], p["notes"]) for n, p in seen.items()} == USED
    assert {n: p["nearly_the_same"] for n, p in seen.items() if p["nearly_the_same"]} == TWINS
    assert {n for n, p in seen.items() if p["masked"]} == {"masked.png"}
    assert seen["photo.jpg"]["original"] == [64, 96]  # turned
    left_out = {name: why.format(folder=folder) for name, why in LEFT_OUT.items()}
    assert {each["name"]: each["why"] for each in found["left_out"]} == left_out
    assert found["not_used"] == NOT_USED
    assert found["totals"] == {
        "pictures": 24, "samples": 24, "sizes": {"64 x 64": 21, "80 x 48": 3}, "left_out": 16, "not_used": 11,
        "nearly_the_same": 5, "cut": 2, "held_out": 0,
    }  # fmt: skip
    outline = Outline(page)
    assert [card["name"] for card in outline.cards] == list(seen)
    rows = {tuple(row) for row in outline.rows}
    assert rows >= {("64 x 64", "21"), ("80 x 48", "3"), *left_out.items(), *NOT_USED.items()}
    assert len(outline.rows) == 3 + 2 + 16 + 11
    assert not outline.outside
    assert "<script>alert" not in page
    cards = {card["name"]: card for card in outline.cards}
    assert {name for name, card in cards.items() if "cut" in card["classes"]} == {"<b>&.png", "long.png"}
    assert {name for name, card in cards.items() if "twin" in card["classes"]} == set(TWINS)
    assert cards["masked.png"]["shots"] == 2
    frame = dict(part.split(": ") for part in cards["wide.bmp"]["frame"].split("; "))
    assert float(frame["width"][:-1]) == pytest.approx(100 * 80 / 240, abs=0.01)
    assert float(frame["left"][:-1]) == pytest.approx(100 * 80 / 240, abs=0.01)
    assert float(frame["height"][:-1]) == 100


def test_tokens_are_those_the_encoder_reads(looked):
    from sd_ext.models import find_model

    tokenizer = find_model("embedded").load("tokenizer")
    texts = ["a red circle", "word " * 40, "", "naïve 猫"]
    for text, pieces in zip(texts, in_pieces(tokenizer, texts), strict=True):
        ids = tokenize(tokenizer, [text])[0].tolist()
        inner = ids[1 : ids.index(tokenizer.eos_token_id, 1)]
        assert len(inner) == pieces.kept
        assert pieces.kept + len(pieces.cut) == len(pieces.tokens)
    (long,) = (p for p in looked[2]["pictures"] if p["name"] == "long.png")
    assert long["texts"][0]["read"] == tokenizer.model_max_length - 2 < len(long["texts"][0]["tokens"])


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def test_near_duplicates_are_found_in_any_size_and_mirrored_and_others_are_not():
    scenes = [scene(seed, 96, 96) for seed in range(600)]  # more than are compared at once
    again = [scenes[3].resize((60, 60)), scenes[599].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    found = find_twins(np.stack([small(tensor(each)) for each in [*scenes, *again]]))
    assert {number: (twin.of, twin.mirrored) for number, twin in found.items()} == {600: (3, False), 601: (599, True)}
    assert find_twins(np.zeros((0, 3, 16, 16), np.float32)) == {}


def test_only_some_are_shown_and_all_are_counted(picture_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "look", str(picture_folder), "--resolution", "32", "--bucket-step", "8", "--repeats", "3"]
    assert main([*command, "--shown", "4", "--first", "3"]) == 0
    assert capsys.readouterr().out.strip() == "look.html: 4 of 11 pictures are shown"
    text = Path("look.html").read_text()
    assert "Shown are 3 to 6 of 11" in text
    assert "seen at 32 × 32, 3 times an epoch" in text
    assert len(Outline(text).cards) == 4
    assert main([*command, "--first", "12"]) == 2
    assert "there are 11 pictures" in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 11
    assert Path("look.html").read_text() == text  # with --json no page is written


def test_ctrl_c_leaves_the_page_there_was(picture_folder, tmp_path, monkeypatch):
    config = LookConfig.of(data=str(picture_folder), resolution=(32,), bucket_step=8, page=str(tmp_path / "a.html"))
    look.run(config)
    before = (tmp_path / "a.html").read_bytes()

    def stop(pictures, seen):
        if seen.name == "red_bar.png":
            raise KeyboardInterrupt
        return real(pictures, seen)

    real = look.shots_of
    monkeypatch.setattr(look, "shots_of", stop)
    with pytest.raises(KeyboardInterrupt):
        look.run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_bytes() == before


def test_the_spread_is_the_autoencoders(picture_folder, tiny_pipeline_dir):
    settings = {"data": str(picture_folder), "resolution": (32,), "bucket_step": 8, "json": True, "shown": 2}
    with pytest.raises(InputError, match="spread needs model"):
        look.run(LookConfig.of(**settings, spread=True))
    found = json.loads(look.run(LookConfig.of(**settings, spread=True, model=str(tiny_pipeline_dir))))
    assert [each["spread"] is None for each in found["pictures"]] == [False] * 2 + [True] * 9
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_pipeline_dir, subfolder="vae")
    with Image.open(picture_folder / found["pictures"][0]["name"]) as picture, torch.no_grad():
        deviation = vae.encode(tensor(picture)[None]).latent_dist.std
    assert found["pictures"][0]["spread"] == pytest.approx(float(deviation.max()) * vae.config.scaling_factor, abs=1e-4)
