"""--prompts FILE: lines of text, rows and JSON, with options of their own."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from sd_ext.cli.lines import read_prompts
from sd_ext.cli.pictures import read_record
from sd_ext.errors import InputError
from sd_ext.lora import save_lora
from tests.lora import tiny


def options(source):
    return [given for _, given in read_prompts(str(source))]


@pytest.fixture
def stdin(monkeypatch):
    """`stdin(b"...")` puts bytes there."""
    return lambda content: monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_lines_of_text(tmp_path, stdin):
    content = '\ufeffred apple\r\n\r\n  (blue:1.2) heart, {x}\r\n# 1, "two"'.encode()
    expected = [{"prompt": text} for text in ("red apple", "(blue:1.2) heart, {x}", '# 1, "two"')]
    (tmp_path / "a.txt").write_bytes(content)
    stdin(content)
    assert options(tmp_path / "a.txt") == options("-") == expected


def test_rows(tmp_path):
    (tmp_path / "a.CSV").write_text(
        'prompt,steps,guidance,plain-prompt,lora,clip_skip,size\n"red, round",7,2.5,yes,a:0.5; b,2,64x80\nblue,,,,,,\n'
    )
    first, second = options(tmp_path / "a.CSV")
    assert first == {"prompt": "red, round", "steps": 7, "guidance": 2.5, "plain_prompt": True,
                     "lora": ("a:0.5", "b"), "clip_skip": 2, "size": "64x80"}  # fmt: skip
    assert second == {"prompt": "blue"}


def test_json(tmp_path, stdin):
    lines = [{"prompt": "red", "seed": 5, "--clip-skip": 2, "lora": "a:0.5", "num": 3}, {"prompt": "b", "lora": ["a"]}]
    content = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    stdin(content)
    expected = [
        {"prompt": "red", "seed": 5, "clip_skip": 2, "lora": ("a:0.5",), "num": 3},
        {"prompt": "b", "lora": ("a",)},
    ]
    assert options(tmp_path / "a.jsonl") == options("-") == expected


BAD = {
    "a.txt": [("", "holds no prompt"), (b"\xe4\n", "not UTF-8"), (None, "is not there")],
    "a.md": [("x", "ends in none of .txt, .csv, .jsonl")],
    "a.csv": [
        ("prompt\n", "holds no prompt"),
        ("steps\n3\n", "line 2 gives no prompt"),
        ("prompt,steps\nx,many\n", "line 2: steps is 'many', not a whole number"),
        ("prompt,guidance\nx,much\n", "line 2: guidance is 'much', not a number"),
        ("prompt,plain_prompt\nx,maybe\n", "line 2: plain_prompt is 'maybe'"),
        ("prompt,steeps\nx,3\n", "line 2: there is no option 'steeps'|did you mean 'steps'"),
        ("prompt,model\nx,y\n", "line 2: model holds for the whole run; give --model"),
        ("prompt,trust-remote-code\nx,y\n", "give --trust-remote-code"),
        ("prompt,device\nx,cpu\n", "give --device"),
        ("prompt,steps\nx,3,4\n", "3 cells"),
    ],
    "a.jsonl": [
        ("red apple", "line 1 is not valid JSON"),
        ('["x"]', "line 1"),
        ('{"prompt": 3}', "prompt"),
        ('{"prompt": "x", "steps": 3.5}', "line 1.*steps"),
        ('{"prompt": "x"}\n{"prompt": "x", "lora": [1]}', "line 2.*lora"),
    ],
}


@pytest.mark.parametrize(("name", "content", "message"), [(name, *each) for name in BAD for each in BAD[name]])
def test_what_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_prompts(str(tmp_path / name))


def test_every_line_is_drawn_with_its_own_options(run, tiny_pipeline_dir, tmp_path):
    """Each picture is the one that its options alone make; what a line changes, such as weights, the next has not."""
    save_lora(tiny.trained("lora")[1], tmp_path / "style.safetensors", "kohya")
    lines = [
        {"prompt": "red apple", "lora": "style.safetensors:0.7"},
        {"prompt": "red apple", "num": 2, "sampler": "euler a", "seed": 9},
        {"prompt": "(red) apple", "unet": "fast", "steps": 3},
        {"prompt": "red apple", "size": "64x80", "negative": "blue"},
        {"prompt": "red apple"},
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    base = "generate", "--model", tiny_pipeline_dir, "--steps", 2, "--guidance", 5
    *paths, _ = run(*base, "blue heart", "--prompts", "all.jsonl", "--out", "all").paths
    recipes = [read_record(path).recipe for path in paths]
    assert [(recipe.prompt, recipe.seed, recipe.steps) for recipe in recipes] == [
        ("blue heart", 0, 2), ("red apple", 0, 2), ("red apple", 9, 2), ("red apple", 10, 2), ("(red) apple", 0, 3),
        ("red apple", 0, 2), ("red apple", 0, 2),
    ]  # fmt: skip
    for path in (paths[1], *paths[4:]):  # the others were drawn in one batch, which may round otherwise
        again = run("generate", "--again", path, "--out", "again").paths[0]
        assert again.read_bytes() == path.read_bytes()
    assert Image.open(paths[5]).size == (64, 80)
    assert Image.open(paths[1]).tobytes() != Image.open(paths[6]).tobytes()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("red apple\n", ["--prompts", "none.txt"], "none.txt is not there"),
        ('{"prompt": "x"}\n{"prompt": "x", "steps": 0}', ["--prompts", "a.jsonl"], "a.jsonl, line 2: --steps 0"),
        ('{"prompt": "x", "num": 0}', ["--prompts", "a.jsonl"], "a.jsonl, line 1: --num 0"),
        ('{"prompt": " "}', ["--prompts", "a.jsonl"], "a.jsonl, line 1: a prompt is empty"),
        ('{"prompt": "x"}\n' * 1001, ["--prompts", "a.jsonl"], "1001 pictures are too many"),
        ('{"prompt": "x", "num": 600}\n' * 2, ["--prompts", "a.jsonl"], "1200 pictures are too many"),
        ('{"prompt": "x", "lora": "none"}', ["--prompts", "a.jsonl"], "no such LoRA: none"),
        ('{"prompt": "x"}\n{"prompt": "x", "sampler": "eular"}', ["--prompts", "a.jsonl"], "did you mean"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    run, tiny_pipeline_dir, tmp_path, monkeypatch, content, arguments, message
):
    def too_late(*arguments):
        raise AssertionError("the model was loaded before its arguments were checked")

    monkeypatch.setattr("sd_ext.cli.prepare.load_pipeline", too_late)
    (tmp_path / "a.jsonl").write_text(content)
    refused = run("generate", "--model", tiny_pipeline_dir, *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert refused.err.count("\n") == 1
