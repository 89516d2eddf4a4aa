"""The live page: its tokenizer and noise are Python's, and in a browser it draws the pipeline's pictures."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import importlib.util
import io
import json
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import sd_ext

ROOT = Path(__file__).resolve().parents[1]
LIVE = ROOT / "docs" / "live"
SEEDS, COUNTS = [0, 1, 42, 123456789, 2**32 - 1], [512, 16, 100, 1000]
ODD = [
    "", " ", "!!!", "it's the dog's bone, isn't it? we'll we've I'm they're he'd", "a\t\n b  c", "é e\u0301 straße",
    "ΣΑΣ İstanbul ǅ", "красное яблоко", "赤いりんご", "🐙🎈 party 👩🚀", "1234567890 3d 2nd", "a <|endoftext|",
    "<|endoftext|> a <|startoftext|>b", "t-shirt & co. (red:1.2) [blue]", "x\u00a0y\u2003z\ufeffw\u0085v",
    "½ ² ٣ Ⅷ ①", "a" * 300, "-' -'s 's'", "\u0000\u0001", "\u0130\u0345 ﬁ Ǆ",
]  # fmt: skip


def in_node(script: Path, asked: object) -> dict:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node, which runs the JavaScript, is not installed")
    done = subprocess.run(
        [node, script], input=json.dumps(asked), capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def captions(count: int = 400) -> list[str]:
    """Of all words that the embedded model knows, in any order, and of letters in any order."""
    words = json.loads((sd_ext.pretrained_path() / "words.json").read_text("utf-8"))
    things = [name for kind in words["things"].values() for each in kind for name in each["names"] + each["plurals"]]
    known = [*things, *words["colours"], *words["sizes"], *words["forms"], *words["positions"]]
    rng = random.Random(0)
    said = [" ".join(rng.choices(known, k=rng.randint(1, 12))) for _ in range(count)]
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFXYZ0123456789 '.,-!?()éßñÅΣ中あ🐙"
    return said + ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(count // 2)]


def test_words_become_the_same_ids_and_seeds_the_same_noise():
    from transformers import CLIPTokenizer

    folder = sd_ext.pretrained_path() / "tokenizer"
    tokenizer, texts = CLIPTokenizer.from_pretrained(folder), [*captions(), *ODD]
    length = tokenizer.model_max_length
    asked = {"tokenizer": str(folder / "tokenizer.json"), "length": length, "texts": texts}
    told = in_node(Path(__file__).with_name("live.mjs"), {**asked, "seeds": SEEDS, "counts": COUNTS})
    ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids
    different = [text for text, ours, made in zip(texts, ids, told["encoded"], strict=True) if ours != made["ids"]]
    assert not different
    lengths = [len(each) for each in tokenizer(texts).input_ids]
    assert [bool(each["cut"]) for each in told["encoded"]] == [n > length for n in lengths]
    for seed, made in zip(SEEDS, told["noise"], strict=True):
        generator = torch.Generator().manual_seed(seed)
        for count, drawn in zip(COUNTS, made, strict=True):
            np.testing.assert_allclose(drawn, torch.randn(count, generator=generator).numpy(), rtol=2e-6, atol=2e-6)


# ---- in a browser ----------------------------------------------------------------------------------------------------

ASKED = [
    {"prompt": "a red apple", "sampler": "auto", "steps": 8, "guidance": 5, "seed": 0},
    {"prompt": "two cats on a blue background", "sampler": "euler a", "steps": 10, "guidance": 4, "seed": 7},
    {"prompt": "a rocket", "sampler": "dpm++ 2m", "grid": "karras", "steps": 6, "guidance": 1, "seed": 2**32 - 1},
    {"prompt": "an octopus", "negative": "blue", "sampler": "euler cfg++", "steps": 10, "guidance": 1.5, "seed": 3},
    {"prompt": "a house", "sampler": "heun", "steps": 12, "guidance": 7, "seed": 11},
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the page beside the model, which is made unless docs/live/made is there."""
    folder = tmp_path_factory.mktemp("site") / "live"
    shutil.copytree(LIVE, folder, symlinks=True)
    if not (folder / "made").exists():
        needed = {"onnx", "onnxruntime"} - {name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name)}
        if needed or not shutil.which("npm"):
            pytest.skip(f"to make the page's model, {', '.join([*needed, 'npm'])} must be installed")
        done = subprocess.run([sys.executable, folder / "make.py"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def page(site):
    """The page, which has drawn its first picture."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as driver, contextlib.ExitStack() as stack:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stack.callback(browser.close)
        opened = browser.new_page()
        opened.set_default_timeout(300_000)
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(site)
        opened.wait_for_selector("body[data-drawn='1']")
        yield opened
        assert not problems


def draw(page, asked):
    """Ask the page for a picture: its pixels."""
    drawn = int(page.get_attribute("body", "data-drawn")) + 1
    page.fill("#prompt", asked["prompt"])
    page.fill("#negative", asked.get("negative", ""))
    page.select_option("#sampler", asked["sampler"])
    page.select_option("#grid", asked.get("grid", ""))
    page.select_option("#steps", str(asked["steps"]))
    page.evaluate("value => { document.getElementById('guidance').value = value }", asked["guidance"])
    page.fill("#seed", str(asked["seed"]))
    page.click("#draw")
    page.wait_for_selector(f"body[data-drawn='{drawn}']")
    address = page.evaluate("document.getElementById('picture').toDataURL()")
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"), int)


@pytest.mark.slow
def test_the_browser_draws_the_pipelines_pictures(page):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)
    for asked in ASKED:
        own = {"guidance_scale": 5.0} if asked["sampler"] == "auto" else {}
        pipe.scheduler = sd_ext.make_scheduler(asked["sampler"], config, grid=asked.get("grid"), **own)
        pipe.scheduler.attach(pipe)
        expected = pipe(
            asked["prompt"], negative_prompt=asked.get("negative"), num_inference_steps=asked["steps"],
            guidance_scale=asked["guidance"], generator=torch.Generator().manual_seed(asked["seed"]),
        ).images[0]  # fmt: skip
        apart = np.abs(draw(page, asked) - np.asarray(expected, int))
        assert apart.max() <= 3 and apart.mean() < 0.1, (asked, apart.max(), apart.mean())


@pytest.mark.slow
def test_the_page_says_what_it_does(page):
    draw(page, {**ASKED[0], "prompt": " ".join(["purple elephant"] * 30)})
    assert "was left out" in page.inner_text("#said")
    page.fill("#prompt", " ")
    page.click("#draw")
    assert page.inner_text("#said").startswith("Write what to draw")
    page.fill("#prompt", "a tree")
    page.select_option("#steps", "50")
    page.click("#draw")
    page.wait_for_selector("#strip li")
    page.click("#stop")
    page.wait_for_function("document.getElementById('said').textContent === 'Stopped.'")
    assert page.locator("#history li").count() >= 1 and draw(page, ASKED[0]).shape == (64, 64, 3)
