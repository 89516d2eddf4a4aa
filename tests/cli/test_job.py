"""Many pictures: dealt, numbered, gone on with, packed into shards; nothing lost or made twice."""

import json
import os
import random
import signal
import tarfile
import time

import pytest

from sd_ext.cli.job import MANIFEST, Job
from sd_ext.cli.processes import Processes
from sd_ext.cli.request import Recipe
from sd_ext.errors import InputError

from ..few import few


def recipes(count, **more):
    return [Recipe(prompt=f"picture {n}", seed=n, **more) for n in range(count)]


def drawing(number):
    return f"the bytes of picture {number}".encode() * 50


def work(job, processes, pause=0.0):
    """What the command does, with another way to draw. Returns the numbers that were drawn."""
    job.begin()
    drawn = []
    for number in job.missing(processes):
        time.sleep(pause)
        job.write(number, drawing(number))
        drawn.append(number)
        job.pack(processes)
    job.pack(processes)
    return drawn


def content(job):
    """Number -> bytes, of all files or shards."""
    found = {}
    for path in job.folder.glob("*.png"):
        found[int(path.stem)] = path.read_bytes()
    for path in job.folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            for entry in archive:
                if entry.name.endswith(".png"):
                    assert int(entry.name[:-4]) not in found
                    found[int(entry.name[:-4])] = archive.extractfile(entry).read()
    return found


@pytest.mark.parametrize("shard", [0, 4])
@pytest.mark.parametrize("count", few([3, 1, 2, 7], 4))
def test_every_picture_is_drawn_once_by_any_number_of_processes(tmp_path, shard, count):
    job = Job(tmp_path / "out", recipes(11), shard=shard)
    drawn = [number for process in range(count) for number in work(job, Processes(process, count))]
    assert sorted(drawn) == list(range(11))
    assert content(job) == {number: drawing(number) for number in range(11)}
    assert [work(job, Processes(process, 2)) for process in range(2)] == [[], []]


def test_shards_are_the_same_bytes_and_read_as_webdataset_does(tmp_path):
    made = []
    for count in (1, 3):
        job = Job(tmp_path / str(count), recipes(10, steps=5), shard=4)
        for process in reversed(range(count)):
            work(job, Processes(process, count))
        assert sorted(p.name for p in job.folder.iterdir()) == [MANIFEST, *(f"shard-0000{n}.tar" for n in range(3))]
        made.append([path.read_bytes() for path in sorted(job.folder.glob("*.tar"))])
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "1" / "shard-00001.tar") as archive:
        names = archive.getnames()
        assert names[:3] == ["000004.png", "000004.json", "000004.txt"] and len(names) == 12
        assert json.load(archive.extractfile("000005.json"))["prompt"] == "picture 5"
        assert archive.extractfile("000006.txt").read() == b"picture 6"


@pytest.mark.parametrize("shard", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_processes_lose_and_repeat_nothing(tmp_path, shard):
    """Two processes at a time, killed at any moment, other numbers of processes after that."""
    job, order = Job(tmp_path / "out", recipes(14), shard=shard), random.Random(shard)
    log = tmp_path / "log"
    for attempt in range(12):
        count = order.choice((1, 2, 3))
        children = []
        for process in range(count):
            if (child := os.fork()) == 0:
                try:
                    drawn = work(job, Processes(process, count), pause=0.004)
                    log.with_name(f"log{attempt}-{process}").write_text(str(drawn))
                finally:
                    os._exit(0)
            children.append(child)
        time.sleep(order.uniform(0.0, 0.05))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        there = content(job)
        assert all(there[number] == drawing(number) for number in there)
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*.png")}
    work(job, Processes())
    assert content(job) == {number: drawing(number) for number in range(14)}
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path.exists())
    assert not list(job.folder.glob("*.parts"))


def test_the_manifest_says_everything_and_guards_the_folder(tmp_path):
    job = Job(tmp_path / "out", recipes(3))
    work(job, Processes())
    lines = [json.loads(line) for line in (job.folder / MANIFEST).read_text().splitlines()]
    assert [line.pop("file") for line in lines] == ["000000.png", "000001.png", "000002.png"]
    assert [Recipe.from_json(line, "a line") for line in lines] == list(job.recipes)
    other = [*recipes(2), Recipe(prompt="another")]
    with pytest.raises(InputError, match=r"is of other pictures \(line 3 differs\)"):
        work(Job(job.folder, other), Processes())
    with pytest.raises(InputError, match="is of other pictures"):
        work(Job(job.folder, recipes(2)), Processes())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_bytes(b"a holiday")
    with pytest.raises(InputError, match=r"holds 000000\.png, and no manifest\.jsonl"):
        work(Job(tmp_path / "mine", recipes(3)), Processes())
    assert (tmp_path / "mine" / "000000.png").read_bytes() == b"a holiday"


def test_processes_are_those_of_the_launcher():
    assert Processes.of({}) == Processes()
    assert Processes.of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Processes(5, 8, 1)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}):
        with pytest.raises(InputError, match="unset them, or start with accelerate launch"):
            Processes.of(wrong)
