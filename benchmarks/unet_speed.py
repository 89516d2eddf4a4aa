"""How much faster is a guided sampling with the U-Net's variants, at full size?

    python benchmarks/unet_speed.py [--models sd15 sdxl] [--device cuda] [--calls 12] [--repeats 3] [--dtype bf16]

Stable Diffusion 1.5's and XL's own configurations with random weights, guidance in one batch of two, DPM++ 2M; latents
of 64 x 64, on CUDA 128 x 128 for XL. Each repeat runs the plain U-Net and every other in turn; what counts is the
median of the ratios. Beside them stand two limits: the ratio of floating-point operations, counted, and the roofline,
the time the operations would take at the rate of the fastest large matrix product measured here. Memory is what a
sampling adds to the weights at most. On CUDA the ways to compute attention and compilation are compared too.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Way:
    """A way to run the network: options of the variant, what computes attention, and whether it is compiled."""

    options: dict[str, Any] = field(default_factory=dict)
    attention: str | None = None
    compiled: bool = False

    def prepare(self, plain: Any) -> Any:
        unet = sd_ext.VariantUNet2DConditionModel.from_unet(plain, **self.options)
        if self.attention == "math":
            from diffusers.models.attention_processor import AttnProcessor

            unet.set_attn_processor(AttnProcessor())
        elif self.attention:
            sd_ext.set_attention(unet, self.attention)
        if self.compiled:
            unet.compile()
        return unet


PLAIN = "plain"
EVERYWHERE = {
    "cache N=2": Way({"cache_interval": 2}),
    "cache N=3": Way({"cache_interval": 3}),
    "cache N=5": Way({"cache_interval": 5}),
    "tokens merged by half": Way({"token_merge_ratio": 0.5}),
}
ON_CUDA = {
    "attention: math": Way(attention="math"),
    "attention: sdpa": Way(attention="sdpa"),
    "attention: xformers": Way(attention="xformers"),
    "compiled": Way(compiled=True),
    "cache N=3, compiled": Way({"cache_interval": 3}, compiled=True),
}


def skeleton(name: str, dtype: torch.dtype) -> Any:
    """The U-Net of a configuration without weights: it can be counted, not run."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**CONFIGS[name])
    unet = torch.nn.Module.to(unet, dtype)  # Diffusers' own warns of modules kept in float32, of which there are none
    return unet.eval().requires_grad_(False)


def build(name: str, dtype: torch.dtype, device: str) -> Any:
    """The same with weights, noise of a usual size."""
    unet = skeleton(name, dtype).to_empty(device=device)
    torch.manual_seed(0)
    for key, p in unet.named_parameters():
        p.fill_(1.0) if "norm" in key and key.endswith("weight") else p.uniform_(-0.02, 0.02)
    return unet


def inputs(name: str, size: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What a guided call takes beside latent and timestep, a batch of two."""
    width = CONFIGS[name]["cross_attention_dim"]
    made: dict[str, Any] = {"encoder_hidden_states": torch.randn(2, 77, width, dtype=dtype, device=device)}
    if name == "sdxl":
        ids = torch.tensor([[8.0 * size, 8 * size, 0, 0, 8 * size, 8 * size]] * 2, device=device)
        embeds = torch.randn(2, 1280, dtype=dtype, device=device)
        made["added_cond_kwargs"] = {"text_embeds": embeds, "time_ids": ids}
    return made


@torch.no_grad()
def sample(unet: Any, given: dict[str, Any], calls: int, size: int) -> None:
    """One guided sampling."""
    scheduler = sd_ext.make_scheduler("dpm++ 2m")
    scheduler.set_timesteps(calls, device=unet.device)
    x = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0)).to(unet.device, unet.dtype)
    for t in scheduler.timesteps:
        without, with_text = unet(torch.cat([x, x]), t, **given).sample.chunk(2)
        x = scheduler.step(without + 7.5 * (with_text - without), t, x, return_dict=False)[0]


def seconds(action: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def operations(name: str, options: dict[str, Any], calls: int, size: int, dtype: torch.dtype) -> float:
    """Floating-point operations of one guided sampling, counted without running them."""
    unet = sd_ext.VariantUNet2DConditionModel.from_unet(skeleton(name, dtype), **options)
    with FlopCounterMode(display=False) as counter:
        sample(unet, inputs(name, size, dtype, "meta"), calls, size)
    return counter.get_total_flops()


def product_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    return max(2 * side**3 / seconds(lambda: a @ a, device) for _ in range(8))


def peak_above(action: Callable[[], Any], device: str) -> int:
    """Bytes by which memory grew at most while `action()` ran."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else what earlier runs freed would be used again without a trace
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def field_of(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = field_of("VmRSS")
    action()
    return field_of("VmHWM") - before


def measure(name: str, calls: int, repeats: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    size = 128 if (name, device) == ("sdxl", "cuda") else 64
    ways = {PLAIN: Way(), **EVERYWHERE, **(ON_CUDA if device == "cuda" else {})}
    plain, given = build(name, dtype, device), inputs(name, size, dtype, device)
    unets = {label: way.prepare(plain) if label != PLAIN else plain for label, way in ways.items()}
    rows: dict[str, Any] = {}
    for label, way in ways.items():
        rows[label] = {"seconds": [], "flops": operations(name, way.options, calls, size, dtype), "size": size}
        sample(unets[label], given, min(calls, 2), size)  # warm; compiles the whole pass and the shallow one
    rate = product_rate(dtype, device)
    for _ in range(repeats):
        for label, unet in unets.items():
            rows[label]["seconds"].append(seconds(lambda unet=unet: sample(unet, given, calls, size), device))
            print(f"{name} {label}: {rows[label]['seconds'][-1]:.2f} s", flush=True)
    whole = rows[PLAIN]
    for label, unet in unets.items():
        row = rows[label]
        ratios = [a / b for a, b in zip(whole["seconds"], row["seconds"], strict=True)]
        row["peak"] = peak_above(lambda unet=unet: sample(unet, given, min(calls, 4), size), device)
        row |= {"speedup": statistics.median(ratios), "ceiling": whole["flops"] / row["flops"]}
        row["roofline"] = row["flops"] / rate
    return rows


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | latents | U-Net | seconds | faster | FLOP ceiling | of it | roofline, s | of it | memory above the "
        "weights, GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for label, row in rows.items():
            took = statistics.median(row["seconds"])
            lines.append(
                f"| {name} | {row['size']} x {row['size']} | {label} | {took:.2f} | {row['speedup']:.2f} | "
                f"{row['ceiling']:.2f} | {row['speedup'] / row['ceiling']:.0%} | {row['roofline']:.2f} | "
                f"{row['roofline'] / took:.0%} | {row['peak'] / 1e9:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"))
    given = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[given.dtype]
    results = {name: measure(name, given.calls, given.repeats, dtype, given.device) for name in given.models}
    title = f"# U-Net variants at full size: {given.calls} guided calls, {given.dtype}, {given.device}"
    name = "unet_speed" if given.device == "cpu" else f"unet_speed_{given.device}"
    write(name, {"settings": vars(given), "results": results}, f"{title}\n\n{table(results)}\n")


if __name__ == "__main__":
    main()
