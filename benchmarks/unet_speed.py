"""How much faster is a guided sampling with the U-Net's variants, at full size?

    python benchmarks/unet_speed.py [--models sd15 sdxl] [--calls 12] [--repeats 3] [--dtype bf16]

Stable Diffusion 1.5's and XL's own configurations with random weights, latents of 64 x 64, guidance in one batch of
two, DPM++ 2M. Each repeat runs the plain U-Net and every variant in turn; what counts is the median of the ratios.
Beside it stands the ceiling: the ratio of floating-point operations, counted. Peak memory is what a sampling adds to
the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _report import write
from torch.utils.flop_counter import FlopCounterMode

import sd_ext

SDXL = {
    "sample_size": 128, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"sd15": {"sample_size": 64, "cross_attention_dim": 768}, "sdxl": SDXL}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "cache N=2": {"cache_interval": 2, "cache_depth": 0, "cache_layer": 0},
        "cache N=3": {"cache_interval": 3, "cache_depth": 0, "cache_layer": 0},
        "cache N=5": {"cache_interval": 5, "cache_depth": 0, "cache_layer": 0},
        "tokens merged by half": {"token_merge_ratio": 0.5},
    },
    "sdxl": {
        "cache N=2": {"cache_interval": 2, "cache_depth": 1, "cache_layer": 0},
        "cache N=3": {"cache_interval": 3, "cache_depth": 1, "cache_layer": 0},
        "cache N=5": {"cache_interval": 5, "cache_depth": 1, "cache_layer": 0},
        "tokens merged by half": {"token_merge_ratio": 0.5},
    },
}


def build(name: str, dtype: torch.dtype) -> Any:
    """The U-Net of a configuration, without gradients; its weights are noise of a usual size."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**CONFIGS[name])
    unet = unet.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    torch.manual_seed(0)
    for key, p in unet.named_parameters():
        p.fill_(1.0) if "norm" in key and key.endswith("weight") else p.uniform_(-0.02, 0.02)
    return unet


def inputs(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a guided call takes beside latent and timestep, a batch of two."""
    width = CONFIGS[name]["cross_attention_dim"]
    made: dict[str, Any] = {"encoder_hidden_states": torch.randn(2, 77, width, dtype=dtype)}
    if name == "sdxl":
        ids = torch.tensor([[512.0, 512, 0, 0, 512, 512]] * 2)
        made["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 1280, dtype=dtype), "time_ids": ids}
    return made


@torch.no_grad()
def sample(unet: Any, given: dict[str, Any], calls: int, dtype: torch.dtype) -> float:
    """Seconds of one guided sampling."""
    scheduler = sd_ext.make_scheduler("dpm++ 2m")
    scheduler.set_timesteps(calls)
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    started = time.perf_counter()
    for t in scheduler.timesteps:
        without, with_text = unet(torch.cat([x, x]), t, **given).sample.chunk(2)
        x = scheduler.step(without + 7.5 * (with_text - without), t, x, return_dict=False)[0].to(dtype)
    return time.perf_counter() - started


def operations(unet: Any, given: dict[str, Any], calls: int, dtype: torch.dtype) -> float:
    """Floating-point operations of one guided sampling."""
    with FlopCounterMode(display=False) as counter:
        sample(unet, given, calls, dtype)
    return counter.get_total_flops()


def peak_above(action: Any) -> int:
    """Bytes by which the process grew at most while `action()` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def field(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = field("VmRSS")
    action()
    return field("VmHWM") - before


def measure(name: str, calls: int, repeats: int, dtype: torch.dtype) -> dict[str, Any]:
    plain = build(name, dtype)
    given = inputs(name, dtype)
    unets = {"plain": plain}
    for label, options in VARIANTS[name].items():
        unets[label] = sd_ext.VariantUNet2DConditionModel.from_unet(plain, **options)
    sample(plain, given, 1, dtype)  # warm
    rows: dict[str, Any] = {}
    whole = operations(plain, given, 1, dtype) * calls
    for label, unet in unets.items():
        rows[label] = {"seconds": [], "flops": whole if label == "plain" else operations(unet, given, calls, dtype)}
    for _ in range(repeats):
        for label, unet in unets.items():
            rows[label]["seconds"].append(sample(unet, given, calls, dtype))
            print(f"{name} {label}: {rows[label]['seconds'][-1]:.1f} s", flush=True)
    for label, unet in unets.items():
        rows[label]["peak"] = peak_above(lambda unet=unet: sample(unet, given, min(calls, 4), dtype))
        ratios = [a / b for a, b in zip(rows["plain"]["seconds"], rows[label]["seconds"], strict=True)]
        rows[label] |= {"speedup": statistics.median(ratios), "ceiling": whole / rows[label]["flops"]}
    return rows


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | U-Net | seconds | faster | FLOP ceiling | of it | memory above the weights, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for label, row in rows.items():
            lines.append(
                f"| {name} | {label} | {statistics.median(row['seconds']):.1f} | {row['speedup']:.2f} | "
                f"{row['ceiling']:.2f} | {row['speedup'] / row['ceiling']:.0%} | {row['peak'] / 1e9:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    given = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[given.dtype]
    results = {name: measure(name, given.calls, given.repeats, dtype) for name in given.models}
    title = f"# U-Net variants at full size: {given.calls} guided calls, 64 x 64 latents, {given.dtype}"
    write("unet_speed", {"settings": vars(given), "results": results}, f"{title}\n\n{table(results)}\n")


if __name__ == "__main__":
    main()
