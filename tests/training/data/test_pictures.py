"""Pictures at the sizes of their buckets: which are left out, what their pixels and masks are."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from sd_ext.errors import InputError, TrainingError, UnknownNameError
from sd_ext.training.data.buckets import Buckets
from sd_ext.training.data.items import Item
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.sources import read_items

SETS = {"kept": 4 * 2**30, "read again": 0}  # what IN_MEMORY is


def encoded(array, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def ramp(height, width):
    """Red rises from left to right, green from top to bottom, each over its whole range."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, np.full_like(x, 128)], -1).round()


def item(array, name="a.png", caption="text", **options) -> Item:
    data = array if isinstance(array, bytes) else encoded(array)
    return Item(name, lambda: data, caption, **options)


def grey(array) -> bytes:
    return encoded(np.round(np.asarray(array) * 255))


@pytest.fixture(params=SETS)
def memory(request, monkeypatch):
    monkeypatch.setattr("sd_ext.training.data.pictures.IN_MEMORY", SETS[request.param])


# Which are used


def test_what_cannot_be_used_is_named_with_its_reason():
    whole = encoded(ramp(40, 40))
    broken = whole[: len(whole) // 2]
    items = [
        item(ramp(40, 40), "good.png"),
        item(broken, "cut.png"),
        item(b"GIF89a", "no.gif"),
        item(ramp(40, 15), "thin.png"),
        item(ramp(7, 90), "flat.png"),
        item(ramp(40, 40), "silent.png", ""),
        item(ramp(40, 40), "masked.png", mask=lambda: b"no mask"),
        item(ramp(40, 40), "other.png", mask=lambda: grey(np.ones((40, 60)))),
    ]
    pictures = Pictures(items, Buckets((32,), 8), min_size=16, captionless="skip")
    assert [s.item.name for s in pictures.samples] == ["good.png"]
    reasons = dict(line.split(": ", 1) for line in pictures.skipped)
    assert list(reasons) == ["cut.png", "no.gif", "thin.png", "flat.png", "silent.png", "masked.png", "other.png"]
    assert reasons["thin.png"] == "too small: 15 x 40, the shorter side must have 16 pixels"
    assert reasons["silent.png"] == "no caption"
    assert "60 x 40 and the picture 40 x 40" in reasons["other.png"]
    small = Pictures([*items[:1], items[4]], Buckets((32,), 8))
    assert small.skipped == ["flat.png: too small: 90 x 7, the shorter side must have 8 pixels"]


def test_a_link_to_nothing_is_named(tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    pictures = Pictures(read_items(tmp_path), 32, captionless="skip")
    assert pictures.skipped == [f"b.png: {tmp_path}/b.png is a link that leads nowhere"]


def test_many_pictures_are_looked_at_with_a_bar(monkeypatch):
    def shown(many):
        monkeypatch.setattr("sd_ext.training.data.pictures.MANY", many)
        console = Console(file=io.StringIO(), force_terminal=True, record=True)
        Pictures([item(ramp(9, 9))] * 3, 8, console=console)
        return "looking at pictures" in console.export_text()

    assert (shown(3), shown(4)) == (True, False)


def test_none_that_can_be_used():
    with pytest.raises(InputError, match=r"none of 1 pictures can be used; first: a.png: no caption"):
        Pictures([item(ramp(9, 9), caption="")], 8, captionless="skip")
    with pytest.raises(InputError, match="none of 0"):
        Pictures([], 8)


def test_captions_of_pictures_that_have_none():
    items = [item(ramp(9, 9)), item(ramp(9, 9), caption="")]
    assert Pictures(items, 8).captions == ["text", ""]
    assert Pictures(items, 8, captionless="skip").captions == ["text"]
    assert Pictures(items, 8, captionless="skip", caption="sks").captions == ["text", "sks"]


@pytest.mark.parametrize("wrong", [{"crop": "middle"}, {"captionless": "skp"}])
def test_choices(wrong):
    with pytest.raises(UnknownNameError, match=next(iter(wrong))):
        Pictures([item(ramp(9, 9))], 8, **wrong)


# Samples


def test_samples_are_repeats_and_sizes():
    items = [item(ramp(64, 64), "a", repeats=2, weight=0.5), item(ramp(16, 48), "b")]
    pictures = Pictures(items, Buckets((16, 32), 8), repeats=3)
    assert len(pictures) == 2 * 2 * 3 + 3
    assert pictures.sizes == [s.size for s in pictures.samples] == [(16, 16)] * 6 + [(32, 32)] * 6 + [(16, 16)] * 3
    assert {s.view for s in pictures.samples} == {0, 1, 2}
    assert [s.weight for s in pictures.samples] == [0.5] * 12 + [1.0] * 3
    assert {pictures.content(i) for i in range(6)} == {(pictures.digest(0), (16, 16), (0, 0), False)}
    assert torch.equal(pictures.pixels(0), pictures.pixels(5))


def test_pixels_cover_the_bucket_and_are_cut_at_the_centre(memory):
    """The ramp's colour at a pixel says where it came from: 64 x 128, halved and cut to 32 x 48, starts at column 8."""
    pictures = Pictures([item(ramp(64, 128))], Buckets((40,), 16, max_ratio=1.6))
    (sample,) = pictures.samples
    assert (sample.size, sample.crop, sample.room, sample.original) == ((32, 48), (0, 8), (0, 16), (64, 128))
    pixels = pictures.pixels(0)
    assert pixels.shape == (3, 32, 48)
    assert pixels.dtype == torch.float32
    x, y = (torch.arange(48) + 8 + 0.5) / 64, (torch.arange(32) + 0.5) / 32
    inner = (slice(2, -2), slice(2, -2))
    assert torch.allclose(pixels[0][inner], (2 * x - 1).expand(32, 48)[inner], atol=0.02)
    assert torch.allclose(pixels[1][inner], (2 * y - 1)[:, None].expand(32, 48)[inner], atol=0.02)
    assert pixels.abs().max() <= 1
    assert torch.equal(pictures.pixels(0, flipped=True), pixels.flip(-1))
    moved = pictures.pixels(0, crop=(0, 0))
    assert torch.equal(moved[:, :, 8:], pixels[:, :, :-8])


@pytest.mark.parametrize("crop", ["center", "random"])
def test_memory_or_not_the_pixels_are_the_same(monkeypatch, crop):
    items = [item(ramp(50, 70)), item(encoded(ramp(70, 50), "JPEG"), "b.jpg")]

    def all_pixels():
        pictures = Pictures(items, Buckets((32,), 8), crop=crop)
        places = [None, (0, 0), tuple(pictures.samples[0].room)]
        return [pictures.pixels(0, f, c) for f in (False, True) for c in places] + [pictures.pixels(1)]

    kept = all_pixels()
    monkeypatch.setattr("sd_ext.training.data.pictures.IN_MEMORY", 0)
    assert all(torch.equal(a, b) for a, b in zip(kept, all_pixels(), strict=True))


def test_crops_stay_inside_and_do_not_go_with_a_cache():
    pictures = Pictures([item(ramp(32, 64))], 32, crop="random")
    assert pictures.samples[0].room == (0, 32)
    for crop in [(1, 0), (0, 33), (-1, 0)]:
        with pytest.raises(InputError, match="has room for"):
            pictures.pixels(0, crop=crop)
    with pytest.raises(InputError, match="cannot hold random crops"):
        pictures.content(0)


def test_time_ids_say_what_is_seen():
    (sample,) = Pictures([item(ramp(64, 200))], Buckets((32,), 16)).samples
    assert (sample.size, sample.room) == ((32, 32), (0, 68))
    assert sample.time_ids() == (64, 200, 0, 34, 32, 32)
    assert sample.time_ids(crop=(0, 4)) == (64, 200, 0, 4, 32, 32)
    assert sample.time_ids(flipped=True, crop=(0, 4)) == (64, 200, 0, 64, 32, 32)


def test_pictures_are_upright_on_white_and_of_eight_bits(tmp_path):
    """Of a turned photograph, of 16 bits, of transparency in each of its forms."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :8] = 255
    (turned,) = Pictures([item(encoded(picture, exif=exif))], Buckets((16,), 8)).samples
    assert turned.original == (16, 8)
    wide = io.BytesIO()
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(wide, "PNG")
    assert Pictures([item(wide.getvalue())], 8).pixels(0).abs().max() < 0.01
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    palette = clear.convert("P")
    for number, (kind, options) in enumerate([(clear, {}), (clear.convert("LA"), {}), (palette, {"transparency": 0})]):
        kind.save(tmp_path / f"{number}.png", **options)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "3.png", transparency=(9, 9, 9))
    pictures = Pictures(tmp_path, 8)
    assert len(pictures) == 4
    assert all(torch.equal(pictures.pixels(i), torch.ones(3, 8, 8)) for i in (0, 1, 3))


def test_a_file_that_is_gone_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sd_ext.training.data.pictures.IN_MEMORY", 0)
    (tmp_path / "a.png").write_bytes(encoded(ramp(9, 9)))
    pictures = Pictures(tmp_path, 8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(TrainingError, match=r"a\.png could be read at first"):
        pictures.pixels(0)


# Masks


def test_masks_are_means_over_latents(memory):
    """Every number by hand: 16 x 16 of a mask, of which each latent sees 8 x 8."""
    mask = np.zeros((16, 16))
    mask[:8, :8], mask[8:, :4] = 1, 1
    items = [item(ramp(16, 16), mask=lambda: grey(mask)), item(ramp(16, 16), "b")]
    pictures = Pictures(items, 16)
    assert pictures.masked
    assert torch.equal(pictures.mask(0), torch.tensor([[[1.0, 0.0], [0.5, 0.0]]]))
    assert torch.equal(pictures.mask(0, flipped=True), torch.tensor([[[0.0, 1.0], [0.0, 0.5]]]))
    assert torch.equal(pictures.mask(0, downscale=16), torch.full((1, 1, 1), 0.375))
    assert torch.equal(pictures.mask(1), torch.ones(1, 2, 2))
    assert not Pictures(items[1:], 16).masked


def test_a_mask_of_another_resolution_is_scaled_and_cut_as_its_picture():
    mask = np.zeros((8, 16))
    mask[:, 8:] = 1
    pictures = Pictures([item(ramp(64, 128), mask=lambda: grey(mask))], 32, crop="random")
    assert torch.equal(pictures.mask(0), torch.tensor([0.0, 0, 1, 1]).expand(1, 4, 4))
    assert torch.equal(pictures.mask(0, crop=(0, 0)), torch.zeros(1, 4, 4))
    assert torch.equal(pictures.mask(0, crop=(0, 32)), torch.ones(1, 4, 4))
    assert torch.equal(pictures.mask(0, crop=(0, 8)), torch.tensor([0.0, 0, 0, 1]).expand(1, 4, 4))


def test_opacity_as_mask():
    picture = np.concatenate([ramp(16, 16), np.zeros((16, 16, 1))], -1)
    picture[:, 8:, 3] = 255
    items = [item(picture), item(ramp(16, 16), "b"), item(picture, "c", mask=lambda: grey(np.ones((16, 16))))]
    seen = [Pictures(items, 16, alpha_mask=use).mask(i).tolist() for use in (True, False) for i in range(3)]
    half, whole = [[[0.0, 1.0], [0.0, 1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]
    assert seen == [half, whole, whole, whole, whole, whole]


# Sources


def test_from_a_source_with_everything(tmp_path):
    for name, shape in [("wide.png", (32, 64)), ("high.png", (64, 32))]:
        (tmp_path / name).write_bytes(encoded(ramp(*shape)))
    (tmp_path / "mask.png").write_bytes(grey(np.ones((32, 64))))
    rows = [
        {"file_name": "wide.png", "text": "wide", "mask_file_name": "mask.png", "repeats": 2},
        {"file_name": "high.png", "text": "high"},
        {"file_name": "gone.png", "text": "gone"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures = Pictures(tmp_path, Buckets((48,), 16))
    assert pictures.sizes == [(32, 64), (32, 64), (64, 32)]
    assert pictures.captions == ["wide", "wide", "high"]
    assert [line.split(":")[0] for line in pictures.skipped] == ["gone.png"]
