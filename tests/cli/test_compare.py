"""`sd-ext compare`: what is drawn, what is kept, and what the sheet and the page show."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sd_ext.cli.compare.asked import Asked
from sd_ext.cli.compare.axes import axes_of, grid_of
from sd_ext.cli.compare.cells import Store, distance
from sd_ext.cli.compare.plot import _apart
from sd_ext.cli.compare.sheet import fit, shown_size
from sd_ext.cli.compare.strips import chosen, watched
from sd_ext.cli.pictures import read_record
from sd_ext.cli.request import Recipe
from sd_ext.errors import InputError
from sd_ext.models import find_model
from sd_ext.schedulers import make_scheduler

FREE = {"columns": None, "rows": None, "pages": None}


def grid(places=FREE, base=None, **asked):
    return grid_of(axes_of(Asked(prompt=("red apple",), **asked)), base or {}, {**FREE, **places})


# ---- axes ------------------------------------------------------------------------------------------------------------


def test_axes_become_a_grid_of_recipes():
    made = grid(samplers=("euler,auto",), steps=("4", "8,20"), guidance=("3",), base={"negative": "blue"})
    assert (made.rows.name, made.columns.name, made.shape) == ("samplers", "steps", (1, 2, 3))
    recipes = {place: made.recipe(*place) for place in made.places()}
    told = [(each.sampler, each.steps, each.guidance, each.negative) for each in recipes.values()]
    assert told == [(sampler, steps, 3.0, "blue") for sampler in ("euler", "auto") for steps in (4, 8, 20)]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({}, ("steps", "samplers", "seeds")),
        ({"columns": "seeds"}, ("seeds", "steps", "samplers")),
        ({"pages": "steps", "rows": "seeds"}, ("samplers", "seeds", "steps")),
    ],
)
def test_which_setting_goes_where(places, expected):
    made = grid(places, samplers=("a,b",), steps=("1,2",), seeds=("0,1",))
    assert (made.columns.name, made.rows.name, made.pages.name) == expected
    assert len({made.recipe(*place) for place in made.places()}) == 8


def test_loras_and_options_of_the_unet_add_up_in_the_order_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd,name.safetensors").touch()
    made = grid(
        lora=("z.safetensors:0,0.5", "a.safetensors:0.3", "odd,name.safetensors"),
        unet_option=("pag_scale=0,3", "levels=[1,2]"),
    )
    recipe = made.recipe(0, 1, 1)
    assert recipe.lora == ("z.safetensors:0.5", "a.safetensors:0.3", "odd,name.safetensors")
    assert recipe.unet_option == ("pag_scale=3", "levels=[1,2]")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"steps": ("8",), "samplers": ("euler",)}, "every setting has one value"),
        ({"steps": ("4,x",)}, "--steps 'x' cannot be read"),
        ({"steps": ("4,,8",)}, "empty value"),
        ({"guidance": ("1,1.0,1",)}, "given twice"),
        ({"lora": ("a.safetensors:0,1", "b/a.safetensors:0,1")}, "given twice"),
        ({"steps": ("1,2",), "seeds": ("1,2",), "unet": ("exact,fast",), "guidance": ("1,2",)}, "vary, and a grid has"),
        (
            {"steps": (",".join(map(str, range(1, 201))),), "seeds": (",".join(map(str, range(200))),)},
            "40,000 pictures",
        ),
    ],
)
def test_axes_that_cannot_be(asked, says):
    with pytest.raises(InputError, match=re.escape(says)):
        grid(**asked)


# ---- numbers and pictures --------------------------------------------------------------------------------------------


def test_the_distance_is_the_root_mean_square():
    one, other = (np.random.default_rng(i).integers(0, 256, (5, 7, 3)).astype("uint8") for i in (0, 1))
    expected = np.linalg.norm((one / 255.0 - other / 255.0).ravel()) / np.sqrt(one.size)
    assert distance(Image.fromarray(one), Image.fromarray(other)) == pytest.approx(expected, abs=1e-12)
    assert distance(Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")) == 1


def test_small_pictures_are_enlarged_pixel_by_pixel_and_large_sheets_stay_small():
    assert shown_size([(64, 64)], 3, 3) == (192, 192)
    assert shown_size([(512, 768)], 3, 3) == (341, 512)
    width, height = shown_size([(512, 512)], 100, 100)
    assert width * height * 10_000 <= 130e6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype("uint8"))
    assert (np.asarray(fit(noise, (24, 24))) == np.asarray(noise).repeat(3, 0).repeat(3, 1)).all()


def test_labels_of_lines_do_not_cover_each_other():
    made = _apart([100.0, 101.0, 99.0, 389.0, 390.0])
    assert sorted(range(5), key=lambda i: made[i]) == [2, 0, 1, 3, 4]
    assert min(b - a for a, b in itertools.pairwise(sorted(made))) >= 19 and max(made) <= 390


# ---- the command -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The pictures and the data of a page; also that every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.shots: list[dict] = []
        self.images: dict[str, dict] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        if tag == "button" and known.get("class") == "shot":
            self.shots.append(known)
        if tag == "img" and known.get("id"):
            self.images[known["id"]] = known
        if tag not in ("img", "meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def picture(self, name: str) -> Image.Image:
        kind, _, data = self.images[name]["src"].partition(";base64,")
        assert kind == "data:image/png"
        return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture(scope="module")
def compared(tiny_pipeline_dir, tmp_path_factory):
    """A comparison of two samplers, one of them with fresh noise, at two counts; a prompt that is also markup."""
    from sd_ext.cli import main

    folder = tmp_path_factory.mktemp("compared") / "c"
    arguments = [
        "compare", "--prompt", "a <b>red</b> apple {{plot}}", "--models", tiny_pipeline_dir,
        "--samplers", "euler,euler a", "--steps", "2,3", "--reference", "10", "--out", folder,
    ]  # fmt: skip
    arguments = [str(each) for each in arguments]
    assert main(arguments) == 0
    return SimpleNamespace(
        folder=folder, arguments=arguments, cells=sorted((folder / "cells").iterdir()),
        page=Page(next(folder.glob("*.html")).read_text("utf-8")),
    )  # fmt: skip


def test_each_cell_is_a_picture_that_says_how_it_is_made_again(compared, run):
    recipes = [read_record(path).recipe for path in compared.cells]
    told = sorted((each.sampler, each.steps) for each in recipes)
    assert told == [("dpm++ 2m", 10), ("euler", 2), ("euler", 3), ("euler a", 2), ("euler a", 3)]
    path = compared.cells[recipes.index(next(each for each in recipes if each.sampler == "euler a"))]
    again = run("generate", "--again", path).paths[0]
    assert (np.asarray(Image.open(again)) == np.asarray(Image.open(path))).all()
    assert read_record(path).made["seconds"] > 0


def test_the_page_stands_alone_and_holds_every_picture_to_the_bit(compared):
    page, text = compared.page, next(compared.folder.glob("*.html")).read_text("utf-8")
    assert page.open == [] and len(page.shots) == 4 and len(page.images) == 5
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http://" not in text and "https://" not in text
    assert "a &lt;b&gt;red&lt;/b&gt; apple {{plot}}" in text and "<b>red" not in text
    for shot in page.shots:
        path = compared.folder / shot["data-command"].split()[-1]
        assert (np.asarray(page.picture(shot["data-id"])) == np.asarray(Image.open(path).convert("RGB"))).all()


def test_distances_are_to_the_reference_and_samplers_of_fresh_noise_have_none(compared):
    notes = {}
    for shot in compared.page.shots:
        record = read_record(compared.folder / shot["data-command"].split()[-1])
        notes[record.recipe.sampler, record.recipe.steps] = shot
    for steps in (2, 3):
        assert "draws fresh noise" in notes["euler a", steps]["data-told"]
        assert not notes["euler a", steps]["data-reference"]
        own, other = (compared.page.picture(notes["euler", steps][name]) for name in ("data-id", "data-reference"))
        (share,) = re.findall(r"([\d.]+) %", notes["euler", steps]["data-told"])
        assert float(share) == pytest.approx(100 * distance(own, other), rel=0.03)


def test_the_same_command_draws_nothing_and_another_shares_what_is_there(compared, run, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in compared.cells}
    sheet = next(compared.folder.glob("*.png"))
    bytes_before = sheet.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("sd_ext.cli.prepare.prepare", lambda *_, **__: pytest.fail("the model was loaded"))
        assert run(*compared.arguments, "--json").code == 0
    assert sheet.read_bytes() == bytes_before
    (compared.folder / "cells" / compared.cells[0].name).write_bytes(b"cut off")
    shown = run(*compared.arguments[:6], "euler", *compared.arguments[7:8], "3,4", *compared.arguments[9:], "--json")
    assert shown.code == 0, shown.err
    told = [json.loads(line) for line in shown.out.splitlines()]
    assert [each["steps"] for each in told] == ["3", "4"] and all(each["distance"] > 0 for each in told)
    kept = [path for path in compared.cells[1:] if path.stat().st_mtime_ns == before[path]]
    assert len(kept) == len(compared.cells) - 1
    assert len(list((compared.folder / "cells").iterdir())) == len(compared.cells) + 1


def test_what_cannot_be_drawn_is_said_in_its_cell_and_the_rest_is_drawn(run, tiny_pipeline_dir, tmp_path, monkeypatch):
    from sd_ext.cli import drawing

    real = drawing.draw_batch

    def refusing(pipe, batch, on_step=lambda *_: None):
        if batch[0].steps == 3:
            raise InputError("3 is no number for this one")
        return real(pipe, batch, on_step)

    monkeypatch.setattr(drawing, "draw_batch", refusing)
    shown = run(
        "compare", "--prompt", "x", "--models", tiny_pipeline_dir, "--steps", "2,3", "--reference", 0, "--out", tmp_path
    )
    assert shown.code == 0 and "3 is no number for this one" in shown.err
    page = Page(next(tmp_path.glob("*.html")).read_text("utf-8"))
    assert len(page.shots) == 1 and len(list((tmp_path / "cells").iterdir())) == 1


@pytest.mark.parametrize(
    ("each", "told"),
    [
        (50, "2,500 pictures of 63,750"),
        pytest.param(100, "10,000 pictures of 505,000", marks=pytest.mark.slow),
    ],
)
def test_very_many_pictures_are_asked_about_before_any_is_drawn(each, told, run, tiny_pipeline_dir, tmp_path):
    many, steps = ",".join(map(str, range(each))), ",".join(map(str, range(1, each + 1)))
    grid = ("--prompt", "x", "--models", tiny_pipeline_dir, "--seeds", many, "--steps", steps, "--reference", 0)
    shown = run("compare", *grid, "--out", tmp_path / "c")
    assert (shown.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert re.search(rf"{told} network calls take about .* here; give --yes", shown.err)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no prompt given"),
        (["--prompt", "x", "--steps", "8"], "nothing to compare"),
        (["--prompt", "x", "--steps", "0,8"], "--steps 0 cannot work"),
        (["--prompt", "x", "--samplers", "euler,uler"], "uler"),
        (["--prompt", "x", "--steps", "4,8", "--reference", "3"], "--reference 3"),
        (["--prompt", "x", "--steps", "4,8", "--columns", "seeds"], "--columns"),
        (["--prompt", "x", "--models", "missing,gone"], "missing"),
        (["--prompt", "x", "--lora", "gone.safetensors:0,1"], "gone.safetensors"),
        (["--prompt", "x", "--steps", "4,8", "--out", "page.html"], "name a folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_drawn(run, tmp_path, arguments, says):
    shown = run("compare", *arguments)
    assert (shown.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert says in shown.err and not list(tmp_path.iterdir())


# ---- how pictures come about -----------------------------------------------------------------------------------------


def test_the_calls_of_a_strip_are_the_first_the_last_and_others_between():
    assert chosen(1) == [0] and chosen(5) == [0, 1, 2, 3, 4] and chosen(8) == list(range(8))
    for calls in (9, 20, 50):
        assert (len(chosen(calls)), chosen(calls)[0], chosen(calls)[-1]) == (8, 0, calls - 1)


def test_watching_changes_no_step_and_sees_the_predictions():
    import inspect

    import torch

    scheduler = make_scheduler("dpm++ 2m")
    ends, own = [], inspect.signature(scheduler.step)
    for wanted in (False, True):
        scheduler.set_timesteps(12)
        x = torch.ones(1, 4, 2, 2)
        with watched(scheduler, wanted) as seen:
            assert inspect.signature(scheduler.step) == own
            for t in scheduler.timesteps:
                x = scheduler.step(x.sin(), t, x, return_dict=False)[0]
        ends.append(x)
        assert "step" not in vars(scheduler) and len(seen) == (8 if wanted else 0)
    assert torch.equal(*ends)


def test_strips_and_levels_are_in_the_page(run, tiny_pipeline_dir, tmp_path, monkeypatch):
    grid = ("compare", "--prompt", "x", "--models", tiny_pipeline_dir, "--samplers", "heun", "--steps", "2,9")
    grid = (*grid, "--reference", 0, "--out", tmp_path / "c")
    assert run(*grid).code == 0
    plain = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "c" / "cells").iterdir()}
    shown = run(*grid, "--strips")
    assert shown.code == 0, shown.err
    text = next((tmp_path / "c").glob("*.html")).read_text("utf-8")
    page, cells = Page(text), tmp_path / "c" / "cells"
    assert page.open == [] and len(page.shots) == 2 and "Where the steps fall" in text
    for name, pixels in plain.items():
        record = read_record(cells / name)
        assert (np.asarray(Image.open(cells / name)) == pixels).all() and record.made["strip"] is True
        made = Image.open(cells / f"{Path(name).stem}-strip.png")
        assert made.size == (pixels.shape[1] * min(record.recipe.steps, 8), pixels.shape[0])
        end = np.asarray(made)[:, -pixels.shape[1] :].astype(int)
        assert np.abs(end - pixels).max() <= 1  # what is expected at the last call is the picture
        scheduler = make_scheduler(record.recipe.sampler, find_model(tiny_pipeline_dir).config("scheduler"))
        scheduler.set_timesteps(record.recipe.steps)
        assert record.made["sigmas"] == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
    strips = [name for name in page.images if name.startswith("sp")]
    assert len(strips) == 2 and text.count("<circle") == 2 + 9
    monkeypatch.setattr("sd_ext.cli.prepare.prepare", lambda *_, **__: pytest.fail("the model was loaded"))
    assert run(*grid, "--strips").code == 0


def test_a_cell_is_another_where_the_models_fitted_sampler_has_changed(tiny_pipeline_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_dir, folder)
    (folder / "calibrated").mkdir()
    places = []
    for fitted in ("{}", '{"calibration": 1}'):
        (folder / "calibrated" / "scheduler_config.json").write_text(fitted)
        store, model = Store(tmp_path, lambda recipe: ("cpu", "float32")), find_model(str(folder))
        named = (None, "calibrated", "euler")
        recipes = [Recipe(prompt="a fox", model=str(folder), sampler=sampler) for sampler in named]
        places.append([store.path(recipe, model) for recipe in recipes])
    assert [one == other for one, other in zip(*places, strict=True)] == [False, False, True]
