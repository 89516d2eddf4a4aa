"""On which device, in which dtype, and with which kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...errors import InputError
from .. import checks
from .option import Group, Option

AUTO = "auto"
DEVICES = AUTO, "cpu", "cuda", "mps"
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DTYPES = AUTO, *SHORT.values(), *SHORT
ATTENTION = "auto", "sdpa", "xformers", "sage", "sliced", "default"
KERNELS = (
    *("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "_native_npu", "_native_xla"),
    *("flash", "flash_hub", "flash_4_hub", "flash_varlen", "flash_varlen_hub", "aiter_fa2_hub", "flex"),
    *("_flash_3", "_flash_3_hub", "_flash_varlen_3", "_flash_3_varlen_hub"),
    *("sage_hub", "sage_blackwell_hub", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90"),
    *("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton"),
)
"""What Diffusers calls its kernels; a test compares."""


@dataclass(frozen=True, kw_only=True)
class Machine(Group):
    """On which device, in which dtype, and with which kernels: what may change the last bits of a picture."""

    title: ClassVar[str] = "Machine"

    device: Annotated[
        str,
        Option("CUDA where there is one, then Apple's mps, unless told.", "auto|cpu|cuda[:N]|mps", values=DEVICES),
    ] = AUTO
    dtype: Annotated[
        str,
        Option("float32 on a CPU, float16 elsewhere, unless told.", "auto|fp32|fp16|bf16", values=DTYPES),
    ] = AUTO
    attention: Annotated[
        str | None,
        Option(
            "Kernel of attention: auto (xformers where it serves), sdpa, xformers, sage, sliced, default, or by "
            "Diffusers' names: native, flash, flash_hub, ...",
            "NAME",
            "Diffusers' own",
            values=(*ATTENTION, *(name for name in KERNELS if not name.startswith("_"))),
        ),
    ] = None
    vae_tiling: Annotated[bool, Option("Decode large pictures tile by tile: less memory, seams may show.")] = False
    compile: Annotated[bool, Option("Compile the U-Net first: slow to start, faster for many pictures.")] = False

    @property
    def long_dtype(self) -> str:
        """The dtype by its long name: "float16", not "fp16"."""
        return SHORT.get(self.dtype, self.dtype)

    def check(self) -> None:
        """Raise `InputError` for a device, dtype or kernel that does not exist."""
        if not re.fullmatch(r"cuda:\d{1,3}", self.device):
            checks.check_choice("--device", self.device, DEVICES)
        checks.check_choice("--dtype", self.dtype, DTYPES)
        if self.attention is not None:
            checks.check_choice("--attention", self.attention, (*ATTENTION, *KERNELS))
        if self.device == "cpu" and self.attention in ("xformers", "sage"):
            raise InputError(f"--attention {self.attention} needs a CUDA device, and --device cpu is given; drop one")
