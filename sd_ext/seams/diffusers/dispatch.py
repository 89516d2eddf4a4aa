"""Diffusers' attention kernels by name: native, flash, sage, xformers, and kernels from the Hub."""

from __future__ import annotations

from typing import Any

from ..seam import seam

SEEN = "diffusers 0.41 to 0.42, models.attention_dispatch"


@seam("AttentionBackendName", seen=SEEN, gone="attention kernels by Diffusers' names")
def backend_names() -> tuple[str, ...]:
    """The names of all kernels that Diffusers knows, installed or not."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    return tuple(each.value for each in AttentionBackendName)


@seam(
    "AttentionBackendName",
    "_check_attention_backend_requirements",
    "_maybe_download_kernel_for_backend",
    seen=SEEN,
    gone="attention kernels by Diffusers' names",
)
def prepare_backend(name: str) -> None:
    """Make a kernel ready, which fetches it if it is one of the Hub's.

    Args:
        name: one of `backend_names`.

    Raises:
        Exception: its package is missing or too old, or it cannot be fetched, of any kind.
    """
    from diffusers.models import attention_dispatch as theirs

    backend = theirs.AttentionBackendName(name)
    theirs._check_attention_backend_requirements(backend)
    theirs._maybe_download_kernel_for_backend(backend)


@seam("dispatch_attention_fn", seen=SEEN, gone="attention kernels by Diffusers' names")
def dispatch(query: Any, key: Any, value: Any, bias: Any, scale: float, name: str) -> Any:
    """Compute attention with a kernel; the kernel of the process and its other models stays what it is.

    Args:
        query, key, value: `(batch, tokens, heads, head size)`.
        bias: what is added to the scores, or None.
        scale: the factor of the scores.
        name: one of `backend_names`.

    Returns:
        `(batch, query tokens, heads, head size)`.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    return dispatch_attention_fn(query, key, value, attn_mask=bias, scale=scale, backend=AttentionBackendName(name))
