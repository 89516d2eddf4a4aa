"""A folder as people have them: forty kinds of files, of which some are of use."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image


def scene(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A picture of smooth colours, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def as_bytes(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def make_messy(root: Path) -> Path:
    """Make the folder, and beside it `outside`, which links lead to."""
    folder, outside = root / "messy", root / "outside"
    for path in (folder / "sub", folder / "10_sks cat", folder / "0_off", folder / "dir.png", outside):
        path.mkdir(parents=True)

    def put(name: str, picture: Image.Image | bytes, caption: str | bytes | None = "", kind: str = "PNG", **options):
        data = picture if isinstance(picture, bytes) else as_bytes(picture, kind, **options)
        (folder / name).write_bytes(data)
        if caption is not None:
            said = caption or f"words of {Path(name).stem}"
            (folder / name).with_suffix(".txt").write_bytes(said if isinstance(said, bytes) else said.encode())

    # Of use
    put("plain.png", scene(1))
    put("photo.jpg", scene(2, 64, 96), None, "JPEG", exif=turned())
    (folder / "photo.jpg.txt").write_text("a photo, turned")
    put("phone.jfif", scene(3), None, "JPEG")
    (folder / "phone.TXT").write_text("loud ending")
    put("cmyk.jpg", scene(4).convert("CMYK"), kind="JPEG")
    put("deep.png", Image.fromarray(np.asarray(scene(5).convert("L")).astype(np.uint16) << 8))
    put("float.tif", Image.fromarray(np.asarray(scene(6).convert("L")).astype(np.float32) / 255), kind="TIFF")
    put("int32.tiff", Image.fromarray(np.asarray(scene(7).convert("L")).astype(np.int32)), kind="TIFF")
    put("moving.gif", scene(8), kind="GIF", save_all=True, append_images=[scene(9), scene(10)])
    put("clear.webp", with_alpha(scene(11)), kind="WEBP", lossless=True)
    put("palette.png", scene(12).quantize(16), transparency=3)
    put("wide.bmp", scene(13, 320, 64), kind="BMP")
    put("LOUD.PNG", scene(14))
    put("masked.png", scene(15))
    (folder / "masked.mask.png").write_bytes(as_bytes(half_mask()))
    put("sub/inner.png", scene(16))
    put("10_sks cat/named.png", scene(17))
    put("lines.png", scene(18), "first line\nsecond line\n")
    put("long.png", scene(19), "word " * 40)
    put("utf16.png", scene(20), "sixteen".encode("utf-16"))
    put("<b>&.png", scene(21), "<script>alert(1)</script> qxv zkw pjf vqx jzk")
    put("again.jpg", scene(1), kind="JPEG", quality=85)
    put("mirrored.png", scene(2, 64, 96).rotate(-90, expand=True).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    put("same.png", scene(14))
    (folder / "link.png").symlink_to("plain.png")
    (folder / "link.txt").symlink_to("plain.txt")
    (folder / "linked").symlink_to("sub")
    # Left out
    put("silent.png", scene(22), None)
    put("empty_caption.png", scene(23), b"  \n")
    put("bad_caption.png", scene(24), b"\xff\xfe\x00")
    put("utf16_bare.png", scene(25), "sixteen".encode("utf-16-le"))
    put("tiny.png", scene(26, 8, 8))
    put("cut.png", as_bytes(scene(27))[:300])
    put("text.png", b"no picture")
    put("nothing.png", b"")
    put("other_mask.png", scene(28))
    (folder / "other_mask-masklabel.png").write_bytes(as_bytes(Image.new("L", (64, 32))))
    put("0_off/zero.png", scene(29))
    (outside / "secret.png").write_bytes(as_bytes(scene(30)))
    (folder / "leads_out.png").symlink_to(outside / "secret.png")
    (folder / "leads_out.txt").write_text("stolen")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "gone.txt").write_text("gone")
    os.mkfifo(folder / "pipe.png")
    (folder / "pipe.txt").write_text("a pipe")
    (folder / "folder_out").symlink_to(outside)
    (folder / "sub" / "circle").symlink_to(folder)
    # Not used
    for name in (
        "a.zip",
        "film.mp4",
        "raw.CR2",
        "latents.npz",
        "notes.json",
        "README.md",
        "orphan.txt",
        "plain.caption",
    ):
        (folder / name).write_text("x")
    (folder / "orphan.mask.png").write_bytes(as_bytes(half_mask()))
    (folder / ".DS_Store").write_text("x")
    (folder / "dir.png" / "list.parquet.bak").write_text("x")
    return folder


def turned() -> Image.Exif:
    """EXIF data that turn a picture by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_alpha(picture: Image.Image) -> Image.Image:
    """Half of the picture is transparent."""
    made = picture.convert("RGBA")
    made.putalpha(half_mask())
    return made


def half_mask() -> Image.Image:
    """A mask that is white at the left."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask
