"""The attention kernels, and the choice between them, made before each call from the call's properties.

Every kernel takes query, key and value as `(batch, tokens, heads, head size)`, and a bias that broadcasts to `(batch,
heads, query tokens, key tokens)` or None. It returns `(batch, query tokens, heads, head size)`.

    sdpa      torch's scaled_dot_product_attention: flash, memory-efficient or math kernels, on every device
    xformers  xFormers' memory_efficient_attention: CUDA only
    sage      SageAttention (arXiv 2410.02367): CUDA only, 8-bit products, so the picture changes a little
    sliced    sdpa, one sample at a time: uses the least memory where only the math kernel is available
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ...errors import SeamError
from ...seams.xformers import has_gradient
from ..inside.say import say

BACKENDS = ("auto", "sdpa", "xformers", "sage", "sliced", "default")

HALF = (torch.float16, torch.bfloat16)
SAGE_HEAD_SIZE = 128  # the largest head size that SageAttention supports


class Choice(NamedTuple):
    """The kernel that will run, and the reason."""

    backend: str
    why: str


def choose(
    wanted: str, device: str, dtype: torch.dtype, head_size: int, has_mask: bool, available: frozenset[str]
) -> Choice:
    """Choose the kernel for a call.

    "auto" never chooses an approximate kernel: SageAttention must be requested.

    Args:
        wanted: "auto", "sdpa", "xformers", "sage" or "sliced".
        device: type of the tensors' device, such as "cuda".
        dtype: of query, key and value as the kernel gets them.
        head_size: channels of a head.
        has_mask: whether a bias is added to the scores.
        available: which of "xformers" and "sage" can be imported.

    Returns:
        The kernel and the reason: "sdpa" if the requested one does not support the call.
    """
    if wanted in ("sdpa", "sliced"):
        return Choice(wanted, "as asked")
    name = "sage" if wanted == "sage" else "xformers"
    obstacle = _OBSTACLES[name](device, dtype, head_size, has_mask)
    if name not in available:
        obstacle = f"{_PACKAGES[name]} is not installed"
    if obstacle:
        return Choice("sdpa", obstacle)
    return Choice(name, "as asked" if wanted == name else "installed, and it has an operator for this")


def _xformers_obstacle(device: str, dtype: torch.dtype, head_size: int, has_mask: bool) -> str:
    if device != "cuda":
        return f"xformers has no operator for {device}"
    if dtype not in (*HALF, torch.float32):
        return f"xformers has no operator for {_short(dtype)}"
    if head_size % (4 if dtype is torch.float32 else 8):  # operands are read 16 bytes at a time
        return f"xformers has no operator for heads of {head_size} channels in {_short(dtype)}"
    return ""


def _sage_obstacle(device: str, dtype: torch.dtype, head_size: int, has_mask: bool) -> str:
    if device != "cuda":
        return f"SageAttention has no kernel for {device}"
    if has_mask:
        return "SageAttention takes no mask"
    if dtype not in HALF:
        return f"SageAttention has no kernel for {_short(dtype)}"
    if head_size > SAGE_HEAD_SIZE:
        return f"SageAttention takes heads of at most {SAGE_HEAD_SIZE} channels, not {head_size}"
    return ""


_OBSTACLES = {"xformers": _xformers_obstacle, "sage": _sage_obstacle}
_PACKAGES = {"xformers": "xformers", "sage": "sageattention"}


@functools.lru_cache(maxsize=1)
def available() -> frozenset[str]:
    """Which optional kernels can be imported; a package that is installed but broken counts as absent."""
    return frozenset(name for name, module in (("xformers", "xformers.ops"), ("sage", "sageattention")) if _has(module))


def _has(module: str) -> bool:
    if importlib.util.find_spec(module.split(".")[0]) is None:
        return False
    try:
        importlib.import_module(module)
    except Exception:  # compiled for another torch or CUDA: ImportError, OSError, RuntimeError, ...
        return False
    return True


def attend(
    backend: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Compute softmax(query key^T scale + bias) value with the kernel `backend`.

    Args:
        backend: "sdpa", "xformers", "sage" or "sliced".
        query, key, value: `(batch, tokens, heads, head size)`.
        bias: broadcasts to `(batch, heads, query tokens, key tokens)`, or None.
        scale: the factor of the scores.

    Returns:
        `(batch, query tokens, heads, head size)`.
    """
    if backend == "xformers":
        return _xformers(query, key, value, bias, scale)
    if backend == "sage":
        return importlib.import_module("sageattention").sageattn(
            query, key, value, tensor_layout="NHD", is_causal=False, sm_scale=scale
        )
    if backend == "sliced":
        parts = range(len(query))
        biases = [None if bias is None else bias[i if len(bias) > 1 else 0][None] for i in parts]
        return torch.cat([_sdpa(query[i : i + 1], key[i : i + 1], value[i : i + 1], biases[i], scale) for i in parts])
    return _sdpa(query, key, value, bias, scale)


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


def _xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float) -> Any:
    ops = importlib.import_module("xformers.ops")
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, bias))
    call = (q.device, q.dtype, q.shape[-1], q.shape[1], k.shape[1], bias is not None, needs_grad)
    if call in _refused:
        return _sdpa(q, k, v, bias, scale)
    wide = None if bias is None else aligned(bias.expand(len(q), q.shape[2], q.shape[1], k.shape[1]))
    try:
        if needs_grad:
            _check_gradient(q, k, v, wide)
        return ops.memory_efficient_attention(q, k, v, attn_bias=wide, scale=scale)
    except NotImplementedError as error:  # which operators a build of xFormers has is known only by trying
        _refused.add(call)
        reason = str(error).splitlines()[0] if str(error) else "no operator"
        say(logging.WARNING, f"xformers refuses {_short(q.dtype)} heads of {q.shape[-1]} ({reason}); sdpa instead")
        return _sdpa(q, k, v, bias, scale)


_refused: set[tuple[Any, ...]] = set()


def _check_gradient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise NotImplementedError now if the backward pass would later fail because xFormers has no operator for it."""
    try:
        able = has_gradient(q, k, v, bias)
    except SeamError as error:
        raise NotImplementedError(str(error)) from error
    if not able:
        raise NotImplementedError("no operator for the gradient")


def aligned(bias: torch.Tensor) -> torch.Tensor:
    """Copy the bias so that the length of its rows in memory is a multiple of 8, as xFormers' kernels require."""
    keys = bias.shape[-1]
    return functional.pad(bias, (0, -keys % 8))[..., :keys]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
