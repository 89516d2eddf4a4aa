"""What does a U-Net of this package cost beside its network, in microseconds for each call?

    python benchmarks/unet_overhead.py [--rounds 20]

The time within Diffusers' own forward is taken off that of the call, then what is left of the plain class's calls. What
features do inside the network (hooks of layers, further calls of it) counts as the network's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from _report import write
from diffusers import UNet2DConditionModel

import sd_ext

TINY = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4, "cross_attention_dim": 8,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "cache, a step that runs whole": {"cache_schedule": [0, *range(1, 1000)]},
    "cache, a step that reuses": {"cache_interval": 1000},
    "guidance mixed (cfg_rescale)": {"cfg_rescale": 0.7},
    "guidance mixed (APG)": {"apg_eta": 0.0, "apg_of": "output"},
    "tokens merged": {"token_merge_ratio": 0.5},
    "large pictures, a late step": {"highres_factor": 2.0},
    "attention gate, before it": {"attention_gate": 10**6},
}
CALLS = 20
"""Calls of a run, each with a timestep of its own, as a pipeline makes them."""


class Clock:
    """In the place of Diffusers' forward: notes how long that takes."""

    def __init__(self, real: Any):
        self.real, self.inside = real, 0.0

    def forward(self, unet: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.real(unet, *args, **kwargs)
        finally:
            self.inside += time.perf_counter() - started


def outside(unet: Any, clock: Clock, sample: Any, text: Any) -> list[float]:
    """Microseconds of each call of a run that are not the network's."""
    found = []
    for timestep in torch.linspace(900, 10, CALLS):
        clock.inside, started = 0.0, time.perf_counter()
        unet(sample, timestep, encoder_hidden_states=text, return_dict=False)
        found.append((time.perf_counter() - started - clock.inside) * 1e6)
    return found


def measured(plain: Any, unet: Any, clock: Clock, rounds: int) -> dict[str, float]:
    """The median of a call's time beside its network, less the plain one's, and its middle half."""
    sample, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 5, 8)
    own: list[float] = []
    usual: list[float] = []
    with torch.no_grad(), sd_ext.sampling(unet, guidance_scale=5.0):
        for _ in range(rounds):
            usual += outside(plain, clock, sample, text)
            own += outside(unet, clock, sample, text)
    base = statistics.median(usual)
    low, middle, high = (each - base for each in statistics.quantiles(own, n=4))
    return {"median": middle, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help=f"of {CALLS} calls each")
    options = parser.parse_args()
    plain = UNet2DConditionModel(**TINY).eval()
    variants = {name: sd_ext.VariantUNet2DConditionModel.from_unet(plain, **way) for name, way in WAYS.items()}
    clock = Clock(UNet2DConditionModel.forward)
    UNet2DConditionModel.forward = lambda *args, **kwargs: clock.forward(*args, **kwargs)  # type: ignore[method-assign]
    try:
        rows = {name: measured(plain, unet, clock, options.rounds) for name, unet in variants.items()}
    finally:
        UNet2DConditionModel.forward = clock.real  # type: ignore[method-assign]
    lines = [
        "# What our U-Nets cost beside their network, in microseconds for each call",
        "",
        "| U-Net | median | middle half |",
        "|---|---|---|",
        *(f"| {name} | {row['median']:.1f} | {row['low']:.1f} to {row['high']:.1f} |" for name, row in rows.items()),
    ]
    write("unet_overhead", {"rounds": options.rounds, "calls": CALLS, "results": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
