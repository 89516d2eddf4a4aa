"""xFormers' private parts: which operators have a gradient."""

from __future__ import annotations

import importlib
from typing import Any

from .seam import seam


@seam(
    "fmha",
    "Inputs",
    "ALL_BW_OPS",
    "not_supported_reasons",
    seen="xformers 0.0.35, xformers.ops.fmha",
    gone="xFormers' attention where gradients are taken",
    fallback="torch's SDPA, said once",
)
def has_gradient(query: Any, key: Any, value: Any, bias: Any) -> bool:
    """Whether xFormers has an operator for the backward pass of this attention. Otherwise only that pass would fail.

    Args:
        query, key, value: `(batch, tokens, heads, head size)`.
        bias: `(batch, heads, query tokens, key tokens)` or None.
    """
    fmha = importlib.import_module("xformers.ops").fmha  # an extra, which type checkers need not have
    inputs = fmha.Inputs(query=query, key=key, value=value, attn_bias=bias)
    return not all(operator.not_supported_reasons(inputs) for operator in fmha.ALL_BW_OPS)
