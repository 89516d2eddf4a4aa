"""Time and peak memory of converting, merging, resizing and extracting LoRA files, beside LyCORIS where it can do it.

    python benchmarks/lora_files.py                  # SDXL's shapes, rank 32, an eleventh of the modules
    python benchmarks/lora_files.py --every 87 --repeats 1      # quick
    python benchmarks/lora_files.py --every 1        # all of them; LyCORIS's decompositions take hours

Each operation runs in a process of its own, on one thread, on the same files of random numbers: two LoRAs of the linear
layers in the attention blocks of SDXL's U-Net, and two U-Nets that differ by a change of rank 64. Of LyCORIS (PyPI
lycoris-lora) the function behind its extraction is called, `extract_linear` (a singular value decomposition), also for
resizing; it has nothing that merges LoRA files into one. kohya's scripts are in no package and are not run. Time is the
processor's, so that other processes on the machine count little. Memory is the peak beyond what the process held when
its libraries had been imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from _report import write

os.environ.setdefault("OMP_NUM_THREADS", "1")

RANK, TUNED_RANK = 32, 64
EVERY = 11  # of SDXL's modules one is taken; without a factor of 10, as a block has ten, so that all kinds are there


def shapes(every: int) -> dict[str, tuple[int, int]]:
    """Path in Diffusers' naming -> (out, in) of every so many linear layers of SDXL's attention blocks."""
    levels = {"down_blocks.1": (640, 2, 2), "down_blocks.2": (1280, 2, 10), "mid_block": (1280, 1, 10),
              "up_blocks.0": (1280, 3, 10), "up_blocks.1": (640, 3, 2)}  # fmt: skip
    found: dict[str, tuple[int, int]] = {}
    for block, (width, layers, depth) in levels.items():
        for layer in range(layers):
            for number in range(depth):
                path = f"{block}.attentions.{layer}.transformer_blocks.{number}"
                for attention, inside in ((1, width), (2, 2048)):
                    found |= {f"{path}.attn{attention}.to_{n}": (width, inside if n in "kv" else width) for n in "qkv"}
                    found[f"{path}.attn{attention}.to_out.0"] = width, width
                found |= {f"{path}.ff.net.0.proj": (8 * width, width), f"{path}.ff.net.2": (width, 4 * width)}
    return dict(list(found.items())[::every])


def make(folder: Path, every: int) -> None:
    """Write the files of random numbers."""
    import torch
    from safetensors.torch import save_file

    from sd_ext.lora import Adapter, Lora, ModuleName, save_lora

    draw = torch.Generator().manual_seed(0)
    listed = shapes(every)
    for name in ("one", "two"):
        adapters = {}
        for path, (out, inside) in listed.items():
            down, up = (torch.randn(shape, generator=draw) * 0.02 for shape in ((RANK, inside), (out, RANK)))
            adapters[ModuleName("unet", path)] = Adapter("lora", {"down": down.half(), "up": up.half()}, RANK / 2)
        save_lora(Lora(adapters, base="sdxl"), folder / f"{name}.safetensors", "kohya")
    base, tuned = {}, {}
    for path, (out, inside) in listed.items():
        weight = torch.randn(out, inside, generator=draw) * inside**-0.5
        change = torch.randn(out, TUNED_RANK, generator=draw) @ torch.randn(TUNED_RANK, inside, generator=draw)
        base[f"{path}.weight"], tuned[f"{path}.weight"] = weight.half(), (weight + 1e-4 * change).half()
    for name, weights in (("base", base), ("tuned", tuned)):
        (folder / name / "unet").mkdir(parents=True)
        save_file(weights, folder / name / "unet" / "diffusion_pytorch_model.safetensors")
        (folder / name / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        (folder / name / "model_index.json").write_text(json.dumps(index))


# ---- ours ------------------------------------------------------------------------------------------------------------


def convert(folder: Path, out: Path) -> None:
    from sd_ext.lora import read_lora, save_lora

    save_lora(read_lora(folder / "one.safetensors"), out, "diffusers")


def merge(folder: Path, out: Path) -> None:
    from sd_ext.lora import Aside, merge, read_lora, save_lora

    aside = Aside(folder)
    loras = [(aside.lora(read_lora(folder / f"{name}.safetensors")), 0.5) for name in ("one", "two")]
    save_lora(merge(loras, aside=aside), out, "kohya")


def resize(folder: Path, out: Path) -> None:
    from sd_ext.lora import read_lora, resize, save_lora

    save_lora(resize(read_lora(folder / "one.safetensors"), rank=8), out, "kohya")


def extract(folder: Path, out: Path) -> None:
    from sd_ext.lora import extract, save_lora

    save_lora(extract(folder / "base", folder / "tuned", rank=RANK), out, "kohya", base="sdxl")


# ---- LyCORIS ---------------------------------------------------------------------------------------------------------


def lycoris_resize(folder: Path, out: Path) -> None:
    import torch
    from lycoris.utils import extract_linear
    from safetensors.torch import load_file, save_file

    tensors, made = load_file(folder / "one.safetensors"), {}
    for key in [key for key in tensors if key.endswith(".lora_down.weight")]:
        name = key.removesuffix(".lora_down.weight")
        down, up = tensors[key].float(), tensors[f"{name}.lora_up.weight"].float()
        weight = up @ down * (tensors[f"{name}.alpha"].item() / len(down))
        (made[f"{name}.lora_down.weight"], made[f"{name}.lora_up.weight"], _), _ = extract_linear(
            weight, mode="fixed", mode_param=8, device="cpu"
        )
        made[f"{name}.alpha"] = torch.tensor(8.0)
    save_file({key: tensor.contiguous() for key, tensor in made.items()}, out)


def lycoris_extract(folder: Path, out: Path) -> None:
    import torch
    from lycoris.utils import extract_linear
    from safetensors.torch import load_file, save_file

    file = "unet/diffusion_pytorch_model.safetensors"
    base, tuned, made = load_file(folder / "base" / file), load_file(folder / "tuned" / file), {}
    for key, weight in base.items():
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        (made[f"{name}.lora_down.weight"], made[f"{name}.lora_up.weight"], _), _ = extract_linear(
            tuned[key].float() - weight.float(), mode="fixed", mode_param=RANK, device="cpu"
        )
        made[f"{name}.alpha"] = torch.tensor(float(RANK))
    save_file({key: tensor.contiguous() for key, tensor in made.items()}, out)


OURS: Mapping[str, Callable[[Path, Path], None]] = {
    "convert": convert,
    "merge": merge,
    "resize": resize,
    "extract": extract,
}
THEIRS: Mapping[str, Callable[[Path, Path], None]] = {"resize": lycoris_resize, "extract": lycoris_extract}
SIDES = {"sd_ext": OURS, "LyCORIS": THEIRS}


def memory(name: str) -> int:
    """Bytes, from /proc/self/status: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def one(side: str, operation: str, folder: Path) -> None:
    """Run one operation in this process, and print its seconds and bytes."""
    import torch

    import sd_ext.lora.tools  # noqa: F401  as its libraries are imported before memory is looked at

    torch.set_num_threads(1)
    if side == "LyCORIS":
        import lycoris.utils  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    SIDES[side][operation](folder, folder / f"{side}_{operation}.safetensors")
    print(json.dumps([time.process_time() - start, memory("VmHWM") - before]))


def measured(side: str, operation: str, work: str, repeats: int) -> dict[str, float] | None:
    """The least seconds and the most bytes of an operation; None if this side has none such."""
    if operation not in SIDES[side]:
        return None
    command = [sys.executable, __file__, "--one", side, operation, work]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(repeats)]
    told = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    return {"seconds": min(seconds for seconds, _ in told), "bytes": max(count for _, count in told)}


def table(found: Mapping[str, Mapping[str, dict[str, float] | None]]) -> str:
    lines = ["| operation | sd_ext, s | sd_ext, MiB | LyCORIS, s | LyCORIS, MiB |", "|---|---:|---:|---:|---:|"]
    for operation, sides in found.items():
        cells = [f"{each['seconds']:.1f} | {each['bytes'] / 2**20:.0f}" if each else "- | -" for each in sides.values()]
        lines.append(f"| {operation} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=EVERY, help="of SDXL's modules one is taken of so many")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest is taken")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "OPERATION", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], given.one[1], Path(given.one[2]))
        return
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), given.every)
        size, count = (Path(work) / "one.safetensors").stat().st_size, len(shapes(given.every))
        found = {name: {side: measured(side, name, work, given.repeats) for side in SIDES} for name in OURS}
    text = (
        f"LoRA files of {size / 2**20:.1f} MiB (rank {RANK}, {count} of SDXL's linear layers, float16), resized to "
        f"rank 8, and extracted at rank {RANK}.\nOne thread; seconds of processor time, the least of "
        f"{given.repeats}; other processes shared the machine. MiB beyond the libraries.\n\n{table(found)}\n"
    )
    write("lora_files", {"modules": count, "file": size, "repeats": given.repeats, "results": found}, text)


if __name__ == "__main__":
    main()
