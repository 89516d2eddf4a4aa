"""Several data sets in one run: each with its own settings, kohya's files, and what overlaps."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.data.items import Item
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.several import balanced, read_sets
from sd_ext.training.diffusion.samples import gather
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.command import parse
from sd_ext.training.train_text_to_image import TextToImageTask

from ..conftest import TINY, write_pictures


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`cat` and `dog`, two pictures with captions each, and `others`, two without; of `cat` one has a mask."""
    root = tmp_path_factory.mktemp("several")
    all_of_them = write_pictures(root / "all")
    for folder, names in {"cat": ["red_bar", "red_circle"], "dog": ["blue_bar", "blue_circle"],
                          "others": ["green_bar", "black_circle"]}.items():  # fmt: skip
        (root / folder).mkdir()
        for name in names:
            shutil.copy(all_of_them / f"{name}.png", root / folder)
            if folder != "others":
                (root / folder / f"{name}.txt").write_text(name.replace("_", " "))
    shutil.copy(root / "cat" / "red_bar.png", root / "cat" / "red_bar.mask.png")
    return root


def config_of(path: Path, text: str, *flags: str) -> LoraConfig:
    path.write_text(text)
    return parse(LoraConfig, [str(path), "--resolution", "32", "--bucket-step", "8", *flags], "")[0]


def ours(folders: Path) -> str:
    return f"""
prefix = "trigger,"
flip = true

[[data]]
data = "{folders}/cat"
repeats = 3
prefix = "sks cat,"
weight = 0.5
masks = false

[[data]]
data = "{folders}/dog"
flip = false

[[data]]
data = "{folders}/others"
prompt = "an animal"
regularisation = true
"""


def kohyas(folders: Path) -> str:
    return f"""
[general]
flip_aug = true
caption_prefix = "trigger,"
shuffle_caption = true
caption_extension = ".txt"

[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = "{folders}/cat"
num_repeats = 3
caption_prefix = "sks cat,"
[[datasets.subsets]]
image_dir = "{folders}/dog"
flip_aug = false

[[datasets]]
caption_extension = ".text"
[[datasets.subsets]]
image_dir = "{folders}/others"
class_tokens = "an animal"
is_reg = true
"""


def told(config: LoraConfig) -> tuple[dict[str, tuple], Pictures]:
    pictures = gather(config, 8).pictures
    samples = pictures.samples
    facts = {}
    for sample in samples:
        item, times = sample.item, samples.count(sample)
        known = times, item.prefix, item.caption, sample.weight, sample.masked, item.flip, item.prior
        facts[Path(item.name).stem] = known
    return facts, pictures


def test_each_set_has_its_own_settings(folders, tmp_path):
    config = config_of(tmp_path / "a.toml", ours(folders))
    assert [each.data for each in config.data.sets] == [f"{folders}/{name}" for name in ("cat", "dog", "others")]
    facts, _ = told(config)
    assert facts == {
        "red_bar": (3, "sks cat,", "red bar", 0.5, False, True, False),
        "red_circle": (3, "sks cat,", "red circle", 0.5, False, True, False),
        "blue_bar": (1, None, "blue bar", 1.0, False, False, False),
        "blue_circle": (1, None, "blue circle", 1.0, False, False, False),
        "green_bar": (1, None, "an animal", 1.0, False, True, True),
        "black_circle": (1, None, "an animal", 1.0, False, True, True),
    }
    assert config.change(flip=False).data.sets == config.data.sets


def test_kohyas_file_is_read_as_it_is(folders, tmp_path, caplog):
    """The same data sets, by its names; what it says of the run is named."""
    (tmp_path / "kohya.toml").write_text(kohyas(folders))
    config, _ = parse(
        LoraConfig, ["--sets", str(tmp_path / "kohya.toml"), "--resolution", "32", "--bucket-step", "8"], ""
    )
    facts, _ = told(config)
    wanted, _ = told(config_of(tmp_path / "a.toml", ours(folders)))
    for name in ("red_bar", "red_circle"):
        wanted[name] = (*wanted[name][:3], 1.0, name == "red_bar", True, False)
    for name in ("blue_bar", "blue_circle"):  # kohya's [general] is not ours, so each set has the prefix itself
        wanted[name] = (1, "trigger,", *wanted[name][2:])
    assert facts == wanted
    (said,) = (record.getMessage() for record in caplog.records if "not read" in record.getMessage())
    named = ("caption_extension (here .txt goes before .caption)", "resolution (here resolution)")
    assert ", ".join((*named, "shuffle_caption (here shuffle_tags)")) in said


def test_a_batch_has_what_its_sets_say(folders, tmp_path, tiny_pipeline_dir):
    """Texts, weights and mirroring of each sample, as they reach the loss."""
    sets = config_of(tmp_path / "a.toml", ours(folders)).data.sets
    settings = {**TINY, "resolution": 32, "model": str(tiny_pipeline_dir), "prefix": "trigger,", "flip": True,
                "text_dropout": 0.0, "out": str(tmp_path / "run")}  # fmt: skip
    settings.pop("data", None)
    task = TextToImageTask(TextToImageConfig.of(**settings, sets=sets))
    texts = {Path(s.item.name).stem: {task.texts[i] for i in own}
             for s, own in zip(task.pictures.samples, task.choices, strict=True)}  # fmt: skip
    assert texts == {
        "red_bar": {"sks cat, red bar"}, "red_circle": {"sks cat, red circle"}, "blue_bar": {"trigger, blue bar"},
        "blue_circle": {"trigger, blue circle"}, "green_bar": {"an animal"}, "black_circle": {"an animal"},
    }  # fmt: skip
    assert task.prompts == ["sks cat, red bar", "sks cat, red circle", "trigger, blue bar", "trigger, blue circle"]
    task.begin(Accelerator(cpu=True))
    from sd_ext.training.data.order import Pass

    flips: dict[int, set] = {}
    for step in range(30):
        each = Pass(step, tuple(range(len(task.pictures))), tuple(range(len(task.pictures))), len(task.pictures))
        drawn = task.read(each)
        for sample, flip in zip(each.samples, drawn.flips, strict=True):
            flips.setdefault(sample, set()).add(flip)
    mirrored = {Path(task.pictures.samples[i].item.name).stem for i, seen in flips.items() if seen == {True, False}}
    assert mirrored == {"red_bar", "red_circle", "green_bar", "black_circle"}
    weight = task.batch(each, drawn, torch.device("cpu"))[3]
    plain = task.levels.weight(drawn.t)
    names = [task.pictures.samples[i].item.group for i in each.samples]
    factors = torch.tensor([0.5 if name.endswith("cat") else 1.0 for name in names])
    torch.testing.assert_close(weight, plain * factors)


def test_the_report_counts_each_set(folders, tmp_path, capsys):
    gather(config_of(tmp_path / "a.toml", ours(folders)), 8).report()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("data: 4 pictures, 8 samples an epoch")
    assert f"  {folders}/cat: 2 pictures, 6 samples an epoch" in said
    assert f"  {folders}/others: 2 pictures, 2 samples an epoch, for regularisation" in said


def test_what_overlaps_is_refused_or_named(folders, tmp_path):
    inner = folders / "cat" / "inner"
    inner.mkdir(exist_ok=True)
    shutil.copy(folders / "dog" / "blue_bar.png", inner / "blue_bar.png")
    (inner / "blue_bar.txt").write_text("inner")
    both = f'[[data]]\ndata = "{folders}/cat"\n\n[[data]]\ndata = "{inner}"\n'
    try:
        assert gather(config_of(tmp_path / "a.toml", both), 8).pictures.notes == [
            (f"{inner}/blue_bar.png", f"is in the data set {folders}/cat too")
        ]
        with pytest.raises(InputError, match=r"one is for regularisation; take it out of one"):
            gather(config_of(tmp_path / "a.toml", both + "regularisation = true\n"), 8)
    finally:
        shutil.rmtree(inner)
    with pytest.raises(InputError, match=r"data sets 1 and 2 are both"):
        read_sets([{"data": f"{folders}/cat"}, {"data": f"{folders}/dog/../cat"}], "here")


def test_wrong_tables_are_refused_with_their_place(folders, tmp_path):
    for text, kind, words in (
        ('[[data]]\nrepeats = 2\n', InputError, "data set 1: no data"),
        ('[[data]]\ndata = " "\n', InputError, "data is empty"),
        ('[[data]]\ndata = "a"\nprefixx = "b"\n', UnknownNameError, "prefix"),
        ('[[data]]\ndata = "a"\nrepeats = "two"\n', InputError, "repeats"),
        ('[[data]]\ndata = "a"\nrepeats = 0\n', InputError, "from 1 to"),
        ('[[data]]\ndata = "a"\nweight = -1.0\n', InputError, "weight is -1.0"),
        ('[[data]]\ndata = "a"\nregularisation = true\nprefix = "b"\n', InputError, "get no prefix"),
        ('data = ["a"]\n', InputError, r"must be a table \[\[data\]\]"),
        ('sets = "gone.toml"\n', InputError, "gone.toml"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            config_of(tmp_path / "a.toml", text)
    with pytest.raises(InputError, match="not both"):
        config_of(tmp_path / "a.toml", ours(folders), "--data", str(folders))
    (tmp_path / "kohya.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n")
    with pytest.raises(InputError, match="data set 1, subset 1: no image_dir"):
        read_sets(str(tmp_path / "kohya.toml"), "--sets")


def test_regularisation_is_balanced(tmp_path):
    def item(name: str, repeats: int, prior: bool) -> Item:
        return Item(name, bytes, "x", repeats=repeats, prior=prior)

    few = [item("a", 1, False), item("b", 2, False), *(item(f"r{n}", 1, True) for n in range(10))]
    assert [each.repeats for each in balanced(few)] == [4, 6, *[1] * 10]
    many = [item("a", 5, False), item("b", 2, False), item("r", 1, True), item("s", 2, True)]
    assert [each.repeats for each in balanced(many)] == [5, 2, 3, 4]
    assert balanced(few[:2]) == few[:2]
    for sets in ("", "[[data]]\ndata = 'a'\n", "[[data]]\ndata = 'a'\nregularisation = true\n"):
        with pytest.raises(InputError, match="balance is between data sets with and without"):
            config_of(tmp_path / "mine.toml", f"balance = true\n{sets}")


def test_an_epoch_has_as_many_of_both(folders, tmp_path):
    data = ours(folders).replace('prefix = "trigger,"', 'prefix = "trigger,"\nbalance = true', 1)
    samples = gather(config_of(tmp_path / "mine.toml", data), 8).pictures.samples
    counts = Counter(sample.item.prior for sample in samples)
    assert counts[True] == counts[False] > 0
