"""The page in a browser: Chromium, driven by Playwright, on a server of its own with the embedded model."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_ext.cli.made import pixels_of
from sd_ext.cli.pictures import Record, encode, read_record
from sd_ext.cli.request import Recipe

pytestmark = pytest.mark.slow
LONG = 300_000  # milliseconds, for machines on which much else runs
HIDDEN = "what nobody may read"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def server(tmp_path_factory, style) -> Iterator[str]:
    """The address of the page."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install sd_ext[ui]")
    command = [sys.executable, "-m", "sd_ext.cli", "ui", "--port", "0", "--lora", style, "--model", "embedded"]
    folder = tmp_path_factory.mktemp("server")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    yield url
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(server, browser) -> Iterator[Callable[[], Any]]:
    """`visit()` is a visitor with cookies, uploads and a history of their own."""
    contexts, foreign = [], []

    def visit() -> Any:
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(LONG)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(server)
        page.wait_for_selector("#sd-draw")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not [url for url in foreign if not url.startswith((server, "data:", "blob:"))]


def says(page: Any, place: str, text: str) -> str:
    """Wait until a place says something. Returns all that it says."""
    page.wait_for_function(
        "([place, text]) => document.querySelector(place)?.innerText.includes(text)", arg=[place, text]
    )
    return page.inner_text(place)


def steps(page: Any, number: int) -> None:
    page.fill("#sd-steps input[type=number]", str(number))
    page.keyboard.press("Tab")


def draw(page: Any, prompt: str, number: int = 3) -> bytes:
    """Draw a picture. Returns the file as the browser gets it."""
    page.fill("#sd-prompt textarea", prompt)
    steps(page, number)
    page.click("#sd-draw")
    says(page, "#sd-status", f"{number} steps")
    return shown(page, "#sd-picture")


def shown(page: Any, place: str) -> bytes:
    page.wait_for_selector(f"{place} img[src*='.png']")
    return page.request.get(page.get_attribute(f"{place} img[src*='.png']", "src")).body()


def record(data: bytes, tmp_path: Path) -> Record:
    (tmp_path / "shown.png").write_bytes(data)
    return read_record(tmp_path / "shown.png")


def drop(page: Any, path: Path) -> None:
    if not page.is_visible("#sd-dropped"):
        page.click("#sd-restore button")
    page.wait_for_selector("#sd-dropped input[type=file]", state="attached")
    page.set_input_files("#sd-dropped input[type=file]", str(path))


def test_draw_with_the_models_words_and_copy_the_code(visit, tmp_path, monkeypatch):
    from sd_ext.cli import main

    page = visit()
    page.fill("#sd-prompt textarea", "a red")
    page.click("#sd-known button[data-word=cat]")
    assert page.input_value("#sd-prompt textarea") == "a red cat"
    made = record(draw(page, page.input_value("#sd-prompt textarea"), 4), tmp_path)
    assert (made.recipe.prompt, made.recipe.steps, made.recipe.model) == ("a red cat", 4, "embedded")
    page.click("#sd-code button")
    page.wait_for_selector("#sd-command .cm-content")
    command = "\n".join(page.locator("#sd-command .cm-line").all_inner_texts())
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["sd-ext", "generate"] and main([*words[1:], "--out", "again.png", "--quiet"]) == 0
    with Image.open("again.png") as picture:
        assert pixels_of(picture) == made.made["pixels"]


def test_side_by_side(visit):
    page = visit()
    page.fill("#sd-prompt textarea", "a blue dog")
    steps(page, 3)
    page.click("button[role=tab]:has-text('Side by side')")
    page.click("#sd-draw-both")
    assert re.search(r"differ by \d", says(page, "#sd-status-both", "The two"))
    left, right = shown(page, "#sd-left"), shown(page, "#sd-right")
    assert left != right
    assert "auto" in page.inner_text("#sd-under-left") and "euler" in page.inner_text("#sd-under-right")


def test_a_plot(visit):
    page = visit()
    page.click("button[role=tab]:has-text('X/Y plot')")
    page.fill("#sd-across-values textarea, #sd-across-values input", "1, 2")
    page.fill("#sd-down-values textarea, #sd-down-values input", "euler, ddim")
    page.uncheck("input[type=checkbox]:visible")
    page.click("#sd-draw-plot")
    says(page, "#sd-status-plot", "4 pictures")
    with Image.open(io.BytesIO(shown(page, "#sd-sheet"))) as sheet:
        assert sheet.width > 300
    assert page.locator("#sd-page a").count() >= 1


def test_stop_and_draw_again(visit):
    page = visit()
    page.fill("#sd-prompt textarea", "a green frog")
    steps(page, 60)
    page.click("#sd-draw")
    says(page, "#sd-status", "Call")
    page.click("#sd-stop")
    says(page, "#sd-status", "Stopped")
    assert draw(page, "a green frog", 2)


def test_settings_come_back_from_a_picture_and_from_the_history(visit, tmp_path):
    page = visit()
    first = draw(page, "a yellow star", 3)
    (tmp_path / "star.png").write_bytes(first)
    page.fill("#sd-prompt textarea", "something else")
    page.fill("#sd-seed input, #sd-seed textarea", "99")
    steps(page, 9)
    drop(page, tmp_path / "star.png")
    says(page, "#sd-restored", "The settings are those of the picture")
    page.wait_for_function("document.querySelector('#sd-prompt textarea').value == 'a yellow star'")
    assert page.input_value("#sd-seed input, #sd-seed textarea") == "0"
    assert page.input_value("#sd-steps input[type=number]") == "3"
    page.fill("#sd-prompt textarea", "something else")
    page.click("button[role=tab]:has-text('History')")
    page.click("#sd-history .thumbnail-item, #sd-history button.thumbnail-lg")
    page.click("#sd-take")
    says(page, "#sd-taken", "The settings are those of the picture")
    page.wait_for_function("document.querySelector('#sd-prompt textarea').value == 'a yellow star'")


def test_a_picture_of_more_steps_than_the_slider_has(visit, tmp_path):
    page = visit()
    recipe = Recipe(prompt="a moon", steps=250, model="embedded", lora=("/elsewhere/other.safetensors",))
    (tmp_path / "many.png").write_bytes(encode(Image.new("RGB", (8, 8)), Record(recipe)))
    drop(page, tmp_path / "many.png")
    assert "LoRA other.safetensors, which is not offered here" in says(page, "#sd-restored", "Not taken")
    page.wait_for_function("document.querySelector('#sd-steps input[type=number]').value == '250'")
    page.click("#sd-draw")
    says(page, "#sd-status", "of 250")
    page.click("#sd-stop")
    says(page, "#sd-status", "Stopped")


def test_bad_input_is_a_sentence_and_the_page_goes_on(visit, tmp_path):
    page = visit()
    page.fill("#sd-prompt textarea", "  ")
    page.click("#sd-draw")
    says(page, "#sd-status", "a prompt is empty")
    page.fill("#sd-prompt textarea", "a cat")
    page.fill("#sd-guidance input, #sd-guidance textarea", "much")
    page.click("#sd-draw")
    says(page, "#sd-status", "Guidance 'much' cannot be read")
    page.fill("#sd-guidance input, #sd-guidance textarea", "")
    page.fill("#sd-sampler input", "eulr")
    page.keyboard.press("Enter")
    page.click("#sd-draw")
    says(page, "#sd-status", "did you mean 'euler'")
    (tmp_path / "false.png").write_text("no picture")
    drop(page, tmp_path / "false.png")
    assert "/" not in says(page, "#sd-restored", "false.png").split("false.png")[0]
    page.fill("#sd-sampler input", "euler")
    page.keyboard.press("Enter")
    assert draw(page, "a cat", 2)


def test_two_visitors_at_once(visit, tmp_path):
    """One stops, the other goes on; each has their own picture and history."""
    one, other = visit(), visit()
    one.fill("#sd-prompt textarea", "a red car")
    steps(one, 60)
    one.click("#sd-draw")
    says(one, "#sd-status", "Call")
    other.fill("#sd-prompt textarea", "a green tree")
    steps(other, 3)
    other.click("#sd-draw")
    one.click("#sd-stop")
    says(one, "#sd-status", "Stopped")
    says(other, "#sd-status", "3 steps")
    theirs = record(shown(other, "#sd-picture"), tmp_path)
    assert theirs.recipe.prompt == "a green tree"
    assert record(draw(one, "a red car", 2), tmp_path).recipe.prompt == "a red car"
    for page, name, counts in ((one, "a red car", (1, 2)), (other, "a green tree", (1,))):  # 60 calls may be done early
        page.click("button[role=tab]:has-text('History')")
        page.wait_for_selector("#sd-history img")
        assert page.locator("#sd-history .thumbnail-item img, #sd-history .thumbnail-lg img").count() in counts
        assert set(page.inner_text("#sd-history").splitlines()) - {""} == {"Your pictures", name}


def test_no_path_of_a_browser_is_opened(server, visit, tmp_path):
    page = visit()
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(Image.new("RGB", (8, 8)), Record(Recipe(prompt=HIDDEN))))
    for path in ("/etc/passwd", str(secret), os.path.abspath(__file__), "../../etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            answer = page.request.get(f"{server}{route}{path}")
            assert answer.status >= 400 or b"gradio" in answer.body()[:4000], (route, path)
            assert b"root:" not in answer.body() and HIDDEN.encode() not in answer.body()
    config = page.request.get(f"{server}config").json()
    info = page.request.get(f"{server}gradio_api/info").json()
    assert not info["named_endpoints"] and not info["unnamed_endpoints"]
    restore = next(d for d in config["dependencies"] if len(d["outputs"]) == len(d["inputs"]) > 20)
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}, "orig_name": "secret.png"}
    sent = {"data": [file, *[""] * (len(restore["inputs"]) - 1)], "fn_index": restore["id"], "session_hash": "x"}
    answer = page.request.post(f"{server}gradio_api/run/predict", data=json.dumps(sent),
                               headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status >= 400 and HIDDEN.encode() not in answer.body()
