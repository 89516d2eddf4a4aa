"""Attention processors that compute by a kernel of Diffusers' `dispatch_attention_fn`."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch

from ...errors import InputError, UnknownNameError
from ...seams.diffusers import dispatch
from ..inside.say import say
from . import kernels
from .classes import MemoryEfficientAttnProcessor
from .kernels import Choice

PREFIX = "Dispatched_"
MASKED = ("native", "_native", "xformers", "flex")
"""How the names of kernels begin that take masks."""


class DispatchedAttnProcessor(MemoryEfficientAttnProcessor):
    """Attention by the kernel `backend` of Diffusers; with a mask that the kernel does not take, by SDPA, said once."""

    backend: ClassVar[str]

    @classmethod
    def planned(cls, device: str, dtype: torch.dtype, head_size: int) -> Choice:
        """The kernel of this class."""
        return cls.choose(device, dtype, head_size, False)

    @classmethod
    def choose(cls, device: str, dtype: torch.dtype, head_size: int, has_mask: bool) -> Choice:
        """The kernel of this class, or SDPA for a mask."""
        if not has_mask or cls.backend.startswith(MASKED):
            return Choice(cls.backend, "as asked, by Diffusers")
        say(logging.WARNING, f"attention {cls.backend!r} takes no mask, and sdpa computes where there is one")
        return Choice("sdpa", "the kernel takes no mask")

    def compute(self, backend: str, *operands: Any) -> torch.Tensor:
        """The attention itself. Raises `InputError` where the kernel cannot compute it."""
        if backend != self.backend:
            return super().compute(backend, *operands)
        try:
            return dispatch.dispatch(*operands, name=self.backend)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            query = operands[0]
            kind = str(query.dtype).removeprefix("torch.")
            what = f"{kind} heads of {query.shape[-1]} channels on {query.device.type}"
            raise InputError(
                f"attention {self.backend!r} cannot compute {what} ({_first_line(error)}); choose another"
            ) from error


_classes: dict[str, type[DispatchedAttnProcessor]] = {}


def processor_class(backend: str) -> type[DispatchedAttnProcessor]:
    """The class for a kernel. It has no arguments, since Diffusers makes processors anew by calling their class.

    Raises:
        UnknownNameError: Diffusers has no kernel of that name.
    """
    if backend not in dispatch.backend_names():
        raise UnknownNameError("attention backend", backend, (*kernels.BACKENDS, *dispatch.backend_names()))
    if backend not in _classes:
        name = f"{PREFIX}{backend}"
        _classes[backend] = type(name, (DispatchedAttnProcessor,), {"backend": backend, "__module__": __name__})
    return _classes[backend]


def check_backend(backend: str) -> None:
    """Raise `InputError` for a kernel that is unknown or cannot be had here; kernels of the Hub are fetched."""
    processor_class(backend)
    try:
        dispatch.prepare_backend(backend)
    except Exception as error:  # of packages that are missing, broken or not found on the Hub
        raise InputError(f"attention {backend!r} cannot be had here: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def __getattr__(name: str) -> Any:
    """Classes by name, for pickles."""
    if name.startswith(PREFIX):
        return processor_class(name.removeprefix(PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
