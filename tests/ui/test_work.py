"""From fields to pictures, plots and code, with a tiny model and without a browser."""

from __future__ import annotations

import shlex
import threading

import pytest
from PIL import Image

from sd_ext.cli import main
from sd_ext.cli.made import pixels_of
from sd_ext.cli.pictures import read_record, read_told
from sd_ext.errors import InputError
from sd_ext.ui.limits import SHARED
from sd_ext.ui.plot import Axis, grid_for, plot
from sd_ext.ui.settings import restored
from sd_ext.ui.stream import Progress, Stopped
from sd_ext.ui.work import apart, one, two

from .items import drawn

SETTINGS = {
    "plain": {},
    "names": {"sampler": "dpm++ 2m", "grid": "karras", "guidance": "3", "seed": "5", "unet_options": "pag_scale=1"},
    "read": {"prompt": "a (red:1.3) cat", "negative": "dog", "clip_skip": 2, "sampler": "euler cfg++", "size": "64x72"},
    "lora": {"lora_1": "style.safetensors", "strength_1": 0.5, "unet": "fast", "sampler": "euler"},
    "over": {"sampler": "heun", "guidance_schedule": "cosine", "prompt": 'it\'s "red" \\ $HOME `ls` [cat]'},
}


def pixels(path) -> str:
    with Image.open(path) as picture:
        return pixels_of(picture)


@pytest.mark.parametrize(
    "name", ["names", "read", *(pytest.param(n, marks=pytest.mark.slow) for n in ("plain", "lora", "over"))]
)
def test_a_picture_its_code_and_its_settings_again(desk, fields, go, fresh, tmp_path, monkeypatch, name):
    """The command, the Python text and the restored fields each draw the same picture, to the bit."""
    settings = fields(**SETTINGS[name])
    (made,) = drawn(one(desk, settings, go))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(made.command.replace("\\\n", " "))
    assert words[0] == "sd-ext" and main([*words[1:], "--out", "command.png", "--quiet"]) == 0
    assert pixels("command.png") == pixels(made.path)
    python = made.python.replace('"picture.png"', repr(str(tmp_path / "python.png")))
    done = fresh(python)
    assert done.returncode == 0, done.stderr
    assert pixels("python.png") == pixels(made.path)
    found, lost = restored(read_told(made.path), fields(), desk.models, desk.loras)
    assert not lost
    (again,) = drawn(one(desk, found, threading.Event()))
    assert again.record.made["pixels"] == made.record.made["pixels"] == pixels(made.path)


def test_progress_is_shown_with_previews(desk, fields, go):
    items = list(one(desk, fields(steps=6), go))
    assert items[-1].under.endswith(" s") and "auto · 6 steps" in items[-1].under and "seed 0" in items[-1].under
    assert any(isinstance(item, Progress) and item.preview is not None for item in items)


def test_two_settings_from_one_drawn_seed(desk, fields, go):
    left, right = drawn(two(desk, fields(seed="-1"), fields(sampler="euler", seed="3"), go))
    assert left.record.recipe.seed == right.record.recipe.seed
    assert (left.place, right.place) == (0, 1)
    assert "differ by" in apart(left.path, right.path)
    assert apart(left.path, left.path) == "The two are the same to the bit."


def test_stopping_leaves_the_model_as_it_was(desk, fields, go):
    settings = fields(lora_1="style.safetensors", unet="fast", sampler="euler", steps=4)
    (before,) = drawn(one(desk, settings, go))
    stop = threading.Event()
    with pytest.raises(Stopped):
        for item in one(desk, fields(lora_1="style.safetensors", unet="fast", sampler="euler", steps=900), stop):
            if isinstance(item, Progress) and item.preview is not None:
                stop.set()
    (after,) = drawn(one(desk, settings, threading.Event()))
    assert before.record.made["pixels"] == after.record.made["pixels"]


def test_two_visitors_draw_one_after_the_other(desk, fields):
    """Each gets the picture that they would get alone."""
    wanted = [fields(prompt="red cat", sampler="euler"), fields(prompt="blue dog", unet="fast", steps=5)]
    alone = [drawn(one(desk, settings, threading.Event()))[0].record.made["pixels"] for settings in wanted]
    found: dict[int, str] = {}

    def visit(number: int) -> None:
        found[number] = drawn(one(desk, wanted[number], threading.Event()))[0].record.made["pixels"]

    visitors = [threading.Thread(target=visit, args=(number,)) for number in (0, 1)]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join(60)
    assert [found[0], found[1]] == alone


def test_who_waits_can_leave(desk, fields):
    with desk.studio.turn(_report(), print):
        stop = threading.Event()
        items = one(desk, fields(), stop)
        assert next(items).text.startswith("Waiting")
        stop.set()
        with pytest.raises(Stopped):
            list(items)


def _report():
    from sd_ext.ui.stream import Report

    return Report(threading.Event())


def test_the_model_stays_loaded_until_its_files_change(desk, fields, go, monkeypatch, tmp_path, tiny_pipeline_dir):
    import shutil

    from sd_ext.cli import prepare
    from sd_ext.ui.offer import offer

    loads = []
    load = prepare.load_pipeline
    monkeypatch.setattr(prepare, "load_pipeline", lambda *arguments: loads.append(1) or load(*arguments))
    shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    desk.models = offer("model", [str(tmp_path / "model")])
    settings = fields(model="model", steps=1)
    for changes in ({}, {"sampler": "euler"}, {"seed": "4"}):
        drawn(one(desk, fields(model="model", steps=1, **changes), threading.Event()))
    assert len(loads) == 1
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text() + "\n")
    drawn(one(desk, settings, go))
    assert len(loads) == 2


def test_what_is_ignored_is_said(desk, fields, go):
    (made,) = drawn(one(desk, fields(negative="dog", guidance="1"), go))
    assert any("does nothing" in note for note in made.notes)


def test_strangers_are_told_that_paths_are_the_servers(desk, fields, go):
    desk.local = False
    (made,) = drawn(one(desk, fields(), go))
    assert made.notes[-1].startswith("The code names files of the server")


def test_pictures_are_kept_where_it_was_asked_for(desk, fields, go, tmp_path):
    desk.out = tmp_path / "kept"
    (made,) = drawn(one(desk, fields(), go))
    assert [path.name for path in desk.out.iterdir()] == ["red-cat-0001.png"]
    assert read_record(desk.out / "red-cat-0001.png").made == read_record(made.path).made


def test_of_very_many_files_the_oldest_go(desk, monkeypatch):
    monkeypatch.setattr("sd_ext.ui.work.KEPT", 2)
    paths = [desk.show(b"x", "a") for _ in range(4)]
    assert [path.exists() for path in paths] == [False, False, True, True]


# ---- plots -----------------------------------------------------------------------------------------------------------


def test_a_plot(desk, fields, go):
    axes = Axis("Steps", "1, 2"), Axis("Strength of the first LoRA", "0, 1")
    settings = fields(lora_1="style.safetensors", sampler="euler")
    (made,) = drawn(plot(desk, settings, *axes, False, go))
    assert (made.under, len(made.cells)) == ("4 pictures", 4)
    with Image.open(made.picture) as sheet:
        assert sheet.width > 300
    assert made.page.read_text().startswith("<!")
    recipes = {(r.steps, r.lora[0].rpartition(":")[2]) for r in (read_record(path).recipe for path in made.cells)}
    assert recipes == {(1, "0"), (1, "1"), (2, "0"), (2, "1")}
    (again,) = drawn(plot(desk, settings, *axes, False, threading.Event()))
    assert again.under == "4 pictures, 4 were there already"


def test_axes_take_the_place_of_the_fields(desk, fields):
    settings = fields(unet_options="pag_scale=9\nfreeu_s1=1", sampler="heun", seed="8")
    grid, recipes = grid_for(desk, settings, Axis("An option of the U-Net", "pag_scale=0, 2"), Axis("Seed", "1,2,3"))
    assert grid.shape == (1, 3, 2)
    assert {recipe.seed for recipe in recipes} == {1, 2, 3} and {recipe.sampler for recipe in recipes} == {"heun"}
    assert {recipe.unet_option for recipe in recipes} == {("freeu_s1=1", f"pag_scale={n}") for n in (0, 2)}
    names = desk.models.names
    _, recipes = grid_for(desk, settings, Axis("Model", ", ".join(names)), Axis("Prompt", "a cat, red\na dog"))
    assert {recipe.model for recipe in recipes} == {desk.models.source(name) for name in names}
    assert {recipe.prompt for recipe in recipes} == {"a cat, red", "a dog"}


@pytest.mark.parametrize(
    ("across", "down", "sentence"),
    [
        (Axis("Steps", "4"), Axis("", ""), "nothing to compare"),
        (Axis("Steps", "4,x"), Axis("", ""), "steps 'x' cannot be read"),
        (Axis("Steps", "4,8"), Axis("Steps", "1,2"), "both axes are Steps"),
        (Axis("Steps", " "), Axis("", ""), "enter values"),
        (Axis("device", "cpu"), Axis("", ""), "nothing that an axis can be"),
        (Axis("Model", "embedded, /etc"), Axis("", ""), "unknown model on this page"),
        (Axis("Strength of the first LoRA", "0,1"), Axis("", ""), "no LoRA is chosen"),
        (Axis("Seed", ",".join(map(str, range(37)))), Axis("", ""), "37 pictures is too large here"),
        (Axis("Steps", "99,100"), Axis("Seed", ",".join(map(str, range(18)))), "choose at most 1,500 calls"),
        (Axis("Steps", "5,101"), Axis("", ""), "101 is too many here"),
    ],
)
def test_plots_that_cannot_be(desk, fields, go, across, down, sentence):
    desk.limits = SHARED
    with pytest.raises(InputError, match=sentence):
        list(plot(desk, fields(), across, down, False, go))


def test_a_plot_can_be_stopped_and_keeps_what_it_has(desk, fields):
    stop = threading.Event()
    axes = Axis("Seed", "0,1,2,3,4,5"), Axis("", "")
    with pytest.raises(Stopped):
        for item in plot(desk, fields(steps=40), *axes, False, stop):
            if isinstance(item, Progress) and item.share > 0.3:
                stop.set()
    kept = len(list((desk.shown / "plots").rglob("*.png")))
    assert 1 <= kept < 6
