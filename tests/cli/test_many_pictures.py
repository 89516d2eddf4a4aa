"""`sd-ext generate` for many pictures: --manifest, --shards, several processes, and what stops in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from sd_ext.cli.job import MANIFEST


@pytest.fixture
def draw(run, tiny_pipeline_dir, monkeypatch):
    """`draw(process, processes, ...)`: five pictures of two prompts, as one of several processes."""

    def draw(process, processes, *arguments):
        for name, value in (("RANK", process), ("WORLD_SIZE", processes), ("LOCAL_RANK", process)):
            monkeypatch.setenv(name, str(value))
        return run(
            "generate", "a", "b", "--num", 2, "--out", "all", "--model", tiny_pipeline_dir, "--steps", 2, *arguments
        )

    return draw


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_processes_draw_what_one_would_and_what_is_there_stays(draw, tmp_path):
    alone = draw(0, 1, "--manifest")
    assert alone.code == 0 and [path.name for path in alone.paths] == [f"{n:06d}.png" for n in range(4)]
    one = {path.name: pixels(path) for path in alone.paths}
    (tmp_path / "all").rename(tmp_path / "one")
    first = draw(1, 2)
    assert [path.name for path in first.paths] == ["000001.png", "000003.png"]
    before = (tmp_path / "all" / "000001.png").stat().st_mtime_ns
    second = draw(0, 2)
    assert [path.name for path in second.paths] == ["000000.png", "000002.png"]
    (tmp_path / "all" / "000002.png").unlink()
    third = draw(0, 1, "--manifest")
    assert [path.name for path in third.paths] == ["000002.png"] and "3 of 4 pictures are there already" in third.err
    assert draw(0, 1, "--manifest").out == ""
    assert (tmp_path / "all" / "000001.png").stat().st_mtime_ns == before
    for name, wanted in one.items():
        assert np.abs(pixels(tmp_path / "all" / name).astype(int) - wanted).max() <= 1  # batches differ, to rounding
    lines = [json.loads(line) for line in (tmp_path / "all" / MANIFEST).read_text().splitlines()]
    assert [(line["file"], line["prompt"], line["seed"]) for line in lines] == [
        ("000000.png", "a", 0), ("000001.png", "a", 1), ("000002.png", "b", 0), ("000003.png", "b", 1)
    ]  # fmt: skip
    other = draw(0, 1, "--manifest", "--seed", 5)
    assert other.code == 2 and "is of other pictures (line 1 differs)" in other.err


def test_shards(draw, tmp_path):
    done = draw(0, 1, "--shards", 3)
    assert [path.name for path in done.paths] == ["shard-00000.tar", "shard-00001.tar"]
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [MANIFEST, "shard-00000.tar", "shard-00001.tar"]
    with tarfile.open(done.paths[0]) as archive:
        assert [name.partition(".")[2] for name in archive.getnames()] == ["png", "json", "txt"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manifest", "--out", "one.png", "--num", 1], "pictures are to be made"),
        (["--shards", 0], "--shards is 0; give the number of pictures"),
    ],
)
def test_what_cannot_be_numbered(draw, arguments, message, tmp_path):
    done = draw(0, 1, *arguments)
    assert done.code == 2 and message in done.err and not (tmp_path / "all").exists()


def test_samplers_with_cfg_plus_plus_are_attached_and_drawn_with_mild_guidance(run, tiny_pipeline_dir):
    done = run("generate", "a", "--model", tiny_pipeline_dir, "--steps", 3, "--sampler", "euler_cfg_pp")
    assert done.code == 0 and "is drawn with guidance 1.6" in done.err


def test_samplers_with_cfg_plus_plus_are_plain_without_guidance_and_say_so(run, tiny_pipeline_dir, caplog):
    plain = ("generate", "a", "--model", tiny_pipeline_dir, "--steps", 3, "--guidance", 1, "--seed", 0, "--sampler")
    pictures = []
    for sampler in ("euler", "euler cfg++"):
        assert "here there is no guidance" not in caplog.text
        done = run(*plain, sampler)
        assert done.code == 0
        pictures.append(np.asarray(Image.open(done.out.strip()), int))
    assert "here there is no guidance" in caplog.text
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.slow
def test_two_processes_killed_at_any_moment(tiny_pipeline_dir, tmp_path):
    """Real processes and SIGKILL: every picture once, whole, and as a run that was left alone draws it."""
    out = tmp_path / "all"
    command = [sys.executable, "-m", "sd_ext.cli", "generate", *"abcdef", "--num", "4", "--steps", "3", "--shards", "5",
               "--out", str(out), "--model", str(tiny_pipeline_dir)]  # fmt: skip
    order = random.Random(0)
    for _ in range(12):
        ours = [
            {**os.environ, "RANK": str(n), "WORLD_SIZE": "2", "LOCAL_RANK": str(n), "OMP_NUM_THREADS": "1"}
            for n in range(2)
        ]
        children = [subprocess.Popen(command, env=each, stdout=subprocess.DEVNULL) for each in ours]
        time.sleep(order.uniform(4, 14))
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    found = []
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for entry in archive:
                if entry.name.endswith(".png"):
                    Image.open(archive.extractfile(entry)).load()
                    found.append(int(entry.name[:-4]))
    assert found == list(range(24)) and not list(out.glob("*.parts"))
