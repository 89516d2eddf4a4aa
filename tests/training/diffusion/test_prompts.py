"""Prompts of previews: lines, tables and files, and what of them is refused or named."""

import pytest

from sd_ext.errors import InputError
from sd_ext.training.diffusion.prompts import Prompt, read_prompts
from sd_ext.training.diffusion.settings import PreviewSettings, Shot
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.command import parse
from sd_ext.training.settings.kept import keep_settings, kept_settings
from sd_ext.training.settings.written import make_config

LINE = "a fox, red --n blurry, low-res --w 768 --H 512 --d 7 --l 7.5 --s 30"
FOX = Prompt("a fox, red", "blurry, low-res", 768, 512, 7, 7.5, 30)


def test_a_line_a_table_and_their_files_say_the_same(tmp_path):
    table = {"prompt": "a fox, red", "negative-prompt": "blurry, low-res", "width": 768, "height": 512, "seed": 7,
             "guidance": 7.5, "steps": 30}  # fmt: skip
    assert read_prompts([LINE, table, FOX, "a cat"], "here") == (FOX, FOX, FOX, Prompt("a cat"))
    assert read_prompts((str(FOX),), "here") == (FOX,)
    lines, ours, theirs = (tmp_path / name for name in ("mine.txt", "mine.toml", "theirs.toml"))
    lines.write_text(f"# portraits\n\n{LINE}\n a cat \n")
    ours.write_text(f"prompts = ['{LINE}', {{prompt = 'a cat'}}]")
    theirs.write_text(
        "[prompt]\nwidth = 768\nheight = 512\nscale = 7.5\nsample_steps = 30\n"
        "[[prompt.subset]]\nprompt = 'a fox, red'\nnegative_prompt = 'blurry, low-res'\nseed = 7\n"
    )
    for file in (lines, ours):
        assert read_prompts(str(file), "here") == (FOX, Prompt("a cat"))
    assert read_prompts(str(theirs), "here") == (FOX,)
    assert read_prompts("a cat, a fox --s 3", "--prompts") == (Prompt("a cat"), Prompt("a fox", steps=3))
    mine = tmp_path / "settings.toml"
    mine.write_text("rank = 4\n[[prompts]]\nprompt = 'a cat'\nwidth = 64\n[[prompts]]\nprompt = 'a dog'\n")
    config, _ = parse(LoraConfig, [str(mine)], "")
    assert config.previews.prompts == (Prompt("a cat", width=64), Prompt("a dog"))
    keep_settings(config, tmp_path / "kept.toml")
    assert kept_settings(LoraConfig, tmp_path / "kept.toml") == config


def test_what_a_prompt_does_not_say_is_as_in_the_settings():
    settings = PreviewSettings(prompts=("a cat --h 100", LINE), negative_prompt="ugly", preview_seed=3)
    assert settings.shots(["unused"], 64, 8) == [
        Shot("a cat", "ugly", 3, 96, 64, 3.0, 20), Shot("a fox, red", "blurry, low-res", 7, 512, 768, 7.5, 30)
    ]  # fmt: skip
    assert [shot.seed for shot in PreviewSettings(preview_seed=3).shots(["a", "b"], 64, 8)] == [3, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["ok", "a fox --w wide"], "prompts: prompt 2: --w is 'wide'; it must be a whole number"),
        (["a fox --w 64.5"], "--w is '64.5'; it must be a whole number"),
        (["a fox --s 0"], "prompt 1: steps is 0; it must be 1 or more"),
        (["a fox --d -1"], "seed is -1"),
        (["a fox --l nan"], "guidance is nan"),
        ([{"prompt": "x", "widht": 3}], "did you mean 'width'"),
        ([{"prompt": "x", "width": "3"}], "width"),
        ([{"width": 3}], "no prompt; write its text"),
        ([3], "it must be a text or a table"),
        (7, "it must be a text or a table"),
        ("nowhere.txt", "nowhere.txt"),
    ],
)
def test_what_cannot_be_read_is_said(value, message):
    with pytest.raises(InputError, match=message):
        make_config(LoraConfig, {"prompts": value}, "mine.toml")


def test_files_without_prompts_and_options_of_others(tmp_path, caplog):
    for name, text in {"a.txt": "# none\n", "a.toml": "x = 1", "b.toml": "[prompt]\nwidth = 3"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"has no prompts|there are no \[\["):
            read_prompts(str(tmp_path / name), "here")
    assert read_prompts(["a fox --ss euler_a --w 64 --ar 3:2"], "prompts") == (Prompt("a fox", width=64),)
    assert [message.partition(" is not read")[0] for message in caplog.messages] == [
        "prompts: prompt 1: --ss euler_a", "prompts: prompt 1: --ar 3:2"
    ]  # fmt: skip
