"""Tensors on the disk: the same bits, the same files, and as little memory as is said."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from sd_ext.lora import Aside, Combine, merge, read_lora, save_lora
from sd_ext.lora.formats.body import TYPES, Body

from . import tiny

MIB = 2**20


def test_files_are_those_of_the_safetensors_library(tmp_path):
    tensors = {f"{i}": torch.arange(i % 3 * 5).to(dtype) for i, dtype in enumerate([*TYPES, *TYPES])}
    tensors |= {"a": torch.tensor(2.0), "b": torch.ones(3, 4).T, "c": torch.randn(1000, 1000)}
    body = Body(tmp_path / "work")
    for name, tensor in tensors.items():
        body.add(name, tensor)
    for said in ({}, {"ss_seed": "7"}):
        body.fill(tmp_path / "a.safetensors", said)
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, said or None)
        written = (tmp_path / "a.safetensors").read_bytes()
        assert written == content
        start = 8 + int.from_bytes(content[:8], "little")
        legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
        assert body.hashes(said) == (hashlib.sha256(content[start:]).hexdigest(), legacy)
    again = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(again[name].float(), tensor.float()) for name, tensor in tensors.items())
    body.close()


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_what_is_put_aside_makes_the_same_file(format, tmp_path):
    loras = [tiny.trained(kind)[1] for kind in ("lora", "lora", "loha")[: 2 if format == "diffusers" else 3]]
    aside = Aside(tmp_path)
    for name, put, into in (("a", loras, None), ("b", [aside.lora(each) for each in loras], aside)):
        made = merge([(each, 0.5) for each in put], energy=0.9, how=Combine("ties"), aside=into)
        save_lora(made, tmp_path / f"{name}.safetensors", format, metadata={"ss_output_name": "x"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    one = aside.lora(loras[0])
    for module, adapter in loras[0].adapters.items():
        assert one.adapters[module].tensors.keys() == adapter.tensors.keys()
        assert all(torch.equal(one.adapters[module].tensors[n], t) for n, t in adapter.tensors.items())
    with pytest.raises(KeyError):
        next(iter(one)).tensors["sideways"]


PEAK = """
import sys
from sd_ext.cli import main

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

small, *files, out = sys.argv[1:]
assert main(["convert", "merge", small, small, "--out", out + ".small.safetensors"]) == 0
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = memory("VmRSS")
assert main(["convert", "merge", *files, "--out", out]) == 0
print(memory("VmHWM") - before)
"""


def peaks_of(arguments: list[str]) -> Iterator[int]:
    """The peak of memory of one run after another."""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield int(done.stdout.splitlines()[-1])
        Path(arguments[-1]).unlink()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux alone")
def test_merging_and_hashing_take_little_more_than_the_larger_file(tmp_path):
    """The whole command: reading, merging by concatenation into a file twice as large, its hashes, writing it.

    What else is busy on the machine only adds to the peak (pages of files that are read stay or go), so that of up to
    five runs the least counts.
    """
    modules = [f"lora_unet_down_blocks_{i}_attentions_{j}_transformer_blocks_0_attn{k}_to_{n}"
               for i in range(2) for j in range(2) for k in (1, 2) for n in ("q", "k", "v")]  # fmt: skip

    def write(name: str, rank: int, seed: int) -> Path:
        draw = torch.Generator().manual_seed(seed)
        shapes = {"down": (rank, 1280), "up": (1280, rank)}
        tensors = {f"{module}.lora_{end}.weight": torch.randn(shape, generator=draw).half()
                   for module in modules for end, shape in shapes.items()}  # fmt: skip
        save_file(tensors, tmp_path / name, {"ss_base_model_version": "sd_v1"})
        return tmp_path / name

    files = [write("small.safetensors", 1, 0), *(write(f"{i}.safetensors", 256, i) for i in (1, 2))]
    size = files[1].stat().st_size
    module = 2 * 4 * 2 * 256 * 1280 * 2  # both factors of both files, in float32, and what comes of them
    peaks = peaks_of([*map(str, files), str(tmp_path / "out.safetensors")])
    assert any(peak < 1.2 * size + module for peak in peaks)
    assert (tmp_path / "out.safetensors").stat().st_size > 1.9 * size
    one, other, made = (read_lora(path) for path in (*files[1:], tmp_path / "out.safetensors"))
    first = next(iter(made.adapters))
    torch.testing.assert_close(made.delta(first), one.delta(first) + other.delta(first), rtol=2e-2, atol=2e-1)
